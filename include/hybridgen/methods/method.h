// SPDX-License-Identifier: Apache-2.0
// A method is a value: where old tokens live, which query the host needs, when tokens are chosen
// and what crosses the link. The pipeline reads it and knows no method by name. One file per method
// in src/methods builds its value from the engine's options.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "hybridgen/core/engine_options.h"

namespace hybridgen {

/// What the host sends for one (request, layer).
enum class PayloadKind : std::uint8_t {
  kNothing,          ///< everything is resident
  kLogitsAndValues,  ///< logits and V of the chosen tokens: one softmax on the device
  kKeysAndValues,    ///< K and V of the chosen tokens: the device computes their logits too
};

/// Which query a host job needs; this alone decides when the job may start.
enum class HostQuery : std::uint8_t {
  kExact,    ///< the layer's own: hidden behind the layer's resident logits only
  kGuessed,  ///< projected from the input of the layer before: hidden behind that layer
};

struct Method {
  std::string name;
  std::string summary;    ///< one line for tables
  bool offloads = false;  ///< tokens outside the window move to the host
  PayloadKind payload = PayloadKind::kNothing;
  HostQuery query = HostQuery::kExact;
  std::int64_t first_guessed_layer = 0;  ///< layers before it use the exact query and send logits
  SelectionStrategy strategy = SelectionStrategy::kPostQkt;
  std::string selector;      ///< Post-QKT selector
  std::string pre_selector;  ///< Pre-QKT selector

  /// Query and payload of one layer.
  HostQuery query_of(std::int64_t layer) const {
    return layer < first_guessed_layer ? HostQuery::kExact : query;
  }
  PayloadKind payload_of(std::int64_t layer) const {
    return query_of(layer) == HostQuery::kExact && payload == PayloadKind::kKeysAndValues
               ? PayloadKind::kLogitsAndValues
               : payload;
  }
};

/// The method `options.method` built from `options`. ConfigError for an unknown name, with the
/// nearest.
Method make_method(const EngineOptions& options);

/// Names and summaries in a fixed order.
std::vector<std::pair<std::string, std::string>> list_methods();

}  // namespace hybridgen
