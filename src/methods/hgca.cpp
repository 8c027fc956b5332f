// SPDX-License-Identifier: Apache-2.0
// HGCA (Deng et al., 2025): dense attention over the recent window on the device, sparse attention
// over salient older tokens on the host, merged by log-sum-exp.
#include "methods/methods.h"
#include "selection/hgca_selector.h"

namespace hybridgen {

namespace {

struct HgcaSettings {
  std::int64_t block = 128;
  std::int64_t blocks = 2;
  HgcaOptions salience;
};

const OptionTable<HgcaSettings>& table() {
  using O = HgcaSettings;
  using S = HgcaOptions;
  static const OptionTable<O> rows(
      {option("block", &O::block, Whole{1}).means("tokens that leave the window at once"),
       option("blocks", &O::blocks, Whole{1})
           .means("blocks in the window; KVConfig(device_tokens=) overrides it"),
       lifted(option("alpha", &S::alpha, kShare), &O::salience)
           .means("weight of the newest step in the moving average"),
       lifted(option("beta", &S::beta, Interval{}), &O::salience)
           .means("salience threshold, in shares of the mean weight; 0 keeps every token"),
       lifted(option("keep_min", &S::keep_min, Whole{}), &O::salience)
           .means("tokens of every leaving block that are kept at least"),
       lifted(option("groups", &S::groups, Whole{1}), &O::salience)
           .means("groups of KV heads that keep the same number of tokens")});
  return rows;
}

}  // namespace

MethodInfo hgca_info() {
  return {
      .name = "hgca",
      .class_name = "HGCA",
      .summary = "recent window on the device, salient older tokens on the host, merged outputs",
      .attention = "both",
      .timing = "state",
      .exact_when = "beta = 0",
      .drops =
          "nothing, but tokens that are not salient when they leave the window take part "
          "no more",
      .link = "query and softmax weights to the host; output and log-sum-exp back",
      .tunables = table().described(),
      .reads = {"device_tokens", "keys", "values"}};
}

Method hgca_method(const EngineOptions& options) {
  const MethodInfo info = hgca_info();
  const HgcaSettings own = own_options(table(), info, options);
  const std::int64_t window = own.block * own.blocks;
  Method method;
  method.name = info.name;
  method.residency = Residency::kWindow;
  if (options.device_tokens != WindowSetting{}) {
    method.unread.emplace("blocks", "KVConfig(device_tokens=) sets the window; give one of them");
  }
  method.window = {.tokens = [window](const RequestShape&) { return window; }, .block = own.block};
  method.work = Attend{HostQuery::kExact, BySelectors{}};
  method.key_layout = KeyLayout::kRows;
  method.strategy = SelectionStrategy::kPreQkt;
  method.parts.push_back(
      selector_part(method.strategy, [salience = own.salience](const SelectorShape& shape) {
        return make_hgca_selector(shape, salience);
      }));
  return method;
}

}  // namespace hybridgen
