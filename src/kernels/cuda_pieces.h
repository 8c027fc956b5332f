// SPDX-License-Identifier: Apache-2.0
// Rows of scores cut into pieces, one block each, of as many rows as there are KV heads (grid y)
// for every request (grid z). Pieces tell each other only integers, whose sums do not depend on an
// order, and only from launch to launch. For .cu files alone.
#pragma once

#include "kernels/cuda_math.h"
#include "kernels/cuda_planning.h"

namespace hybridgen::kernels {

inline constexpr int kThreads = 256;
inline constexpr int kWarps = kThreads / kWarp;
/// Of a row at most: every block reads what all pieces of its row counted. Fewer for short rows, in
/// pieces of this length.
inline constexpr std::int64_t kMostPieces = 32;
inline constexpr std::int64_t kPieceTokens = 2048;

struct Pieces {
  std::int64_t count;  ///< of a row
  std::int64_t
      tokens;  ///< of a piece, whole tiles of kThreads; the last ones may be short or empty
};

__host__ __device__ inline Pieces pieces_of(std::int64_t tokens) {
  const std::int64_t wanted = (tokens + kPieceTokens - 1) / kPieceTokens;
  const std::int64_t count = wanted < kMostPieces ? wanted : kMostPieces;
  const std::int64_t tiles = (tokens + kThreads - 1) / kThreads;
  return {count, (tiles + count - 1) / count * kThreads};
}

/// For the request with the most tokens; blocks beyond a request's own pieces have nothing to do.
inline dim3 grid_of(const PlanTokens& args) {
  return {static_cast<unsigned>(pieces_of(args.max_tokens).count),
          static_cast<unsigned>(args.groups),
          static_cast<unsigned>(args.batch)};
}

/// A block's share of a row: tokens [begin, end).
struct Range {
  std::int64_t begin;
  std::int64_t end;
};

__device__ inline Range piece_of_block(const Pieces& pieces, std::int64_t tokens) {
  const std::int64_t begin = blockIdx.x * pieces.tokens;
  return {begin, min(begin + pieces.tokens, tokens)};
}

struct Prefix {
  unsigned before;  ///< sum over the threads of lower numbers
  unsigned total;   ///< over all
};

/// Two barriers, the last one behind all reads.
__device__ inline Prefix prefix_of_block(unsigned value) {
  DEVICE_SHARED(unsigned, sums, kWarps);
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  unsigned sum = value;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const unsigned other = __shfl_up_sync(kAllLanes, sum, static_cast<unsigned>(offset));
    if (lane >= offset) sum += other;
  }
  if (lane == kWarp - 1) sums[warp] = sum;
  __syncthreads();
  Prefix prefix{sum - value, 0};
  for (int w = 0; w < kWarps; ++w) {
    if (w < warp) prefix.before += sums[w];
    prefix.total += sums[w];
  }
  __syncthreads();
  return prefix;
}

/// Bytes of PlanRow::work that largest_positions_cuda takes.
std::size_t largest_work_bytes(std::int64_t groups, std::int64_t tokens);

}  // namespace hybridgen::kernels
