// SPDX-License-Identifier: Apache-2.0
// Full attention with the whole KV cache on the device: the reference every method is held against.
#include "methods/method_config.h"
#include "methods/methods.h"

namespace hybridgen {

MethodInfo full_info() {
  return {.name = "full",
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
  const MethodConfig config(info, options);
  Method method;
  method.name = info.name;
  return method;
}

}  // namespace hybridgen
