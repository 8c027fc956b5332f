// SPDX-License-Identifier: Apache-2.0
// InfiniGen (Lee et al., OSDI 2024; snu-comparch/InfiniGen): the device guesses the next layer's
// logits from a few columns of every key, the host gathers K and V of the promising tokens, and the
// device computes exact attention over them.
#include <limits>

#include "methods/method_config.h"
#include "methods/methods.h"

namespace hybridgen {

MethodInfo infinigen_info() {
  return {
      .name = "infinigen",
      .summary = "tokens prefetched by guessed logits over partial keys, exact attention over them",
      .attention = "device",
      .timing = "pre",
      .exact_when = "alpha = inf and max_fetch = 1.0",
      .drops = "only what exceeds `capacity`",
      .link = "K and V of the chosen tokens, their positions to the host; first layers: all tokens",
      .tunables =
          {{"alpha", 4.0, "a float > 0", "tokens within alpha of the largest guessed logit count"},
           {"column_share",
            0.2,
            "a float in (0, 1]",
            "share of every key's rotated dimensions that the guess sees"},
           {"max_fetch",
            0.2,
            "an integer >= 1 (tokens) or a float in (0, 1] (share of the offloaded tokens)",
            "tokens fetched per KV head at most"},
           {"first_layer",
            std::int64_t{2},
            "an integer >= 1",
            "first layer that is guessed; the layers before load every token"},
           {"capacity",
            1.0,
            "a float in (0, 1]",
            "share of a request's tokens that the host keeps, never less than its prompt"},
           {"policy",
            std::string("counter"),
            "'fifo', 'lru' or 'counter'",
            "which token leaves a full pool"}},
      .reads = {"device_tokens"}};
}

Method infinigen_method(const EngineOptions& options) {
  const MethodInfo info = infinigen_info();
  const MethodConfig config(info, options);
  Method method;
  method.name = info.name;
  method.residency = Residency::kWindow;
  method.window = [](const RequestShape&) { return std::int64_t{0}; };
  method.rule = {HostQuery::kGuessed, PayloadKind::kKeysAndValues, HostChoice::kPartialKeys};
  method.early_rule = {HostQuery::kNone, PayloadKind::kKeysAndValues, HostChoice::kAll};
  method.strategy = SelectionStrategy::kPreQkt;
  method.first_layer = config.integer("first_layer", 1);
  method.guess_norm = GuessNorm::kCurrent;
  method.key_layout = KeyLayout::kRows;
  method.partial_keys.alpha =
      config.number("alpha", 0.0, std::numeric_limits<double>::infinity(), /*open=*/true);
  method.partial_keys.column_share = config.number("column_share", 0.0, 1.0, /*open=*/true);
  method.partial_keys.max_fetch = config.tokens("max_fetch");
  PoolLimit pool;
  pool.capacity = config.number("capacity", 0.0, 1.0, /*open=*/true);
  pool.policy = pool_policy_from_name(config.choice("policy", "fifo, lru, counter"));
  if (pool.capacity < 1.0) {
    method.pool = pool;
  } else {
    method.unread.emplace("policy", "no pool is ever full with capacity=1.0; set it to less");
  }
  return method;
}

}  // namespace hybridgen
