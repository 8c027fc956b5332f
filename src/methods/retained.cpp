// SPDX-License-Identifier: Apache-2.0
#include "methods.h"

namespace hybridgen {

LayerRule retained_rule(bool on_host) {
  return on_host ? LayerRule{HostQuery::kNone, PayloadKind::kKeysAndValues, HostChoice::kAll}
                 : LayerRule{};
}

}  // namespace hybridgen
