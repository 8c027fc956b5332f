// SPDX-License-Identifier: Apache-2.0
// Which offloaded tokens take part in a step (paper §4.5). One instance per request: selectors may
// keep state, and it dies with the request. Positions are in [0, n_c), ascending and unique.
// Ranking ties break by score descending, then position ascending.
//
// plan() and select() are const and run concurrently for different heads, on the host workers. What
// a selector hears is in kv_part.h.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hybridgen/core/types.h"
#include "hybridgen/kvcache/kv_part.h"

namespace hybridgen {

struct BlockedKeyView;

/// What a Pre-QKT selector may look at for one (layer, KV head).
struct PlanContext {
  std::int64_t layer = 0;
  std::int64_t kv_head = 0;
  std::int64_t num_offloaded = 0;    ///< n_c >= 1
  std::int64_t k = 0;                ///< min(K, n_c); n_c if the host computes the attention
  std::span<const float> queries{};  ///< [R, D] of the KV head's query heads, scaled by 1/sqrt(D)
};

class TokenSelector : public KvPart {
 public:
  virtual std::string_view name() const = 0;

  /// kPostQkt: select() is called with the logits of all offloaded tokens. kPreQkt: plan() is
  /// called before any logits exist.
  virtual SelectionStrategy strategy() const = 0;

  /// Pre-QKT: at most k positions for all query heads of the KV head. The result may lie in
  /// `scratch`, which is the calling worker's own, or in the selector.
  virtual std::span<const std::int32_t> plan(const PlanContext& context,
                                             std::vector<std::int32_t>& scratch) const;

  /// Post-QKT. `logits` [n_c] of one query head; writes min(k, n_c) = positions.size() positions
  /// and their logits. `scratch` is the calling worker's own.
  virtual void select(std::int64_t layer,
                      std::int64_t query_head,
                      std::span<const float> logits,
                      std::span<std::int32_t> positions,
                      std::span<float> values,
                      std::vector<float>& scratch) const;

  /// Post-QKT: whether the selector says how many tokens a query head takes; else K each. All query
  /// heads of a KV head then attend to what any of them chose: those rows cross anyway.
  virtual bool says_how_many() const { return false; }
  /// In [1, most]; `weights` [n_c] are the softmax of one query head's logits over all offloaded
  /// tokens. Only called if says_how_many().
  virtual std::int64_t how_many(std::span<const float> weights,
                                std::int64_t most,
                                std::vector<float>& scratch) const;

  /// Whether on_offload() reads keys: only then are those that lie in 8 or 4 bits restored for it.
  virtual bool reads_keys() const { return true; }
  /// `tokens` moved to the host: their keys are in `keys` now, which is empty unless they lie in
  /// blocks and are read. Per KV head, in ascending order.
  virtual void on_offload(std::int64_t layer,
                          std::int64_t kv_head,
                          TokenRange tokens,
                          const BlockedKeyView& keys);
  /// For all KV heads.
  void on_offload(const OffloadedRows& rows) final;
};

/// Name of the Pre-QKT choice that is no selector: the device plans by partial keys.
inline constexpr const char* kPartialKeysSelector = "partial_keys";

/// Sizes a selector's state may depend on.
struct SelectorShape {
  std::int64_t num_layers = 1;
  std::int64_t num_kv_heads = 1;             ///< G
  std::int64_t query_heads_per_kv_head = 1;  ///< R
  std::int64_t head_dim = 1;                 ///< D
  std::int64_t max_offloaded = 1;            ///< n_c at most
};

/// Exact top-k of this step's logits: "topk" (Post-QKT; the default).
std::unique_ptr<TokenSelector> make_top_k_selector(const SelectorShape& shape);

/// Per query head the fewest tokens whose logits have `mass`, in (0, 1), of the softmax over all
/// offloaded tokens (Post-QKT). ConfigError for another mass.
std::unique_ptr<TokenSelector> make_mass_selector(const SelectorShape& shape, double mass);

/// First `sinks` offloaded tokens and the most recent offloaded ones: "sinks_recent" (Pre-QKT).
/// With k < sinks the first k. ConfigError if sinks < 0.
std::unique_ptr<TokenSelector> make_sinks_recent_selector(std::int64_t sinks = 4);

using SelectorFactory = std::function<std::unique_ptr<TokenSelector>(const SelectorShape& shape)>;

/// Adds a selector of the user's own. ConfigError if the name is empty or one of ours; a second
/// registration of the same name replaces the first. Engines that exist keep what they have.
void register_selector(const std::string& name,
                       SelectionStrategy strategy,
                       SelectorFactory factory);

/// By registry name. ConfigError for an unknown name, listing all and suggesting the nearest.
std::unique_ptr<TokenSelector> make_selector(std::string_view name, const SelectorShape& shape);
std::vector<std::string> selector_names(SelectionStrategy strategy);
/// ConfigError for an unknown name, as make_selector.
SelectionStrategy strategy_of_selector(std::string_view name);
/// False for those of ours that never ask for the weights of decode steps. ConfigError for an
/// unknown name.
bool may_want_decode_weights(std::string_view name);

}  // namespace hybridgen
