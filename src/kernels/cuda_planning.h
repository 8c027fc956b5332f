// SPDX-License-Identifier: Apache-2.0
// What the device itself plans, for all requests of a micro-batch at a time: guessed logits of
// partial keys, how many tokens are near the best, and the places of the largest. Rules as in
// cuda_kernels.h. All results are the same bits in every run. The three calls of a layer follow
// each other on one stream and share the rows' work memory.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hybridgen/core/types.h"
#include "kernels/decode_rows.h"

namespace hybridgen::kernels {

struct PlanTokens {
  DType dtype = DType::kFloat32;  ///< of queries and keys
  const PlanRow* rows = nullptr;  ///< [batch] on the device
  std::int64_t batch = 0;         ///< at most 65535
  std::int64_t groups = 0;        ///< G, at most 65535
  std::int64_t num_queries = 0;   ///< R >= 1 per KV head
  std::int64_t head_dim = 0;      ///< D
  std::int64_t layer = 0;
  const void* query = nullptr;  ///< [batch, G R, D], row stride query_stride; unscaled
  std::int64_t query_stride = 0;
  std::int64_t max_tokens = 0;  ///< N of the row with the most, < 2^31
};

/// Bytes of PlanRow::work for a row of up to so many tokens; a multiple of 16.
std::size_t plan_work_bytes(std::int64_t groups,
                            std::int64_t num_queries,
                            std::int64_t width,
                            std::int64_t tokens);

/// guesses[g, t] = max over r of turned query r of KV head g . key t, sums in float32. NaN if a
/// product is NaN. A turned query is query / sqrt(D) times the columns, rounded to the keys' type.
/// Two launches.
void guess_logits_cuda(const PlanTokens& args, void* stream);

/// InfiniGen's fetch count, of rows with a `count`: per KV head the number of guesses above the
/// head's largest less alpha, as float32 computes it, its mean over the heads without its fraction,
/// and of that what lies in [1, most]. A head with a NaN counts as 0. Two launches.
void count_near_cuda(const PlanTokens& args, void* stream);

/// Places of the `count` largest guesses of every KV head, ascending, then N in what is left of
/// [G, most]; of equal guesses the earlier place unless the row says otherwise, and -0 equals 0. If
/// any guess of the row is NaN, all its places are N. Five launches.
void largest_positions_cuda(const PlanTokens& args, void* stream);

}  // namespace hybridgen::kernels
