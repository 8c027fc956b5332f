// SPDX-License-Identifier: Apache-2.0
// One block per (part of 256 tokens, KV head, some of its query heads, request). A warp reads whole
// rows, 16 bytes a lane; every row of keys and values is read once for all query heads of the
// block.
#include "kernels/cpu_kernels.h"
#include "kernels/cuda_attention.h"
#include "kernels/cuda_math.h"

namespace hybridgen::kernels {

namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kPart = static_cast<int>(kPartTokens);
/// Elements of a row that a lane holds at most, of any type: 256 over 32 lanes.
constexpr int kHeld = static_cast<int>(kMostHeadDim) / kWarp;

/// How a row of D elements is spread over `lanes` lanes of a warp, in chunks of kVector.
template <int kVector>
struct Spread {
  int chunks;  ///< of a row
  int lanes;   ///< a power of two

  __device__ explicit Spread(int head_dim) : chunks(head_dim / kVector), lanes(1) {
    while (lanes < chunks && lanes < kWarp) lanes *= 2;
  }
};

/// Tokens of a part, as a block of query heads sees them.
template <typename T>
struct Tokens {
  int count = 0;
  const T* keys = nullptr;  ///< row t at t * key_stride; null: logits are given
  std::int64_t key_stride = 0;
  const T* values = nullptr;
  std::int64_t value_stride = 0;
  const float* given = nullptr;         ///< of the block's first head; rows given_stride apart
  const std::int32_t* index = nullptr;  ///< rows of keys and values for each head; null: 0 to count
  std::int64_t given_stride = 0;        ///< of `given` and `index`
  float* logits = nullptr;              ///< written unless null
  std::int64_t logits_stride = 0;
};

/// Where a part's results go, of the block's first head.
struct PartPlace {
  float* out;
  float* peaks;
  float* sums;
};

template <int kVector, typename T>
__device__ __forceinline__ void load_chunk(const T* from, float* to) {
  if constexpr (kVector == 1) {
    to[0] = to_float(from[0]);
  } else {
    const uint4 bits = *reinterpret_cast<const uint4*>(from);
    T values[sizeof(bits) / sizeof(T)];
    memcpy(values, &bits, sizeof(values));
    DEVICE_UNROLL for (int i = 0; i < kVector; ++i) to[i] = to_float(values[i]);
  }
}

/// What of a row this lane holds, as float32; zeros beyond its end.
template <int kVector, typename T>
__device__ __forceinline__ void load_row(const T* row,
                                         const Spread<kVector>& spread,
                                         int lane,
                                         float (&held)[kHeld]) {
  DEVICE_UNROLL for (int i = 0; i < kHeld / kVector; ++i) {
    const int chunk = lane + i * spread.lanes;
    if (chunk < spread.chunks) {
      load_chunk<kVector>(row + chunk * kVector, held + i * kVector);
    } else {
      DEVICE_UNROLL for (int v = 0; v < kVector; ++v) held[i * kVector + v] = 0.0F;
    }
  }
}

/// logits[r][t] of the block's heads. `queries` [kHeads][head_dim], scaled.
template <int kVector, int kHeads, typename T>
__device__ void score(const Tokens<T>& tokens,
                      const float* queries,
                      int head_dim,
                      int num_heads,
                      float (*logits)[kPart]) {
  const Spread<kVector> spread(head_dim);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int place = static_cast<int>(threadIdx.x) % kWarp;
  const int lane = place % spread.lanes;
  const int at_a_time = kWarp / spread.lanes;  // tokens of a warp
  float held[kHeld];
  // Heads with choices of their own read a row each.
  const int passes = tokens.index == nullptr ? 1 : num_heads;
  for (int pass = 0; pass < passes; ++pass) {
    for (int first = warp * at_a_time; first < tokens.count; first += kWarps * at_a_time) {
      const int t = first + place / spread.lanes;
      const bool is_there = t < tokens.count;
      std::int64_t row = is_there ? t : 0;
      if (tokens.index != nullptr) row = tokens.index[pass * tokens.given_stride + row];
      load_row<kVector>(tokens.keys + row * tokens.key_stride, spread, lane, held);
      DEVICE_UNROLL for (int r = 0; r < kHeads; ++r) {
        if (r >= num_heads || (tokens.index != nullptr && r != pass)) continue;
        float sum = 0.0F;
        DEVICE_UNROLL for (int i = 0; i < kHeld / kVector; ++i) {
          const int chunk = lane + i * spread.lanes;
          if (chunk >= spread.chunks) continue;
          DEVICE_UNROLL for (int v = 0; v < kVector; ++v) {
            sum = fmaf(queries[r * head_dim + chunk * kVector + v], held[i * kVector + v], sum);
          }
        }
        for (int offset = spread.lanes / 2; offset > 0; offset /= 2) {
          sum += __shfl_xor_sync(kAllLanes, sum, offset);
        }
        if (is_there && lane == 0) logits[r][t] = sum;
      }
    }
  }
}

/// Logits become exp(logit - peak), 0 beyond the last token; peaks and sums are left in the part.
template <int kHeads>
__device__ void exponentiate(int count, int num_heads, float (*logits)[kPart], PartPlace place) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int r = warp; r < num_heads; r += kWarps) {
    float peak = -INFINITY;
    for (int t = lane; t < count; t += kWarp) peak = fmaxf(peak, logits[r][t]);
    peak = combine_warp(peak, Larger{});
    // With every logit at -inf, -inf - 0 keeps the weights at 0 where -inf - -inf would give NaN.
    const float from = peak == -INFINITY ? 0.0F : peak;
    float sum = 0.0F;
    for (int t = lane; t < count; t += kWarp) {
      const float e = expf(logits[r][t] - from);
      logits[r][t] = e;
      sum += e;
    }
    sum = combine_warp(sum, Sum{});
    if (lane == 0) {
      place.peaks[r] = peak;
      place.sums[r] = sum;
    }
  }
}

