// SPDX-License-Identifier: Apache-2.0
// H2O (Zhang et al., NeurIPS 2023; FMInference/H2O, the variant that really evicts): tokens with
// the largest sums of attention weights ("heavy hitters") and the newest ones.

#include "methods/methods.h"

namespace hybridgen {

MethodInfo h2o_info() {
  return {.name = "h2o",
          .summary = "heavy hitters by accumulated attention, and recent tokens",
          .attention = "device",
          .timing = "post",
          .exact_when = "heavy + recent >= tokens",
          .drops = "tokens that are neither heavy nor recent",
          .link = "softmax weights to the host; with home='host' K and V of the kept tokens back",
          .tunables = {{"heavy",
                        0.1,
                        "an integer >= 0 (tokens) or a float in [0, 1] (share of the prompt)",
                        "kept tokens with the largest accumulated weights"},
                       {"recent",
                        0.1,
                        "an integer >= 1 (tokens) or a float in (0, 1] (share of the prompt)",
                        "newest tokens that are kept"},
                       {"positions",
                        std::string("original"),
                        "'original' or 'shift' (rotary models, home='device')",
                        "positions in the text, or in the cache"},
                       home_option()},
          .reads = {}};
}

Method h2o_method(const EngineOptions& options) {
  const MethodInfo info = h2o_info();
  const MethodConfig config(info, options);
  const auto heavy = config.budget("heavy", 0);
  const auto recent = config.budget("recent", 1);
  Method method = retaining_method(info, config);
  method.position_modes = "original, shift";
  if (config.choice("positions", method.position_modes) == "shift") {
    method.positions = PositionMode::kCacheIndex;
    if (method.retained_on_host) {
      config.refuse("positions", "keep the tokens on the device (home='device') to shift them");
    }
  }
  method.retention = [heavy, recent](const RetentionShape& shape, const RequestShape& request) {
    return make_heavy_hitter_retention(
        shape, heavy(request.prompt_tokens), recent(request.prompt_tokens));
  };
  return method;
}

}  // namespace hybridgen
