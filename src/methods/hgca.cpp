// SPDX-License-Identifier: Apache-2.0
// HGCA (Deng et al., 2025): dense attention over the recent window on the device, sparse attention
// over salient older tokens on the host, merged by log-sum-exp.
#include <limits>

#include "methods/method_config.h"
#include "methods/methods.h"
#include "selection/hgca_selector.h"

namespace hybridgen {

MethodInfo hgca_info() {
  return {
      .name = "hgca",
      .summary = "recent window on the device, salient older tokens on the host, merged outputs",
      .attention = "both",
      .timing = "state",
      .exact_when = "beta = 0",
      .drops =
          "nothing, but tokens that are not salient when they leave the window take part "
          "no more",
      .link = "query and softmax weights to the host; output and log-sum-exp back",
      .tunables =
          {{"block", std::int64_t{128}, "an integer >= 1", "tokens that leave the window at once"},
           {"blocks",
            std::int64_t{2},
            "an integer >= 1",
            "blocks in the window; KVConfig(device_tokens=) overrides it"},
           {"alpha", 0.5, "a float in [0, 1]", "weight of the newest step in the moving average"},
           {"beta", 0.5, "a float >= 0", "salience threshold, in shares of the mean weight"},
           {"keep_min",
            std::int64_t{10},
            "an integer >= 0",
            "tokens of every leaving block that are kept at least"},
           {"groups",
            std::int64_t{4},
            "an integer >= 1",
            "groups of KV heads that keep the same number of tokens"}},
      .reads = {"device_tokens"}};
}

Method hgca_method(const EngineOptions& options) {
  const MethodInfo info = hgca_info();
  const MethodConfig config(info, options);
  const std::int64_t block = config.integer("block", 1);
  const std::int64_t window = block * config.integer("blocks", 1);
  HgcaOptions salience;
  salience.alpha = config.number("alpha", 0.0, 1.0);
  salience.beta = config.number("beta", 0.0, std::numeric_limits<double>::max());
  salience.keep_min = config.integer("keep_min", 0);
  salience.groups = config.integer("groups", 1);
  Method method;
  method.name = info.name;
  method.residency = Residency::kWindow;
  if (options.device_tokens != WindowSetting{}) {
    method.unread.emplace("blocks", "KVConfig(device_tokens=) sets the window; give one of them");
  }
  method.window = [window](const RequestShape&) { return window; };
  method.eviction_block = block;
  method.rule = {HostQuery::kExact, PayloadKind::kPartialAttention, HostChoice::kSelector};
  method.key_layout = KeyLayout::kRows;
  method.strategy = SelectionStrategy::kPreQkt;
  method.pre_selector = [salience](const SelectorShape& shape) {
    return make_hgca_selector(shape, salience);
  };
  return method;
}

}  // namespace hybridgen
