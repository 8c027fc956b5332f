// SPDX-License-Identifier: Apache-2.0
// Decode attention of a micro-batch on a CUDA device (paper §4.2.3): resident tokens and what the
// host sent are attended to in parts of 256 tokens, which one softmax then joins. Device pointers,
// sizes and a stream; no Torch. Calls enqueue on `stream` and return. CPU twins: `attend`,
// `merge_parts` and `softmax_weights` of CpuKernels.
//
// Matrices are aligned to 16 bytes; strides count elements. At most 65535 requests and KV heads.
#pragma once

#include <cstdint>

#include "hybridgen/core/types.h"
#include "kernels/decode_rows.h"

namespace hybridgen::kernels {

inline constexpr std::int64_t kMostHeadDim = 256;  ///< of a head that these kernels take

struct DecodeAttention {
  DType dtype = DType::kFloat32;  ///< of query, out, keys and values
  const void* query = nullptr;    ///< [B, H, D], unscaled; row stride query_stride
  std::int64_t query_stride = 0;
  void* out = nullptr;  ///< [B, H, D], row stride out_stride
  std::int64_t out_stride = 0;
  std::int64_t batch = 0;         ///< B
  std::int64_t num_heads = 0;     ///< H
  std::int64_t num_kv_heads = 0;  ///< G, a divisor of H
  std::int64_t head_dim = 0;      ///< D <= kMostHeadDim
  std::int64_t layer = 0;
  const StepRow* rows = nullptr;  ///< [B], on the device
  /// [B], on the device: what fetch_payloads_cuda left there; null: resident tokens only.
  const PayloadRow* payloads = nullptr;
  std::int64_t max_resident = 0;  ///< the largest n_g of the rows
  std::int64_t max_chosen = 0;    ///< the largest S of the payloads
  /// [B, H] natural log-sum-exp of all logits that merge_cuda joins, those of an attention that the
  /// host has finished included; null: unwanted.
  float* lse = nullptr;
  bool weights_only = false;  ///< neither values are read nor `out` is written
};

/// The tokens whose values sparse attention reads.
struct KeptTokens {
  const PlanRow* rows = nullptr;  ///< [B], on the device: `places` [H, most] among the older tokens
  std::int64_t max_kept = 0;      ///< the largest `most` of the rows
};

/// Step 4 of the paper's Figure 12: attention over every row's resident tokens, unnormalised, into
/// StepRow::parts; their logits into resident_logits unless that is null.
void attend_resident_cuda(const DecodeAttention& attention, void* stream);

/// Step 5, one launch: the same over the payloads' tokens; then one softmax over all tokens, out,
/// and the weights unless StepRow::weights is null. A row without any token gives out = 0; NaN
/// logits stay.
void merge_cuda(const DecodeAttention& attention, void* stream);

/// out = sums of values by StepRow::weights [H, N] that merge_cuda left, over each query head's
/// kept tokens and the newest one. Of a place before the resident tokens the value is the payload's
/// row index[h, i], with i the place's own place. Rows without weights are left as they are. One
/// launch.
void sum_kept_cuda(const DecodeAttention& attention, const KeptTokens& kept, void* stream);

/// Copies what is in use of each payload, read by the device where it lies: `copies` [B] in pinned
/// memory; payloads [B] on the device become the `to` of each. Rows with count 0 and no output
/// carry nothing.
void fetch_payloads_cuda(const PayloadCopy* copies,
                         std::int64_t batch,
                         std::int64_t num_heads,
                         std::int64_t num_kv_heads,
                         std::int64_t head_dim,
                         DType dtype,
                         PayloadRow* payloads,
                         void* stream);

}  // namespace hybridgen::kernels
