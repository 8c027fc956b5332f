// SPDX-License-Identifier: Apache-2.0
// HybridGen (paper §4): a window on the device, older tokens on the host, which computes their
// logits.
#include "methods.h"

namespace hybridgen {

Method hybridgen_method(const EngineOptions& options) {
  Method method;
  method.name = "hybridgen";
  method.summary =
      "recent tokens on the device; the host scores older keys and sends logits and values";
  method.offloads = true;
  method.payload = options.query == QueryMode::kRescore ? PayloadKind::kKeysAndValues
                                                        : PayloadKind::kLogitsAndValues;
  method.query = options.query == QueryMode::kExact ? HostQuery::kExact : HostQuery::kGuessed;
  method.first_guessed_layer = options.spec_first_layer;
  method.strategy = options.strategy;
  method.selector = options.selector;
  method.pre_selector = options.pre_selector;
  return method;
}

}  // namespace hybridgen
