// SPDX-License-Identifier: Apache-2.0
#include "methods/methods.h"

namespace hybridgen {

Method retaining_method(const MethodInfo& info, Home home) {
  Method method;
  method.name = info.name;
  method.residency = Residency::kRetained;
  method.retained_on_host = home == Home::kHost;
  if (method.retained_on_host) {
    method.rule = {HostQuery::kNone, PayloadKind::kKeysAndValues, HostChoice::kAll};
  }
  method.key_layout = KeyLayout::kRows;
  return method;
}

}  // namespace hybridgen
