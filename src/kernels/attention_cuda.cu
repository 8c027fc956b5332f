// SPDX-License-Identifier: Apache-2.0
// One block per (part of 256 tokens, KV head, some of its query heads, request). A warp reads whole
// rows, 16 bytes a lane; every row of keys and values is read once for all query heads of the
// block.
#include "kernels/cuda_attend_part.h"
#include "kernels/cuda_attention.h"
#include "kernels/cuda_math.h"

namespace hybridgen::kernels {

namespace {

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
__global__ void __launch_bounds__(kAttendThreads) attend_resident_kernel(DecodeAttention a) {
  const Block<T> block(a, kHeads);
  const StepRow row = a.rows[block.request];
  if (block.part >= parts_of(row.num_resident)) return;
  const std::int64_t first = block.part * kPart;
  const std::int64_t head = a.layer * row.layer_stride + block.kv_head * row.head_stride;
  Tokens<T> tokens;
  tokens.count = part_size(row.num_resident, block.part);
  tokens.key_stride = block.head_dim;
  tokens.value_stride = block.head_dim;
  if (!a.weights_only) {
    tokens.values =
        static_cast<const T*>(row.values) + head + (row.first_slot + first) * block.head_dim;
  }
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

/// Attention of the block's heads over a part of the payload's tokens.
template <typename T, int kVector, int kHeads>
__device__ void attend_payload(const DecodeAttention& a,
                               const Block<T>& block,
                               const StepRow& row,
                               const PayloadRow& payload,
                               const Parts& parts) {
  const std::int64_t first = block.part * kPart;
  const std::int64_t used =
      payload.index != nullptr ? payload.count : payload.union_sizes[block.kv_head];
  const std::int64_t rows = block.kv_head * payload.union_capacity * block.head_dim +
                            (payload.index == nullptr ? first * block.head_dim : 0);
  const std::int64_t of_heads =
      block.kv_head * block.per_group * payload.room + block.first * used + first;
  Tokens<T> tokens;
  // A KV head may have fewer tokens than others.
  tokens.count = used <= first ? 0 : part_size(used, block.part);
  tokens.key_stride = block.head_dim;
  tokens.value_stride = block.head_dim;
  if (!a.weights_only) tokens.values = static_cast<const T*>(payload.values) + rows;
  tokens.given_stride = used;
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
  // From the cache that all blocks share: another one has just written them.
  __device__ float peak(std::int64_t i) const { return __ldcg(part(i) + per_group * head_dim + r); }
  __device__ float sum(std::int64_t i) const {
    return __ldcg(part(i) + per_group * (head_dim + 1) + r);
  }
  __device__ float value(std::int64_t i, std::int64_t d) const {
    return __ldcg(part(i) + r * head_dim + d);
  }
};

/// exp(peak - all), where a part without a token counts for nothing.
__device__ __forceinline__ float share_of(float peak, float all) {
  return peak == -INFINITY ? 0.0F : expf(peak - all);
}

/// What the tokens here and those that the host has finished have of a head's softmax.
struct Shares {
  float own = 1.0F;
  float host = 0.0F;
  float lse = 0.0F;  ///< of both
};

__device__ Shares shares_of(const PayloadRow& payload, std::int64_t head, float lse) {
  if (payload.output == nullptr) return {1.0F, 0.0F, lse};
  const float host_lse = payload.lse[head];
  const float larger = fmaxf(host_lse, lse);
  const float host = share_of(host_lse, larger);
  const float own = share_of(lse, larger);
  const float all = host + own;
  if (all == 0.0F) return {0.0F, 0.0F, -INFINITY};
  return {own / all, host / all, larger + logf(all)};
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
  for (std::int64_t t = threadIdx.x; t < host; t += kAttendThreads) {
    weights[t] = lse == -INFINITY ? 0.0F : expf(__ldcg(weights + t) - lse);
  }
  for (std::int64_t t = threadIdx.x; t < row.num_resident; t += kAttendThreads) {
    weights[host + t] = lse == -INFINITY ? 0.0F : expf(resident[t] - lse);
  }
}

/// One softmax over all parts of a query head.
template <typename T>
__device__ void join(const DecodeAttention& a,
                     std::int64_t request,
                     std::int64_t head,
                     const Joined& joined,
                     float* shared) {
  const StepRow& row = joined.row;
  const std::int64_t parts = joined.count();
  float peak = -INFINITY;
  for (std::int64_t i = threadIdx.x; i < parts; i += kAttendThreads)
    peak = fmaxf(peak, joined.peak(i));
  peak = combine_block(peak, shared, Larger{});
  float sum = 0.0F;
  // Every thread adds all of them in the same order.
  for (std::int64_t i = 0; i < parts; ++i) sum += joined.sum(i) * share_of(joined.peak(i), peak);
  const float lse = sum == 0.0F ? -INFINITY : peak + logf(sum);
  const Shares shares = shares_of(*joined.payload, head, lse);
  if (a.lse != nullptr && threadIdx.x == 0) {
    a.lse[request * a.num_heads + head] = shares.lse;
  }
  if (row.weights != nullptr) write_weights(joined, head, lse);
  if (a.weights_only) return;
  const float inverse = sum == 0.0F ? 0.0F : shares.own / sum;
  T* out = static_cast<T*>(a.out) + request * a.out_stride + head * a.head_dim;
  const T* output = static_cast<const T*>(joined.payload->output) + head * a.head_dim;
  for (std::int64_t d = threadIdx.x; d < a.head_dim; d += kAttendThreads) {
    float value = 0.0F;
    for (std::int64_t i = 0; i < parts; ++i) {
      value = fmaf(joined.value(i, d), share_of(joined.peak(i), peak), value);
    }
    value *= inverse;
    if (shares.host != 0.0F) value = fmaf(shares.host, to_float(output[d]), value);
    store(out + d, value);
  }
}

/// The payload's parts; whoever finishes the last of a request's KV head's then joins all of them.
template <typename T, int kVector, int kHeads>
__global__ void __launch_bounds__(kAttendThreads) merge_kernel(DecodeAttention a) {
  DEVICE_SHARED(float, shared, kAttendWarps);
  DEVICE_SHARED(int, is_last, 1);
  const Block<T> block(a, kHeads);
  const StepRow row = a.rows[block.request];
  PayloadRow payload;
  if (a.payloads != nullptr) payload = a.payloads[block.request];
  const Parts parts(row, &payload);
  const std::int64_t blocks = parts.host > 0 ? parts.host : 1;
  if (block.part >= blocks) return;
  if (parts.host > 0) {
    attend_payload<T, kVector, kHeads>(a, block, row, payload, parts);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      // It is 0 again for the next merge once the last one has come.
      unsigned* finished = row.finished + blockIdx.y;
      is_last[0] = atomicAdd(finished, 1U) + 1 == static_cast<unsigned>(blocks) ? 1 : 0;
      if (is_last[0] != 0) *finished = 0;
    }
    __syncthreads();
    if (is_last[0] == 0) return;
    __threadfence();
  }
  for (int r = 0; r < block.num_heads; ++r) {
    const Joined joined{row,
                        &payload,
                        parts,
                        block.kv_head,
                        block.per_group,
                        block.first + r,
                        a.num_kv_heads,
                        a.head_dim};
    join<T>(a, block.request, block.first_head() + r, joined, shared);
  }
}

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
           kAttendThreads,
           shared_bytes(a, kHeads),
           static_cast<cudaStream_t>(stream),
           a);
  });
  check_launch("attend_resident_cuda");
}

void merge_cuda(const DecodeAttention& a, void* stream) {
  if (a.batch <= 0) return;
  const std::int64_t tokens = a.payloads == nullptr || a.max_chosen <= 0 ? 1 : a.max_chosen;
  with_shape(a, [&]<typename T, int kVector, int kHeads>() {
    launch(merge_kernel<T, kVector, kHeads>,
           grid_of(a, tokens, kHeads),
           kAttendThreads,
           shared_bytes(a, kHeads),
           static_cast<cudaStream_t>(stream),
           a);
  });
  check_launch("merge_cuda");
}

}  // namespace hybridgen::kernels
