// SPDX-License-Identifier: Apache-2.0
// What a launch of our CUDA kernels reads, writes and computes, from shapes and from counts that
// the host knows: each number that is in use once, whatever lies beside it in the same buffers.
// What several blocks of one launch read is in the caches by then, and counts once.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <span>

#include "device/device_ops.h"
#include "emulated/cost_model.h"

namespace hybridgen {

/// One operation per number; tensors that are not there are undefined.
emulated::TimedOperation elementwise_cost(std::initializer_list<at::Tensor> reads,
                                          std::initializer_list<at::Tensor> writes);

/// y = x weight^T + bias, dense by LibTorch or coded by coded_linear_cuda, which reads all codes
/// for every 16 rows and multiplies in float32.
emulated::TimedOperation product_cost(const at::Tensor& x,
                                      const LinearWeight& weight,
                                      const at::Tensor& bias,
                                      const at::Tensor& y);

/// place_heads_cuda: queries, and keys unless nothing is done to them, in place; with a batch, key
/// and value into the slots of its items.
emulated::TimedOperation place_heads_cost(const LayerHeads& heads, const AttentionBatch* batch);

/// turn_keys_cuda: a table's row for each token, which its KV heads share.
emulated::TimedOperation turn_keys_cost(std::span<const AttentionItem> items);

/// move_rows_cuda of so many (layer, KV head).
emulated::TimedOperation move_rows_cost(const RowMoves& moves, std::int64_t count);

/// fetch_payloads_cuda: what is in use of each payload, and its description.
emulated::TimedOperation fetch_cost(const PayloadBatch& batch);

/// attend_resident_cuda: keys and values once for all query heads, or keys alone; a result for
/// every part of 256 tokens.
emulated::TimedOperation resident_cost(const at::Tensor& query,
                                       std::span<const AttentionItem> items,
                                       bool weights_only = false);

/// merge_cuda: the payload's rows in use once, then all parts.
emulated::TimedOperation merge_cost(const at::Tensor& query, std::span<const AttentionItem> items);

/// merge_cuda that is asked for weights alone: the payload's keys once, peaks and sums of all
/// parts.
emulated::TimedOperation weigh_cost(const at::Tensor& query, std::span<const AttentionItem> items);

/// sum_kept_cuda: rows of values once for all query heads, of resident ones at most as many as
/// there are; a weight and a place for each of a query head's. out [B, H, D].
emulated::TimedOperation sum_kept_cost(std::span<const AttentionItem> items,
                                       std::span<const PlanItem> kept,
                                       const at::Tensor& out);

/// guess_logits_cuda: its first launch, that turns the items' queries, and the one that multiplies
/// them with whole blocks of keys. query [B, H, D].
emulated::TimedOperation turn_queries_cost(const at::Tensor& query,
                                           std::span<const PlanItem> items);
emulated::TimedOperation guess_cost(const at::Tensor& query, std::span<const PlanItem> items);

/// A launch of count_near_cuda or largest_positions_cuda: all guesses of the items that it is for.
emulated::TimedOperation count_cost(std::span<const PlanItem> items);
emulated::TimedOperation rank_cost(std::span<const PlanItem> items);

}  // namespace hybridgen
