// SPDX-License-Identifier: Apache-2.0
// Guessed logits of partial keys, and how many of them are near the best.
#include <algorithm>

#include "kernels/cuda_math.h"
#include "kernels/cuda_packs.h"
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

/// A block takes the queries of a KV head; the work memory gets them turned, [G, R, W] in float32.
template <typename T>
__global__ void turn_queries_kernel(PlanTokens args) {
  const PlanRow& row = args.rows[blockIdx.y];
  if (row.num_tokens <= 0) return;
  const std::int64_t group = blockIdx.x;
  const T* queries = static_cast<const T*>(args.query) + blockIdx.y * args.query_stride +
                     group * args.num_queries * args.head_dim;
  const float* columns =
      row.columns + args.layer * row.column_layer_stride + group * args.head_dim * row.width;
  const std::int64_t count = args.num_queries * row.width;
  float* turned = static_cast<float*>(row.work) + group * count;
  const float scale = 1.0F / sqrtf(static_cast<float>(args.head_dim));
  for (std::int64_t i = threadIdx.x; i < count; i += kThreads) {
    const T* query = queries + i / row.width * args.head_dim;
    const float* column = columns + i % row.width;
    float sum = 0.0F;
    for (std::int64_t d = 0; d < args.head_dim; ++d) {
      sum = fmaf(to_float(query[d]) * scale, column[d * row.width], sum);
    }
    turned[i] = round_to<T>(sum);
  }
}

