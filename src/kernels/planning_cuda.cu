// SPDX-License-Identifier: Apache-2.0
// Guessed logits of partial keys, and how many of them are near the best.
#include "kernels/cuda_math.h"
#include "kernels/cuda_pieces.h"
#include "kernels/cuda_planning.h"

namespace hybridgen::kernels {

namespace {

struct LargerOrNan {
  __device__ float operator()(float a, float b) const { return b > a || b != b ? b : a; }
};

// ---- Guessed logits ----

constexpr int kBlockTokens = 32;  // tokens of a block of keys, one a lane
constexpr int kRows = 4;          // queries that share a reading of the keys
constexpr int kColumns = 128;     // of the queries in shared memory at a time

/// A warp takes a block of keys; what all warps need of the queries lies in shared memory.
template <typename T>
__global__ void guess_kernel(GuessLogitsArgs args) {
  DEVICE_SHARED(float4, shared_queries, kColumns);
  static_assert(kRows == 4, "a float4 per column");
  const std::int64_t group = blockIdx.y;
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t token =
      blockIdx.x * static_cast<std::int64_t>(kThreads) + thread;  // a warp's 32 are a block of keys
  const bool has_keys = token / kBlockTokens * kBlockTokens < args.tokens;
  const T* queries = static_cast<const T*>(args.queries) + group * args.query_group_stride;
  const T* keys = static_cast<const T*>(args.keys) + group * args.key_group_stride +
                  token / kBlockTokens * args.key_block_stride + token % kBlockTokens;
  float* as_floats = reinterpret_cast<float*>(shared_queries);

  float largest = -INFINITY;
  for (std::int64_t first_row = 0; first_row < args.num_queries; first_row += kRows) {
    float sums[kRows] = {};
    for (std::int64_t first = 0; first < args.width; first += kColumns) {
      const int columns = static_cast<int>(min(args.width - first, std::int64_t{kColumns}));
      for (int i = thread; i < columns * kRows; i += kThreads) {
        const std::int64_t row = first_row + i % kRows;
        as_floats[i] = row < args.num_queries
                           ? to_float(queries[row * args.query_stride + first + i / kRows])
                           : 0.0F;
      }
      __syncthreads();
      for (int c = 0; has_keys && c < columns; ++c) {
        const float key = to_float(keys[(first + c) * args.key_column_stride]);
        const float4 query = shared_queries[c];
        sums[0] = fmaf(query.x, key, sums[0]);
        sums[1] = fmaf(query.y, key, sums[1]);
        sums[2] = fmaf(query.z, key, sums[2]);
        sums[3] = fmaf(query.w, key, sums[3]);
      }
      __syncthreads();
    }
    for (int r = 0; r < kRows; ++r) {
      if (first_row + r < args.num_queries) largest = LargerOrNan{}(largest, sums[r]);
    }
  }
  if (token < args.tokens) args.guesses[group * args.tokens + token] = largest;
}

// ---- How many are near the best ----

/// Of count_near_cuda's work memory; the largest guess of every piece follows.
struct NearCounts {
  unsigned long long near;
  unsigned finished_blocks;
};

__global__ void piece_maxima_kernel(CountNearArgs args,
                                    std::int64_t piece_tokens,
                                    NearCounts* counts,
                                    float* maxima) {
  DEVICE_SHARED(float, shared, kWarps);
  const float* row = args.guesses + blockIdx.y * args.tokens;
  const Range piece = piece_of_block(piece_tokens, args.tokens);
  float largest = -INFINITY;
  for (std::int64_t t = piece.begin + threadIdx.x; t < piece.end; t += kThreads) {
    largest = LargerOrNan{}(largest, row[t]);
  }
  largest = combine_block(largest, shared, LargerOrNan{});
  if (threadIdx.x != 0) return;
  maxima[blockIdx.y * gridDim.x + blockIdx.x] = largest;
  if (blockIdx.x == 0 && blockIdx.y == 0) *counts = {0, 0};
}

__global__ void count_near_kernel(CountNearArgs args,
                                  std::int64_t piece_tokens,
                                  NearCounts* counts,
                                  const float* maxima) {
  const float* row = args.guesses + blockIdx.y * args.tokens;
  const Range piece = piece_of_block(piece_tokens, args.tokens);
  float largest = -INFINITY;
  for (unsigned p = 0; p < gridDim.x; ++p) {
    largest = LargerOrNan{}(largest, maxima[blockIdx.y * gridDim.x + p]);
  }
  const float bound = largest - args.alpha;
  unsigned near = 0;
  for (std::int64_t t = piece.begin + threadIdx.x; t < piece.end; t += kThreads) {
    near += row[t] > bound ? 1U : 0U;
  }
  near = prefix_of_block(near).total;
  if (threadIdx.x != 0) return;
  atomicAdd(&counts->near, near);
  __threadfence();
  if (atomicAdd(&counts->finished_blocks, 1U) + 1 != gridDim.x * gridDim.y) return;
  // The last block to come here sees what all others added.
  __threadfence();
  const auto mean = static_cast<std::int64_t>(atomicAdd(&counts->near, 0ULL) / gridDim.y);
  *args.count = max(std::int64_t{1}, min(mean, args.most));
}

}  // namespace

void guess_logits_cuda(const GuessLogitsArgs& args, void* stream) {
  if (args.groups <= 0 || args.tokens <= 0) return;
  const dim3 grid(static_cast<unsigned>((args.tokens + kThreads - 1) / kThreads),
                  static_cast<unsigned>(args.groups));
  with_type_of(args.dtype, [&]<typename T>(T* /*type*/) {
    launch(guess_kernel<T>, grid, kThreads, 0, static_cast<cudaStream_t>(stream), args);
  });
  check_launch("guess_logits_cuda");
}

std::size_t count_near_workspace_bytes(std::int64_t groups, std::int64_t tokens) {
  const auto pieces = static_cast<std::size_t>(groups * pieces_of(tokens).count);
  return sizeof(NearCounts) + pieces * sizeof(float);
}

void count_near_cuda(const CountNearArgs& args, void* stream) {
  if (args.groups <= 0 || args.tokens <= 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  const Pieces pieces = pieces_of(args.tokens);
  const dim3 grid = grid_of(pieces, args.groups);
  auto* counts = static_cast<NearCounts*>(args.workspace);
  auto* maxima = reinterpret_cast<float*>(counts + 1);
  launch(piece_maxima_kernel, grid, kThreads, 0, cuda_stream, args, pieces.tokens, counts, maxima);
  launch(count_near_kernel, grid, kThreads, 0, cuda_stream, args, pieces.tokens, counts, maxima);
  check_launch("count_near_cuda");
}

}  // namespace hybridgen::kernels
