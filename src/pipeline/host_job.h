// SPDX-License-Identifier: Apache-2.0
// One (request, layer) job of the CPU stage: what it reads, who chooses its tokens, what it sends
// and where it leaves that. Knows no Torch and no method.
#pragma once

#include <cstdint>
#include <optional>
#include <variant>

#include "hybridgen/parts/part_roles.h"
#include "hybridgen/selection/token_selector.h"
#include "kernels/cpu_kernels.h"
#include "kvcache/host_kv_store.h"

namespace hybridgen {

/// Staging of one (request, layer) job. Owned by the request; reused by every second layer. What a
/// method never sends is null.
struct HostJobBuffers {
  /// [G, R * S] scaled logits of the chosen tokens: of KV head g the first R * n [R, n], with n =
  /// union_sizes[g] where its query heads share their tokens, else S.
  float* logits = nullptr;
  std::int32_t* positions = nullptr;    ///< [H, S] chosen per query head, ascending
  std::int32_t* index = nullptr;        ///< [H, S] row of `values` for each of them
  std::int32_t* merged = nullptr;       ///< [G, union_capacity] a group's chosen tokens, ascending
  std::int64_t* union_sizes = nullptr;  ///< [G]
  void* values = nullptr;               ///< [G, union_capacity, D]
  void* keys = nullptr;                 ///< [G, union_capacity, D]
  void* output = nullptr;               ///< [H, D] attention over the chosen tokens
  float* lse = nullptr;                 ///< [H] natural log-sum-exp of their logits
  std::int64_t union_capacity = 0;
  bool device_reads = false;  ///< `values` and `keys` next: by a device, or by the CPU's cores
  /// [H, stride of score_stride()] logits of all offloaded tokens; null: heads are not cut into
  /// ranges. Never leaves the host.
  float* scores = nullptr;
  /// [G, attended_floats()] of the attention that the host finishes. Never leaves the host.
  float* parts = nullptr;
  /// [H] natural log-sum-exp of the logits that a selector did not choose, where it chose by them;
  /// null: unwanted. Never leaves the host.
  float* unchosen = nullptr;
};

/// Floats of the parts of a KV head's attention over `num_tokens` tokens, `query_heads` of which
/// share it.
constexpr std::int64_t attended_floats(std::int64_t num_tokens,
                                       std::int64_t query_heads,
                                       std::int64_t head_dim) {
  return kernels::part_count(num_tokens) * query_heads * (head_dim + 2);
}

/// Between the rows of HostJobBuffers::scores, for `num_tokens` offloaded tokens.
constexpr std::int64_t score_stride(std::int64_t num_tokens) {
  return (num_tokens + kKeyBlockTokens - 1) / kKeyBlockTokens * kKeyBlockTokens;
}

/// What a job sends of its tokens.
enum class Payload : std::uint8_t {
  kLogitsAndValues,
  kKeysAndValues,
  kKeys,
  kPartialAttention,  ///< output and log-sum-exp of the attention over them
};

/// Nobody chooses: all offloaded tokens.
struct EveryToken {};
/// The device did: as many as it was asked for, or as it wanted, the same number for every KV head.
struct ChosenOnDevice {
  std::optional<std::int64_t> wanted{};
  /// [G, most] ascending, then n_c in what is left of a row; there before the job runs.
  const std::int32_t* places = nullptr;
  std::int64_t most = 0;
};
/// A selector, before any logits exist.
struct PlannedHere {
  const TokenSelector* selector = nullptr;
};
/// A selector, by the logits of all offloaded tokens, for each query head.
struct SelectedHere {
  const TokenSelector* selector = nullptr;
  /// Tokens of a query head at most, where the selector says how many; those of a KV head then
  /// share what any of them took, S at most. 0: each has S of its own.
  std::int64_t most = 0;
  /// Scanned instead of the keys; the best `num_candidates` in [S, n_c) of each query head then get
  /// exact logits. Null: the keys are scanned.
  const KeyProxy* proxy = nullptr;
  std::int64_t num_candidates = 0;
};
using Chooser = std::variant<EveryToken, ChosenOnDevice, PlannedHere, SelectedHere>;

struct HostJob {
  HostKvStore* store = nullptr;
  Payload payload = Payload::kKeysAndValues;
  Chooser chooser;
  const void* query = nullptr;  ///< [H, D] in the store's dtype, on the host, unscaled; may be null
  /// Rows [G, D] that become the last offloaded token first; null: nothing is appended.
  const void* new_key = nullptr;
  const void* new_value = nullptr;
  std::int64_t num_offloaded = 0;  ///< n_c >= 1
  /// S in [1, n_c]: tokens of a query head, or of all of a KV head where a selector says how many;
  /// of a device's plan once that is read.
  std::int64_t num_chosen = 0;
  double keys_in_cxl = 0.0;  ///< share of them in slower memory, in [0, 1]
  double values_in_cxl = 0.0;
  HostJobBuffers buffers;

  bool is_chosen_on_device() const { return std::holds_alternative<ChosenOnDevice>(chooser); }
  bool takes_every_token() const { return std::holds_alternative<EveryToken>(chooser); }
  /// Who selects by logits; null if nobody does.
  const SelectedHere* selection() const { return std::get_if<SelectedHere>(&chooser); }
  /// Of the store, whatever is chosen; else at most what is.
  bool reads_all_keys() const {
    return takes_every_token() || (selection() != nullptr && selection()->proxy == nullptr);
  }
  bool reads_all_values() const { return takes_every_token() && payload != Payload::kKeys; }
  /// All query heads of a KV head use the same tokens: `merged`, without `positions` and `index`.
  bool is_shared() const { return selection() == nullptr || selection()->most > 0; }
  /// Whether tokens may be left out of which logits are known.
  bool leaves_scored_tokens() const {
    return selection() != nullptr && (num_chosen < num_offloaded || selection()->most > 0);
  }
  bool sends_keys() const {
    return payload == Payload::kKeysAndValues || payload == Payload::kKeys;
  }
  /// Where the device chose, or nobody, and will score, the host only copies rows.
  bool only_copies() const {
    return sends_keys() && (takes_every_token() || is_chosen_on_device());
  }
};

}  // namespace hybridgen
