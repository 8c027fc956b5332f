// SPDX-License-Identifier: Apache-2.0
// Full attention with the whole KV cache on the device: the reference every method is held against.
#include "methods.h"

namespace hybridgen {

Method full_method(const EngineOptions& /*options*/) {
  Method method;
  method.name = "full";
  method.summary = "all tokens on the device, exact attention";
  return method;
}

}  // namespace hybridgen
