// SPDX-License-Identifier: Apache-2.0
// H2O (Zhang et al., NeurIPS 2023; FMInference/H2O, the variant that really evicts): tokens with
// the largest sums of attention weights ("heavy hitters") and the newest ones.

#include "methods/methods.h"
#include "parts/parts.h"

namespace hybridgen {

namespace {

struct H2OOptions {
  TokenBudget heavy{0.1};
  TokenBudget recent{0.1};
  PositionMode positions = PositionMode::kOriginal;
  Home home = Home::kDevice;
};

const OptionTable<H2OOptions>& table() {
  using O = H2OOptions;
  static const OptionTable<O> rows(
      {option("heavy", &O::heavy, 0).means("kept tokens with the largest accumulated weights"),
       option("recent", &O::recent, 1).means("newest tokens that are kept"),
       option("positions",
              &O::positions,
              {{"original", PositionMode::kOriginal}, {"shift", PositionMode::kCacheIndex}})
           .means("positions in the text, or in the cache (rotary models, home=\"device\")"),
       home_option(&O::home)});
  return rows;
}

}  // namespace

MethodInfo h2o_info() {
  return {.name = "h2o",
          .class_name = "H2O",
          .summary = "heavy hitters by accumulated attention, and recent tokens",
          .attention = "device",
          .timing = "post",
          .exact_when = "heavy + recent >= tokens",
          .drops = "tokens that are neither heavy nor recent",
          .link = "softmax weights to the host; with home='host' K and V of the kept tokens back",
          .tunables = table().described(),
          .reads = {"keys", "values"}};
}

Method h2o_method(const EngineOptions& options) {
  const MethodInfo info = h2o_info();
  const H2OOptions own = own_options(table(), info, options);
  Method method = retaining_method(info, own.home);
  method.position_modes = "original, shift";
  method.positions = own.positions;
  if (own.positions == PositionMode::kCacheIndex && own.home == Home::kHost) {
    table().refuse("method h2o", own, "positions", kShiftOnDevice);
  }
  method.parts = {retention_part([heavy = own.heavy, recent = own.recent](
                                     const RetentionShape& shape, const RequestShape& request) {
                    return make_heavy_hitter_retention(shape,
                                                       heavy.resolve(request.prompt_tokens, 0),
                                                       recent.resolve(request.prompt_tokens, 1));
                  }),
                  prompt_scores_part()};
  return method;
}

}  // namespace hybridgen
