// SPDX-License-Identifier: Apache-2.0
// Reads what a store holds of one (layer, KV head), in whatever layout, precision and tier it lies
// there: logits of its keys, and rows of both as the model computes them. What lies on the disk is
// read first, of which whoever calls must let go afterwards (KvDisk::release).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "kvcache/host_kv_store.h"
#include "kvcache/stored_rows.h"

namespace hybridgen {

class StoredHead {
 public:
  /// Memory for queries on their way to codes, kept from call to call.
  struct Scratch {
    std::vector<float> queries;    ///< [R, D rounded up]
    std::vector<float> starts;     ///< [R]
    std::vector<float> constants;  ///< [R]
  };
  /// Queries of the KV head, scaled: [num_queries, D] contiguous.
  struct Queries {
    const float* data = nullptr;
    std::int64_t count = 0;
  };

  /// Refers to both.
  StoredHead(const kernels::CpuKernels& kernels,
             const HostKvStore& store,
             std::int64_t layer,
             std::int64_t kv_head);

  /// Whether keys and values both lie in rows as the model computed them.
  bool has_rows() const {
    return !has_key_codes() && !has_value_codes() && store_.shape().key_layout == KeyLayout::kRows;
  }
  /// Bytes that are read of a token's key and of its value.
  std::int64_t key_bytes() const;
  std::int64_t value_bytes() const;

  /// logits[r, t - tokens.begin] = query r . K[t], rows `stride` apart.
  void scan(TokenRange tokens,
            Queries queries,
            float* logits,
            std::int64_t stride,
            Scratch& scratch) const;
  /// logits[r, j] = query r . K[positions[j]]; here and below positions ascend.
  void score(std::span<const std::int32_t> positions,
             Queries queries,
             float* logits,
             std::int64_t stride,
             Scratch& scratch) const;

  /// Rows [count, D] contiguous in the store's dtype, of chosen tokens or of a range.
  void keys(std::span<const std::int32_t> positions, void* out, kernels::RowReader reader) const;
  void keys(TokenRange tokens, void* out, kernels::RowReader reader) const;
  void values(std::span<const std::int32_t> positions, void* out, kernels::RowReader reader) const;
  void values(TokenRange tokens, void* out, kernels::RowReader reader) const;

  /// For who reads one side in the store itself: where it lies, of all tokens or at least of chosen
  /// ones, once it has memory, whatever tier it is in. All calls above do so themselves.
  StoredRows bring(KvSide side) const;
  StoredRows bring(KvSide side, std::span<const std::int32_t> positions) const;

 private:
  bool has_key_codes() const { return store_.shape().key_precision != KvPrecision::kFull; }
  bool has_value_codes() const { return store_.shape().value_precision != KvPrecision::kFull; }
  std::int64_t full_bytes() const;
  /// Codes of the segment that holds `token`, of which `origin` is where token 0's would lie.
  ShadowKeyView codes_at(const std::byte* origin, std::int64_t token) const;
  kernels::StoredLogitsArgs code_args(const ShadowKeyView& keys,
                                      Queries queries,
                                      float* logits,
                                      std::int64_t stride,
                                      Scratch& scratch) const;
  /// Rows of what codes hold.
  void restore_keys(const std::byte* origin, TokenRange tokens, std::byte* out) const;
  static kernels::RowLogitsArgs row_args(const RowView& keys,
                                         Queries queries,
                                         float* logits,
                                         std::int64_t stride);
  void scan_codes(const StoredRows& rows,
                  TokenRange tokens,
                  Queries queries,
                  float* logits,
                  std::int64_t stride,
                  Scratch& scratch) const;
  void score_codes(const StoredRows& rows,
                   std::span<const std::int32_t> positions,
                   Queries queries,
                   float* logits,
                   std::int64_t stride,
                   Scratch& scratch) const;

  const kernels::CpuKernels& kernels_;
  const HostKvStore& store_;
  std::int64_t layer_;
  std::int64_t kv_head_;
};

/// Copies K and V rows of `tokens` of all KV heads out, as [G][count][D] contiguous each; null: not
/// those. ConfigError if outside the capacity.
void read_tokens(const kernels::CpuKernels& kernels,
                 const HostKvStore& store,
                 std::int64_t layer,
                 TokenRange tokens,
                 void* keys,
                 void* values);

}  // namespace hybridgen
