// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/selection/token_selector.h"

#include <algorithm>
#include <cstddef>
#include <mutex>
#include <numeric>
#include <stdexcept>

#include "core/names.h"
#include "hybridgen/core/error.h"
#include "kvcache/key_blocks.h"
#include "selection/selectors.h"

namespace hybridgen {

namespace {

struct RegistryEntry {
  std::string name;
  SelectionStrategy strategy;
  SelectorFactory make;
  bool wants_decode_weights = true;  ///< of a user's nobody knows before it is asked
};

/// Ours first, then those that users registered.
class Registry {
 public:
  static Registry& instance() {
    // Never destroyed: what users registered may belong to an interpreter that is gone by then.
    static auto* const registry = new Registry;  // NOLINT(cppcoreguidelines-owning-memory)
    return *registry;
  }

  std::vector<RegistryEntry> entries() const {
    const std::lock_guard lock(mutex_);
    return entries_;
  }

  void add(RegistryEntry entry) {
    const std::lock_guard lock(mutex_);
    const auto found = std::ranges::find(entries_, entry.name, &RegistryEntry::name);
    if (entry.name.empty() || found < entries_.begin() + num_own_) {
      throw ConfigError(message("[register_selector] name is \"",
                                entry.name,
                                "\"; allowed: any that is not one of the library's own"));
    }
    if (found == entries_.end()) {
      entries_.push_back(std::move(entry));
    } else {
      *found = std::move(entry);
    }
  }

 private:
  Registry()
      : entries_{
            RegistryEntry{"topk", SelectionStrategy::kPostQkt, make_top_k_selector, false},
            RegistryEntry{"h2o",
                          SelectionStrategy::kPostQkt,
                          [](const SelectorShape& shape) { return make_h2o_selector(shape); }},
            RegistryEntry{
                "keyformer",
                SelectionStrategy::kPostQkt,
                [](const SelectorShape& shape) { return make_keyformer_selector(shape); }},
            RegistryEntry{"sinks_recent",
                          SelectionStrategy::kPreQkt,
                          [](const SelectorShape&) { return make_sinks_recent_selector(); },
                          false},
            RegistryEntry{
                "block_digests",
                SelectionStrategy::kPreQkt,
                [](const SelectorShape& shape) { return make_block_digests_selector(shape); },
                false},
        } {}

  mutable std::mutex mutex_;
  std::vector<RegistryEntry> entries_;
  std::ptrdiff_t num_own_ = std::ssize(entries_);
};

RegistryEntry entry_of(std::string_view name) {
  std::vector<std::string> names;
  std::string listed;
  for (const RegistryEntry& entry : Registry::instance().entries()) {
    if (entry.name == name) return entry;
    names.emplace_back(entry.name);
    listed += message(listed.empty() ? "" : ", ", '"', entry.name, '"');
  }
  const std::string nearest = nearest_name(name, names);
  throw ConfigError(message(
      "[make_selector] name is \"",
      name,
      "\"; allowed: ",
      listed,
      nearest.empty() ? "; use one of these" : message("; did you mean \"", nearest, "\"?")));
}

}  // namespace

std::span<const std::int32_t> TokenSelector::plan(const PlanContext& /*context*/,
                                                  std::vector<std::int32_t>& /*scratch*/) const {
  throw std::logic_error(
      message("internal check failed: selector \"", name(), "\" needs logits and cannot plan"));
}

void TokenSelector::select(std::int64_t /*layer*/,
                           std::int64_t /*query_head*/,
                           std::span<const float> /*logits*/,
                           std::span<std::int32_t> /*positions*/,
                           std::span<float> /*values*/,
                           std::vector<float>& /*scratch*/) const {
  throw std::logic_error(message(
      "internal check failed: selector \"", name(), "\" plans and does not select by logits"));
}

std::int64_t TokenSelector::how_many(std::span<const float> /*weights*/,
                                     std::int64_t most,
                                     std::vector<float>& /*scratch*/) const {
  return most;
}

void TokenSelector::on_offload(std::int64_t /*layer*/,
                               std::int64_t /*kv_head*/,
                               TokenRange /*tokens*/,
                               const BlockedKeyView& /*keys*/) {}

void TokenSelector::on_offload(const OffloadedRows& rows) {
  const HostKvShape& shape = rows.host.shape();
  const bool is_full = shape.key_precision == KvPrecision::kFull;
  const bool has_blocks = shape.key_layout == KeyLayout::kBlocked && reads_keys();
  std::vector<float> restored;
  for (std::int64_t g = 0; g < shape.num_kv_heads; ++g) {
    BlockedKeyView keys;
    if (has_blocks) {
      keys = is_full ? rows.host.keys(rows.layer, g)
                     : restore_blocks(rows.host, rows.layer, g, rows.tokens, restored);
    }
    on_offload(rows.layer, g, rows.tokens, keys);
  }
}

std::unique_ptr<TokenSelector> make_selector(std::string_view name, const SelectorShape& shape) {
  return entry_of(name).make(shape);
}

SelectionStrategy strategy_of_selector(std::string_view name) { return entry_of(name).strategy; }

bool may_want_decode_weights(std::string_view name) { return entry_of(name).wants_decode_weights; }

void register_selector(const std::string& name,
                       SelectionStrategy strategy,
                       SelectorFactory factory) {
  Registry::instance().add({name, strategy, std::move(factory)});
}

std::vector<std::string> selector_names(SelectionStrategy strategy) {
  std::vector<std::string> names;
  for (const RegistryEntry& entry : Registry::instance().entries()) {
    if (entry.strategy == strategy) names.emplace_back(entry.name);
  }
  return names;
}

}  // namespace hybridgen
