// SPDX-License-Identifier: Apache-2.0
#include "methods/methods.h"

namespace hybridgen {

Tunable home_option() {
  return {"home", std::string("device"), "'device' or 'host'", "where the kept tokens live"};
}

Method retaining_method(const MethodInfo& info, const MethodConfig& config) {
  Method method;
  method.name = info.name;
  method.residency = Residency::kRetained;
  method.retained_on_host = config.choice("home", "device, host") == "host";
  if (method.retained_on_host) {
    method.rule = {HostQuery::kNone, PayloadKind::kKeysAndValues, HostChoice::kAll};
  }
  method.key_layout = KeyLayout::kRows;
  return method;
}

}  // namespace hybridgen
