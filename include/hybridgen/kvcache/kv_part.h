// SPDX-License-Identifier: Apache-2.0
// Whatever keeps state of its own about a request's tokens: selectors, retention policies, what
// guesses, proposes or limits. One object per request, which dies with it. Every hook is empty
// unless overridden; those that decide something are in token_selector.h, retention_policy.h and
// parts/part_roles.h.
//
// All hooks are called by one thread. Those for layer i may overlap with what host workers do for
// the layer after it (plan(), select(), ...), so that state must be kept per layer.
#pragma once

#include <cstdint>
#include <span>

#include "hybridgen/core/types.h"

namespace at {
class Tensor;  // <ATen/core/Tensor.h>, for parts that look at what is on the device
}

namespace hybridgen {

class HostKvStore;
class ResidentCache;

/// What a request that is saved and restored needs of a part beside the tokens and their K and V.
struct PartState {
  /// on_offload() of all offloaded tokens brings a new part where the old one was, as far as it is
  /// not `saved`.
  bool from_keys = false;
  /// Cannot be derived from keys and values: must be saved.
  bool saved = false;
  friend bool operator==(const PartState&, const PartState&) = default;
};

/// Which softmax the prefill weights given to a part come from.
enum class PrefillWeights : std::uint8_t {
  kNone,    ///< on_prefill is never called
  kGlobal,  ///< one softmax over all tokens that a row sees
  kLocal,   ///< one over those on the device, another over the offloaded ones
};

/// Attention weights of a prompt chunk on one range of tokens, for one (layer, KV head).
struct PrefillAttention {
  TokenRange tokens;
  bool is_offloaded = false;     ///< the tokens were on the host before the chunk
  std::int64_t num_queries = 0;  ///< R
  std::int64_t num_rows = 0;     ///< query rows (prompt tokens of the chunk)
  const float* sums = nullptr;   ///< [R, tokens.size()]: weights summed over the rows
  std::int64_t stride = 0;       ///< of `sums`
};

/// Attention weights of one decode step, for one (layer, KV head).
struct DecodeAttention {
  std::int64_t num_queries = 0;  ///< R
  std::int64_t num_chosen = 0;   ///< offloaded tokens that took part, per query head
  /// [R, num_chosen] or one row for all; null if the host merged its part itself.
  const std::int32_t* positions = nullptr;
  std::int64_t positions_stride = 0;  ///< 0: one row for all query heads
  TokenRange resident;                ///< the new token is the last one
  /// [R, num_chosen + resident.size()]; without the chosen ones if `positions` is null.
  const float* weights = nullptr;
  std::int64_t stride = 0;  ///< of `weights`
};

/// A prompt chunk of T tokens in one layer, all on the device.
struct PromptRows {
  std::int64_t layer = 0;
  std::int64_t first_row = 0;       ///< position of the first of them
  const at::Tensor& query;          ///< [T, H, D], rotated
  const at::Tensor& keys;           ///< [G, T, D] of the chunk, rotated
  const at::Tensor& resident_keys;  ///< [G, n_g, D] of resident tokens before it; maybe undefined
  const at::Tensor& lse;            ///< [H, T] natural log-sum-exp over all tokens that a row sees
};

/// Tokens of one layer whose K and V are in the host store now.
struct OffloadedRows {
  std::int64_t layer = 0;
  TokenRange tokens;  ///< their slots in the store
  const HostKvStore& host;
  const at::Tensor& keys;      ///< [G, rows, D] on the device, where they came from
  std::int64_t first_row = 0;  ///< of `keys`: tokens.begin
  const ResidentCache& resident;
};

/// One KV head's row that took the place of another token on the host. Those of a token come layer
/// by layer, in each KV head by KV head, before those of the next one.
struct ReplacedRow {
  std::int64_t layer = 0;
  std::int64_t kv_head = 0;
  std::int64_t slot = 0;           ///< in the store
  const void* host_key = nullptr;  ///< [D], on the host
  const ResidentCache& resident;
  std::int64_t resident_slot = 0;  ///< where its keys of all layers lie there
};

class KvPart {
 public:
  KvPart() = default;
  KvPart(const KvPart&) = default;
  KvPart& operator=(const KvPart&) = default;
  virtual ~KvPart() = default;

  /// What must be done to restore it; unless overridden it is kept as it is.
  virtual PartState state() const { return {.from_keys = false, .saved = true}; }

  // While a prompt is read, per layer and chunk, before on_offload of the same chunk.
  /// What on_prefill needs; asked once per request.
  virtual PrefillWeights prefill_weights() const { return PrefillWeights::kNone; }
  virtual void on_prefill(std::int64_t /*layer*/,
                          std::int64_t /*kv_head*/,
                          const PrefillAttention& /*attention*/) {}
  virtual void on_prompt_rows(const PromptRows& /*rows*/) {}

  /// Before each decode step, and once after the prompt: no host job is in flight. `host` is null
  /// if nothing ever leaves the device.
  virtual void before_step(std::int64_t /*num_offloaded*/, const HostKvStore* /*host*/) {}
  /// Tokens moved to the host.
  virtual void on_offload(const OffloadedRows& /*rows*/) {}
  /// The host was full.
  virtual void on_replace(const ReplacedRow& /*row*/) {}
  /// The device chose the tokens in these slots for the layer's job, which is done; not if it
  /// failed.
  virtual void on_fetch(std::int64_t /*layer*/,
                        std::int64_t /*kv_head*/,
                        std::span<const std::int32_t> /*slots*/) {}

  /// Whether on_decode is called; asked in every layer. Layer by layer, right after each on a CPU
  /// device; else after the last one, before end_step().
  virtual bool wants_decode_weights() const { return false; }
  virtual void on_decode(std::int64_t /*layer*/,
                         std::int64_t /*kv_head*/,
                         const DecodeAttention& /*attention*/) {}
  virtual void end_step() {}
};

}  // namespace hybridgen
