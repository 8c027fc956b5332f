// SPDX-License-Identifier: Apache-2.0
// MoE-Lightning (Cao et al., ASPLOS 2025): the host keeps every key and value and computes the
// whole attention; the device does the rest. With several micro-batches the host works on one while
// the device finishes another (its CGOPipe order).
#include "methods/methods.h"

namespace hybridgen {

namespace {

struct MoELightningOptions {
  std::int64_t micro_batches = 2;
  std::int64_t lookahead = 2;
};

const OptionTable<MoELightningOptions>& table() {
  using O = MoELightningOptions;
  static const OptionTable<O> rows(
      {option("micro_batches", &O::micro_batches, Whole{1})
           .means("parts of the batch that alternate between host and device"),
       option("lookahead", &O::lookahead, Whole{1})
           .means("micro-batches whose queries are projected ahead of the one that is finished")});
  return rows;
}

}  // namespace

MethodInfo moe_lightning_info() {
  return {.name = "moe_lightning",
          .class_name = "MoELightning",
          .summary = "attention on the host, everything else on the device, in micro-batches",
          .attention = "host",
          .timing = "none",
          .exact_when = "always",
          .drops = "nothing",
          .link = "query, new key and value to the host; the attention output back",
          .tunables = table().described(),
          .reads = {"keys", "values"}};
}

Method moe_lightning_method(const EngineOptions& options) {
  const MethodInfo info = moe_lightning_info();
  const MoELightningOptions own = own_options(table(), info, options);
  Method method;
  method.name = info.name;
  method.residency = Residency::kNone;
  method.work = Attend{HostQuery::kExact, AllTokens{}};
  method.key_layout = KeyLayout::kRows;
  method.batches = {own.micro_batches, own.lookahead};
  return method;
}

}  // namespace hybridgen
