// SPDX-License-Identifier: Apache-2.0
// What the device itself plans: guessed logits of partial keys, how many tokens are near the best,
// and the places of the largest. Rules as in cuda_kernels.h. All results are the same bits in every
// run. Work memory is the caller's, aligned to 16 bytes, with any contents; calls on one stream may
// share it.
#pragma once

#include <cstddef>
#include <cstdint>

#include "hybridgen/core/types.h"

namespace hybridgen::kernels {

/// guesses[g, t] = max over r of queries[g, r] . key t of KV head g, sums in float32. NaN if a
/// product is NaN. Strides are in elements.
struct GuessLogitsArgs {
  DType dtype = DType::kFloat32;  ///< of queries and keys
  std::int64_t groups = 0;        ///< G, at most 65535
  std::int64_t num_queries = 0;   ///< R >= 1 per KV head
  std::int64_t width = 0;         ///< W
  std::int64_t tokens = 0;        ///< N
  const void* queries = nullptr;  ///< [G, R, W], the last dimension contiguous
  std::int64_t query_group_stride = 0;
  std::int64_t query_stride = 0;
  const void* keys = nullptr;  ///< [G, ceil(N / 32), W, 32], the last dimension contiguous
  std::int64_t key_group_stride = 0;
  std::int64_t key_block_stride = 0;
  std::int64_t key_column_stride = 0;
  float* guesses = nullptr;  ///< [G, N] contiguous
};

void guess_logits_cuda(const GuessLogitsArgs& args, void* stream);

/// InfiniGen's fetch count (DeviceOps::count_near): per row the number of guesses above the
/// row's largest less alpha, as float32 computes it, its mean over the rows without its fraction,
/// and of that what lies in [1, most]. A row with a NaN counts as 0.
struct CountNearArgs {
  const float* guesses = nullptr;  ///< [G, N] contiguous, N >= 1
  std::int64_t groups = 0;         ///< G, at most 65535
  std::int64_t tokens = 0;         ///< N
  float alpha = 0.0F;
  std::int64_t most = 1;
  std::int64_t* count = nullptr;  ///< one number on the device, written
  void* workspace = nullptr;      ///< count_near_workspace_bytes
};

std::size_t count_near_workspace_bytes(std::int64_t groups, std::int64_t tokens);
/// Two launches.
void count_near_cuda(const CountNearArgs& args, void* stream);

/// Places of the `count` largest of every row of scores, ascending, then N in what is left of
/// [G, most]; of equal scores the earlier place, and -0 equals 0. If any score of any row is NaN,
/// all places are N.
struct LargestPositionsArgs {
  const float* scores = nullptr;  ///< [G, N] contiguous
  std::int64_t groups = 0;        ///< G, at most 65535
  std::int64_t tokens = 0;        ///< N < 2^31
  std::int64_t most = 0;          ///< <= N
  std::int64_t count = 0;         ///< in [1, most]; ignored where there is a device_count
  const std::int64_t* device_count = nullptr;  ///< one number there, taken into [1, most]; or null
  std::int32_t* positions = nullptr;           ///< [G, most] contiguous, written
  void* workspace = nullptr;                   ///< largest_positions_workspace_bytes
};

std::size_t largest_positions_workspace_bytes(std::int64_t groups, std::int64_t tokens);
/// Five launches.
void largest_positions_cuda(const LargestPositionsArgs& args, void* stream);

}  // namespace hybridgen::kernels
