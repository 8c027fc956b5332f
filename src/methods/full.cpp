// SPDX-License-Identifier: Apache-2.0
// Full attention with the whole KV cache on the device: the reference every method is held against.
#include "methods/methods.h"

namespace hybridgen {

namespace {

struct FullOptions {};

}  // namespace

MethodInfo full_info() {
  return {.name = "full",
          .class_name = "Full",
          .summary = "all tokens on the device, exact attention",
          .attention = "device",
          .timing = "none",
          .exact_when = "always",
          .drops = "nothing",
          .link = "nothing",
          .tunables = {},
          .reads = {}};
}

Method full_method(const EngineOptions& options) {
  const MethodInfo info = full_info();
  const OptionTable<FullOptions> table({});
  static_cast<void>(own_options(table, info, options));
  Method method;
  method.name = info.name;
  return method;
}

}  // namespace hybridgen
