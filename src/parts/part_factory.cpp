// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/parts/part_factory.h"

#include <algorithm>
#include <utility>

namespace hybridgen {

PartFactory selector_part(SelectionStrategy strategy,
                          SelectorFactory make,
                          bool wants_decode_weights,
                          bool says_how_many) {
  return {.role = strategy == SelectionStrategy::kPostQkt ? PartRole::kSelector
                                                          : PartRole::kPreSelector,
          .make =
              [make = std::move(make)](const PartContext& context) {
                return make({context.config.num_layers,
                             context.config.num_kv_heads,
                             context.config.query_heads_per_kv_head(),
                             context.config.head_dim,
                             context.max_offloaded});
              },
          .wants_decode_weights = wants_decode_weights,
          .says_how_many = says_how_many};
}

PartFactory named_selector_part(SelectionStrategy strategy, const std::string& name) {
  return selector_part(
      strategy,
      [name](const SelectorShape& shape) { return make_selector(name, shape); },
      may_want_decode_weights(name));
}

PartFactory mass_selector_part(double mass) {
  return selector_part(
      SelectionStrategy::kPostQkt,
      [mass](const SelectorShape& shape) { return make_mass_selector(shape, mass); },
      /*wants_decode_weights=*/false,
      /*says_how_many=*/true);
}

PartFactory retention_part(RetentionFactory make, bool wants_weights) {
  return {.role = PartRole::kRetention,
          .make =
              [make = std::move(make)](const PartContext& context) {
                return make({context.config.num_layers,
                             context.config.num_kv_heads,
                             context.config.query_heads_per_kv_head()},
                            context.request);
              },
          .wants_decode_weights = wants_weights};
}

const PartFactory* find_part(const std::vector<PartFactory>& parts, PartRole role) {
  const auto found = std::ranges::find(parts, role, &PartFactory::role);
  return found == parts.end() ? nullptr : &*found;
}

}  // namespace hybridgen