/// out[r] = sum over t of logits[r][t] * V[t]. `sums` [kWarps][kHeads][head_dim].
template <int kVector, int kHeads, typename T>
__device__ void aggregate(const Tokens<T>& tokens,
                          int head_dim,
                          int num_heads,
                          const float (*weights)[kPart],
                          float* sums,
                          float* out) {
  const Spread<kVector> spread(head_dim);
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  const int place = static_cast<int>(threadIdx.x) % kWarp;
  const int lane = place % spread.lanes;
  const int at_a_time = kWarp / spread.lanes;
  float held[kHeld];
  float own[static_cast<unsigned>(kHeads * kHeld)];
  DEVICE_UNROLL for (int r = 0; r < kHeads; ++r) {
    DEVICE_UNROLL for (int i = 0; i < kHeld; ++i) own[r * kHeld + i] = 0.0F;
  }
  const int passes = tokens.index == nullptr ? 1 : num_heads;
  for (int pass = 0; pass < passes; ++pass) {
    for (int t = warp * at_a_time + place / spread.lanes; t < tokens.count;
         t += kWarps * at_a_time) {
      const std::int64_t row =
          tokens.index == nullptr ? t : tokens.index[pass * tokens.given_stride + t];
      load_row<kVector>(tokens.values + row * tokens.value_stride, spread, lane, held);
      DEVICE_UNROLL for (int r = 0; r < kHeads; ++r) {
        if (r >= num_heads || (tokens.index != nullptr && r != pass)) continue;
        const float weight = weights[r][t];
        DEVICE_UNROLL for (int i = 0; i < kHeld; ++i) own[r * kHeld + i] =
            fmaf(weight, held[i], own[r * kHeld + i]);
      }
    }
  }
  DEVICE_UNROLL for (int r = 0; r < kHeads; ++r) {
    if (r >= num_heads) continue;
    DEVICE_UNROLL for (int i = 0; i < kHeld; ++i) {
      for (int offset = spread.lanes; offset < kWarp; offset *= 2) {
        own[r * kHeld + i] += __shfl_xor_sync(kAllLanes, own[r * kHeld + i], offset);
      }
      const int chunk = lane + i / kVector * spread.lanes;
      if (place < spread.lanes && chunk < spread.chunks) {
        sums[(warp * kHeads + r) * head_dim + chunk * kVector + i % kVector] = own[r * kHeld + i];
      }
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < num_heads * head_dim; i += kThreads) {
    float sum = 0.0F;
    for (int w = 0; w < kWarps; ++w) sum += sums[w * kHeads * head_dim + i];
    out[i] = sum;
  }
}

constexpr std::int64_t shared_floats(int heads, std::int64_t head_dim) {
  return heads * ((1 + kWarps) * head_dim + kPart);
}

/// Attention of the block's heads, `num_heads` <= kHeads of them, over a part.
template <int kVector, int kHeads, typename T>
__device__ void attend_part(
    const Tokens<T>& tokens, const T* query, int head_dim, int num_heads, PartPlace place) {
  DEVICE_DYNAMIC_SHARED(float, shared);
  auto* logits = reinterpret_cast<float (*)[kPart]>(shared);
  float* queries = shared + kHeads * kPart;
  float* sums = queries + kHeads * head_dim;
  const int thread = static_cast<int>(threadIdx.x);
  if (tokens.keys != nullptr) {
    const float scale = 1.0F / sqrtf(static_cast<float>(head_dim));
    for (int i = thread; i < num_heads * head_dim; i += kThreads) {
      queries[i] = to_float(query[i]) * scale;
    }
    __syncthreads();
    score<kVector, kHeads>(tokens, queries, head_dim, num_heads, logits);
  } else {
    for (int i = thread; i < num_heads * tokens.count; i += kThreads) {
      const int r = i / tokens.count;
      const int t = i % tokens.count;
      logits[r][t] = tokens.given[r * tokens.given_stride + t];
    }
  }
  __syncthreads();
  if (tokens.logits != nullptr) {
    for (int i = thread; i < num_heads * tokens.count; i += kThreads) {
      const int r = i / tokens.count;
      const int t = i % tokens.count;
      tokens.logits[r * tokens.logits_stride + t] = logits[r][t];
    }
    __syncthreads();
  }
  exponentiate<kHeads>(tokens.count, num_heads, logits, place);
  __syncthreads();
  aggregate<kVector, kHeads>(tokens, head_dim, num_heads, logits, sums, place.out);
}

__host__ __device__ constexpr std::int64_t parts_of(std::int64_t tokens) {
  return (tokens + kPart - 1) / kPart;
}

/// Parts of a request: those of resident tokens, KV head by KV head, then those of the host's.
struct Parts {
  std::int64_t resident;  ///< of a KV head
  std::int64_t host;

  __device__ Parts(const StepRow& row, const PayloadRow* payload)
      : resident(parts_of(row.num_resident)),
        host(payload == nullptr || payload->output != nullptr ? 0 : parts_of(payload->count)) {}
};

/// The request, KV head and query heads of a block, and numbers that follow from the shape.
template <typename T>
struct Block {
  std::int64_t request;
  std::int64_t kv_head;
  std::int64_t part;
  std::int64_t per_group;  ///< R
  std::int64_t first;      ///< query head within the group
  int num_heads;
  int head_dim;

  __device__ Block(const DecodeAttention& a, int heads_of_block)
      : request(blockIdx.z),
        part(blockIdx.x),
        per_group(a.num_heads / a.num_kv_heads),
        head_dim(static_cast<int>(a.head_dim)) {
    const std::int64_t tiles = (per_group + heads_of_block - 1) / heads_of_block;
    kv_head = blockIdx.y / tiles;
    first = blockIdx.y % tiles * heads_of_block;
    const std::int64_t left = per_group - first;
    num_heads = static_cast<int>(left < heads_of_block ? left : heads_of_block);
  }

  __device__ std::int64_t first_head() const { return kv_head * per_group + first; }
  __device__ const T* query(const DecodeAttention& a) const {
    return static_cast<const T*>(a.query) + request * a.query_stride + first_head() * head_dim;
  }
  __device__ PartPlace place(const StepRow& row, std::int64_t index) const {
    float* out = row.parts + index * per_group * (head_dim + 2);
    float* peaks = out + per_group * head_dim;
    return {out + first * head_dim, peaks + first, peaks + per_group + first};
  }
};

__device__ __forceinline__ int part_size(std::int64_t tokens, std::int64_t part) {
  const std::int64_t left = tokens - part * kPart;
  return static_cast<int>(left < kPart ? left : kPart);
}

template <typename T, int kVector, int kHeads>
__global__ void __launch_bounds__(kThreads) attend_resident_kernel(DecodeAttention a) {
  const Block<T> block(a, kHeads);
  const StepRow row = a.rows[block.request];
  if (block.part >= parts_of(row.num_resident)) return;
  const std::int64_t first = block.part * kPart;
  const std::int64_t head = a.layer * row.layer_stride + block.kv_head * row.head_stride;
  Tokens<T> tokens;
  tokens.count = part_size(row.num_resident, block.part);
  tokens.key_stride = block.head_dim;
  tokens.value_stride = block.head_dim;
  tokens.values =
      static_cast<const T*>(row.values) + head + (row.first_slot + first) * block.head_dim;
  tokens.keys =
      row.turned_keys == nullptr
          ? static_cast<const T*>(row.keys) + head + (row.first_slot + first) * block.head_dim
          : static_cast<const T*>(row.turned_keys) + block.kv_head * row.turned_head_stride +
                first * block.head_dim;
  if (row.resident_logits != nullptr) {
    tokens.logits = row.resident_logits + block.first_head() * row.num_resident + first;
    tokens.logits_stride = row.num_resident;
  }
  const Parts parts(row, nullptr);
  attend_part<kVector, kHeads>(tokens,
                               block.query(a),
                               block.head_dim,
                               block.num_heads,
                               block.place(row, block.kv_head * parts.resident + block.part));
}

template <typename T, int kVector, int kHeads>
__global__ void __launch_bounds__(kThreads) attend_payload_kernel(DecodeAttention a) {
  const Block<T> block(a, kHeads);
  const PayloadRow payload = a.payloads[block.request];
  const StepRow row = a.rows[block.request];
  const Parts parts(row, &payload);
  if (block.part >= parts.host) return;
  const std::int64_t first = block.part * kPart;
  const std::int64_t used =
      payload.index != nullptr ? payload.count : payload.union_sizes[block.kv_head];
  const std::int64_t rows = block.kv_head * payload.union_capacity * block.head_dim +
                            (payload.index == nullptr ? first * block.head_dim : 0);
  const std::int64_t of_heads = block.first_head() * payload.count + first;
  Tokens<T> tokens;
  // A KV head may have fewer tokens than others.
  tokens.count = used <= first ? 0 : part_size(used, block.part);
  tokens.key_stride = block.head_dim;
  tokens.value_stride = block.head_dim;
  tokens.values = static_cast<const T*>(payload.values) + rows;
  tokens.given_stride = payload.count;
  if (payload.keys != nullptr) {
    tokens.keys = static_cast<const T*>(payload.keys) + rows;
  } else {
    tokens.given = payload.logits + of_heads;
  }
  if (payload.index != nullptr) tokens.index = payload.index + of_heads;
  if (row.weights != nullptr) {
    tokens.logits_stride = row.num_resident + payload.count;
    tokens.logits = row.weights + block.first_head() * tokens.logits_stride + first;
  }
  const std::int64_t place =
      a.num_kv_heads * parts.resident + block.kv_head * parts.host + block.part;
  attend_part<kVector, kHeads>(
      tokens, block.query(a), block.head_dim, block.num_heads, block.place(row, place));
}

/// The parts of one query head, joined.
struct Joined {
  const StepRow& row;
  const PayloadRow* payload;
  Parts parts;
  std::int64_t kv_head;
  std::int64_t per_group;
  std::int64_t r;  ///< query head within the group
  std::int64_t groups;
  std::int64_t head_dim;

  __device__ std::int64_t count() const { return parts.host + parts.resident; }
  /// Part i, the host's first: in token order.
  __device__ const float* part(std::int64_t i) const {
    const std::int64_t place = i < parts.host ? groups * parts.resident + kv_head * parts.host + i
                                              : kv_head * parts.resident + i - parts.host;
    return row.parts + place * per_group * (head_dim + 2);
  }
  __device__ float peak(std::int64_t i) const { return part(i)[per_group * head_dim + r]; }
  __device__ float sum(std::int64_t i) const { return part(i)[per_group * (head_dim + 1) + r]; }
  __device__ float value(std::int64_t i, std::int64_t d) const { return part(i)[r * head_dim + d]; }
};

/// exp(peak - all), where a part without a token counts for nothing.
__device__ __forceinline__ float share_of(float peak, float all) {
  return peak == -INFINITY ? 0.0F : expf(peak - all);
}

/// Turns the logits of one head's tokens into weights.
__device__ void write_weights(const Joined& joined, std::int64_t head, float lse) {
  const StepRow& row = joined.row;
  const bool has_host = joined.parts.host > 0;
  const std::int64_t chosen = has_host ? joined.payload->count : 0;
  const std::int64_t host = !has_host ? 0
                            : joined.payload->index != nullptr
                                ? chosen
                                : joined.payload->union_sizes[joined.kv_head];
  float* weights = row.weights + head * (row.num_resident + chosen);
  const float* resident = row.resident_logits + head * row.num_resident;
  for (std::int64_t t = threadIdx.x; t < host; t += kThreads) {
    weights[t] = lse == -INFINITY ? 0.0F : expf(weights[t] - lse);
  }
  for (std::int64_t t = threadIdx.x; t < row.num_resident; t += kThreads) {
    weights[host + t] = lse == -INFINITY ? 0.0F : expf(resident[t] - lse);
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) join_kernel(DecodeAttention a) {
  DEVICE_SHARED(float, shared, kWarps);
  const std::int64_t request = blockIdx.y;
  const std::int64_t head = blockIdx.x;
  const std::int64_t per_group = a.num_heads / a.num_kv_heads;
  const StepRow row = a.rows[request];
  PayloadRow payload;
  if (a.payloads != nullptr) payload = a.payloads[request];
  const Joined joined{row,
                      &payload,
                      Parts(row, &payload),
                      head / per_group,
                      per_group,
                      head % per_group,
                      a.num_kv_heads,
                      a.head_dim};
  const std::int64_t parts = joined.count();
  float peak = -INFINITY;
  for (std::int64_t i = threadIdx.x; i < parts; i += kThreads) peak = fmaxf(peak, joined.peak(i));
  peak = combine_block(peak, shared, Larger{});
  float sum = 0.0F;
  // Every thread adds all of them in the same order.
  for (std::int64_t i = 0; i < parts; ++i) sum += joined.sum(i) * share_of(joined.peak(i), peak);
  const float lse = sum == 0.0F ? -INFINITY : peak + logf(sum);
  float others = 0.0F;  // the share of attention that the host finished
  const bool is_partial = payload.output != nullptr;
  float own = 1.0F;
  if (is_partial) {
    const float host_lse = payload.lse[head];
    const float larger = fmaxf(host_lse, lse);
    const float host_sum = share_of(host_lse, larger);
    const float own_sum = share_of(lse, larger);
    const float all = host_sum + own_sum;
    others = all == 0.0F ? 0.0F : host_sum / all;
    own = all == 0.0F ? 0.0F : own_sum / all;
  }
  const float inverse = sum == 0.0F ? 0.0F : own / sum;
  T* out = static_cast<T*>(a.out) + request * a.out_stride + head * a.head_dim;
  for (std::int64_t d = threadIdx.x; d < a.head_dim; d += kThreads) {
    float value = 0.0F;
    for (std::int64_t i = 0; i < parts; ++i) {
      value = fmaf(joined.value(i, d), share_of(joined.peak(i), peak), value);
    }
    value *= inverse;
    if (is_partial && others != 0.0F) {
      value = fmaf(
          others, to_float(static_cast<const T*>(payload.output)[head * a.head_dim + d]), value);
    }
    store(out + d, value);
  }
  if (row.weights != nullptr) write_weights(joined, head, lse);
}

template <int kHeads>
struct HeadsOfBlock {
  static constexpr int value = kHeads;
};

/// Calls launch(type, vector, heads) as the shape likes it.
template <typename Launch>
void with_shape(const DecodeAttention& a, Launch launch) {
  const std::int64_t per_group = a.num_heads / a.num_kv_heads;
  with_type_of(a.dtype, [&]<typename T>(T* /*type*/) {
    constexpr int kVector = 16 / static_cast<int>(sizeof(T));
    if (a.head_dim % kVector != 0) {
      launch.template operator()<T, 1, 1>();
    } else if (per_group == 1) {
      launch.template operator()<T, kVector, 1>();
    } else if (per_group <= 4 || a.head_dim > kMostHeadDim / 2) {
      launch.template operator()<T, kVector, 4>();
    } else {
      launch.template operator()<T, kVector, 8>();
    }
  });
}

dim3 grid_of(const DecodeAttention& a, std::int64_t tokens, int heads) {
  const std::int64_t per_group = a.num_heads / a.num_kv_heads;
  return {static_cast<unsigned>(parts_of(tokens)),
          static_cast<unsigned>(a.num_kv_heads * ((per_group + heads - 1) / heads)),
          static_cast<unsigned>(a.batch)};
}

std::size_t shared_bytes(const DecodeAttention& a, int heads) {
  return static_cast<std::size_t>(shared_floats(heads, a.head_dim)) * sizeof(float);
}

}  // namespace

void attend_resident_cuda(const DecodeAttention& a, void* stream) {
  if (a.batch <= 0 || a.max_resident <= 0) return;
  with_shape(a, [&]<typename T, int kVector, int kHeads>() {
    launch(attend_resident_kernel<T, kVector, kHeads>,
           grid_of(a, a.max_resident, kHeads),
           kThreads,
           shared_bytes(a, kHeads),
           static_cast<cudaStream_t>(stream),
           a);
  });
  check_launch("attend_resident_cuda");
}

void merge_cuda(const DecodeAttention& a, void* stream) {
  if (a.batch <= 0) return;
  if (a.payloads != nullptr && a.max_chosen > 0) {
    with_shape(a, [&]<typename T, int kVector, int kHeads>() {
      launch(attend_payload_kernel<T, kVector, kHeads>,
             grid_of(a, a.max_chosen, kHeads),
             kThreads,
             shared_bytes(a, kHeads),
             static_cast<cudaStream_t>(stream),
             a);
    });
    check_launch("merge_cuda");
  }
  const dim3 grid(static_cast<unsigned>(a.num_heads), static_cast<unsigned>(a.batch));
  with_type_of(a.dtype, [&]<typename T>(T* /*type*/) {
    launch(join_kernel<T>, grid, kThreads, 0, static_cast<cudaStream_t>(stream), a);
  });
  check_launch("merge_cuda");
}

}  // namespace hybridgen::kernels
