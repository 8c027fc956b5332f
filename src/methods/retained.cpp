// SPDX-License-Identifier: Apache-2.0
#include "methods/methods.h"

namespace hybridgen {

Method retaining_method(const MethodInfo& info, Home home) {
  Method method;
  method.name = info.name;
  method.residency = Residency::kRetained;
  if (home == Home::kHost) {
    method.work = Fetch{HostQuery::kNone, AllTokens{}};
  } else {
    for (const char* name : {"keys", "values"}) {
      method.unread.emplace(name, "the kept tokens lie on the device; set home='host'");
    }
  }
  method.key_layout = KeyLayout::kRows;
  return method;
}

}  // namespace hybridgen
