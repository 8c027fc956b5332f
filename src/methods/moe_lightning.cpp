// SPDX-License-Identifier: Apache-2.0
// MoE-Lightning (Cao et al., ASPLOS 2025): the host keeps every key and value and computes the
// whole attention; the device does the rest. With several micro-batches the host works on one while
// the device finishes another (its CGOPipe order).
#include "methods/method_config.h"
#include "methods/methods.h"

namespace hybridgen {

MethodInfo moe_lightning_info() {
  return {.name = "moe_lightning",
          .summary = "attention on the host, everything else on the device, in micro-batches",
          .attention = "host",
          .timing = "none",
          .exact_when = "always",
          .drops = "nothing",
          .link = "query, new key and value to the host; the attention output back",
          .tunables = {{"micro_batches",
                        std::int64_t{2},
                        "an integer >= 1",
                        "parts of the batch that alternate between host and device"},
                       {"lookahead",
                        std::int64_t{2},
                        "an integer >= 1",
                        "micro-batches whose queries are projected ahead of the one that is "
                        "finished"}},
          .reads = {}};
}

Method moe_lightning_method(const EngineOptions& options) {
  const MethodInfo info = moe_lightning_info();
  const MethodConfig config(info, options);
  Method method;
  method.name = info.name;
  method.residency = Residency::kNone;
  method.rule = {HostQuery::kExact, PayloadKind::kPartialAttention, HostChoice::kAll};
  method.micro_batches = config.integer("micro_batches", 1);
  method.lookahead = config.integer("lookahead", 1);
  return method;
}

}  // namespace hybridgen