/// A warp takes a block of keys; what all warps need of the queries lies in shared memory.
template <typename T>
__global__ void guess_kernel(PlanTokens args) {
  DEVICE_SHARED(float4, shared_queries, kColumns);
  static_assert(kRows == 4, "a float4 per column");
  const PlanRow& row = args.rows[blockIdx.z];
  const std::int64_t first_token = blockIdx.x * static_cast<std::int64_t>(kThreads);
  if (first_token >= row.num_tokens) return;
  const std::int64_t group = blockIdx.y;
  const std::int64_t width = row.width;
  const int thread = static_cast<int>(threadIdx.x);
  const std::int64_t token = first_token + thread;  // a warp's 32 are a block of keys
  const bool has_keys = token / kBlockTokens * kBlockTokens < row.num_tokens;
  const float* queries = static_cast<const float*>(row.work) + group * args.num_queries * width;
  const T* keys = static_cast<const T*>(row.keys) + args.layer * row.key_layer_stride +
                  group * row.key_head_stride + token / kBlockTokens * width * kBlockTokens +
                  token % kBlockTokens;
  float* as_floats = reinterpret_cast<float*>(shared_queries);

  float largest = -INFINITY;
  for (std::int64_t first_row = 0; first_row < args.num_queries; first_row += kRows) {
    float sums[kRows] = {};
    for (std::int64_t first = 0; first < width; first += kColumns) {
      const int columns = static_cast<int>(min(width - first, std::int64_t{kColumns}));
      for (int i = thread; i < columns * kRows; i += kThreads) {
        const std::int64_t query = first_row + i % kRows;
        as_floats[i] = query < args.num_queries ? queries[query * width + first + i / kRows] : 0.0F;
      }
      __syncthreads();
      for (int c = 0; has_keys && c < columns; ++c) {
        const float key = to_float(keys[(first + c) * kBlockTokens]);
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
  if (token < row.num_tokens) row.guesses[group * row.guess_stride + token] = largest;
}

std::size_t guess_work_bytes(std::int64_t groups, std::int64_t num_queries, std::int64_t width) {
  return static_cast<std::size_t>(groups * num_queries * width) * sizeof(float);
}

// ---- How many are near the best ----

/// Of count_near_cuda's work memory; the largest guess of every piece follows.
struct NearCounts {
  unsigned long long near;
  unsigned finished_blocks;
};

std::size_t near_work_bytes(std::int64_t groups, std::int64_t tokens) {
  const auto pieces = static_cast<std::size_t>(groups * pieces_of(tokens).count);
  return sizeof(NearCounts) + pieces * sizeof(float);
}

/// The part of a request that a block works on.
struct NearPiece {
  Pieces pieces;
  Range tokens;
  const float* guesses;  ///< of the KV head
  NearCounts* counts;
  float* maxima;  ///< [pieces] of the KV head
};

/// Whether there is any for this block.
__device__ bool find_piece(const PlanRow& row, NearPiece& piece) {
  if (row.num_tokens <= 0 || row.count == nullptr) return false;
  piece.pieces = pieces_of(row.num_tokens);
  if (blockIdx.x >= piece.pieces.count) return false;
  piece.tokens = piece_of_block(piece.pieces, row.num_tokens);
  piece.guesses = row.guesses + blockIdx.y * row.guess_stride;
  piece.counts = static_cast<NearCounts*>(row.work);
  piece.maxima = reinterpret_cast<float*>(piece.counts + 1) + blockIdx.y * piece.pieces.count;
  return true;
}

__global__ void piece_maxima_kernel(PlanTokens args) {
  DEVICE_SHARED(float, shared, kWarps);
  NearPiece piece;
  if (!find_piece(args.rows[blockIdx.z], piece)) return;
  float largest = -INFINITY;
  for (std::int64_t t = piece.tokens.begin + threadIdx.x; t < piece.tokens.end; t += kThreads) {
    largest = LargerOrNan{}(largest, piece.guesses[t]);
  }
  largest = combine_block(largest, shared, LargerOrNan{});
  if (threadIdx.x != 0) return;
  piece.maxima[blockIdx.x] = largest;
  if (blockIdx.x == 0 && blockIdx.y == 0) *piece.counts = {0, 0};
}

__global__ void count_near_kernel(PlanTokens args) {
  const PlanRow& row = args.rows[blockIdx.z];
  NearPiece piece;
  if (!find_piece(row, piece)) return;
  float largest = -INFINITY;
  for (std::int64_t p = 0; p < piece.pieces.count; ++p) {
    largest = LargerOrNan{}(largest, piece.maxima[p]);
  }
  const float bound = largest - row.alpha;
  unsigned near = 0;
  for (std::int64_t t = piece.tokens.begin + threadIdx.x; t < piece.tokens.end; t += kThreads) {
    near += piece.guesses[t] > bound ? 1U : 0U;
  }
  near = prefix_of_block(near).total;
  if (threadIdx.x != 0) return;
  atomicAdd(&piece.counts->near, near);
  __threadfence();
  if (atomicAdd(&piece.counts->finished_blocks, 1U) + 1 != piece.pieces.count * args.groups) return;
  // The last block to come here sees what all others added.
  __threadfence();
  const auto mean = static_cast<std::int64_t>(atomicAdd(&piece.counts->near, 0ULL) /
                                              static_cast<unsigned long long>(args.groups));
  *row.count = max(std::int64_t{1}, min(mean, row.most));
}

}  // namespace

std::size_t plan_work_bytes(std::int64_t groups,
                            std::int64_t num_queries,
                            std::int64_t width,
                            std::int64_t tokens) {
  if (tokens <= 0) return 0;
  const std::size_t bytes = std::max({guess_work_bytes(groups, num_queries, width),
                                      near_work_bytes(groups, tokens),
                                      largest_work_bytes(groups, tokens)});
  return (bytes + 15) / 16 * 16;
}

void guess_logits_cuda(const PlanTokens& args, void* stream) {
  if (args.batch <= 0 || args.groups <= 0 || args.max_tokens <= 0) return;
  const dim3 turning(static_cast<unsigned>(args.groups), static_cast<unsigned>(args.batch));
  const dim3 guessing(static_cast<unsigned>((args.max_tokens + kThreads - 1) / kThreads),
                      static_cast<unsigned>(args.groups),
                      static_cast<unsigned>(args.batch));
  with_type_of(args.dtype, [&]<typename T>(T* /*type*/) {
    const auto cuda_stream = static_cast<cudaStream_t>(stream);
    launch(turn_queries_kernel<T>, turning, kThreads, 0, cuda_stream, args);
    launch(guess_kernel<T>, guessing, kThreads, 0, cuda_stream, args);
  });
  check_launch("guess_logits_cuda");
}

void count_near_cuda(const PlanTokens& args, void* stream) {
  if (args.batch <= 0 || args.groups <= 0 || args.max_tokens <= 0) return;
  const auto cuda_stream = static_cast<cudaStream_t>(stream);
  launch(piece_maxima_kernel, grid_of(args), kThreads, 0, cuda_stream, args);
  launch(count_near_kernel, grid_of(args), kThreads, 0, cuda_stream, args);
  check_launch("count_near_cuda");
}

}  // namespace hybridgen::kernels
