// SPDX-License-Identifier: Apache-2.0
// Payloads of a micro-batch cross the link in one launch: the device reads the host's pinned memory
// itself, and only what is in use. Some blocks per matrix are enough to fill the link.
#include <algorithm>

#include "kernels/cuda_attention.h"
#include "kernels/cuda_math.h"

namespace hybridgen::kernels {

namespace {

constexpr int kThreads = 256;
constexpr std::int64_t kMostBlocksPerMatrix = 8;
constexpr std::int64_t kBlocks = 64;  // more would only wait for the link, in the way of others

/// Copies by elements of T from byte `done` on, as far as both ends are aligned for it; returns how
/// many bytes are done then.
template <typename T>
__device__ std::int64_t copy_by(const void* from, void* to, std::int64_t done, std::int64_t bytes) {
  const bool is_aligned =
      (reinterpret_cast<std::uintptr_t>(from) | reinterpret_cast<std::uintptr_t>(to)) % sizeof(T) ==
      0;
  if (!is_aligned) return done;
  constexpr std::int64_t kSize = sizeof(T);
  const std::int64_t first = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const std::int64_t step = static_cast<std::int64_t>(gridDim.x) * kThreads;
  for (std::int64_t i = done / kSize + first; i < bytes / kSize; i += step) {
    static_cast<T*>(to)[i] = static_cast<const T*>(from)[i];
  }
  return bytes / kSize * kSize;
}

/// This block's and its siblings' share of a copy. All sizes are multiples of an element of 2
/// bytes.
__device__ void copy_bytes(const void* from, void* to, std::int64_t bytes) {
  std::int64_t done = copy_by<uint4>(from, to, 0, bytes);
  done = copy_by<unsigned>(from, to, done, bytes);
  copy_by<unsigned short>(from, to, done, bytes);
}

__global__ void fetch_kernel(const PayloadCopy* copies,
                             std::int64_t num_heads,
                             std::int64_t num_kv_heads,
                             std::int64_t row_bytes,
                             PayloadRow* payloads) {
  // Over the link once for all threads.
  constexpr unsigned kWords = sizeof(PayloadCopy) / sizeof(std::int64_t);
  DEVICE_SHARED(std::int64_t, words, kWords);
  if (threadIdx.x < kWords) {
    const auto* bytes = reinterpret_cast<const char*>(copies + blockIdx.z);
    memcpy(&words[threadIdx.x], bytes + threadIdx.x * sizeof(std::int64_t), sizeof(std::int64_t));
  }
  __syncthreads();
  PayloadCopy row;
  memcpy(static_cast<void*>(&row), &words[0], sizeof(row));
  const PayloadRow& from = row.from;
  const PayloadRow& to = row.to;
  const std::int64_t matrix = blockIdx.y;
  if (matrix < num_kv_heads) {
    if (from.count == 0) return;
    const std::int64_t first = matrix * from.union_capacity * row_bytes;
    const std::int64_t bytes = from.union_sizes[matrix] * row_bytes;
    const auto copy_rows = [&](const void* source, const void* target) {
      if (source != nullptr) {
        copy_bytes(static_cast<const char*>(source) + first,
                   static_cast<char*>(const_cast<void*>(target)) + first,
                   bytes);
      }
    };
    copy_rows(from.keys, to.keys);
    copy_rows(from.values, to.values);
    if (from.logits != nullptr && from.index == nullptr) {
      const std::int64_t per_group = num_heads / num_kv_heads;
      const std::int64_t place = matrix * per_group * from.room;
      copy_bytes(from.logits + place,
                 const_cast<float*>(to.logits) + place,
                 per_group * from.union_sizes[matrix] * static_cast<std::int64_t>(sizeof(float)));
    }
    return;
  }
  if (blockIdx.x == 0 && threadIdx.x == 0) payloads[blockIdx.z] = to;
  const auto copy = [&](const auto* source, const auto* target, std::int64_t bytes) {
    if (source != nullptr)
      copy_bytes(source, const_cast<void*>(static_cast<const void*>(target)), bytes);
  };
  if (from.index != nullptr) {  // no gaps between heads
    const std::int64_t chosen = num_heads * from.count;
    copy(from.logits, to.logits, chosen * static_cast<std::int64_t>(sizeof(float)));
    copy(from.index, to.index, chosen * static_cast<std::int64_t>(sizeof(std::int32_t)));
  }
  copy(from.union_sizes,
       to.union_sizes,
       num_kv_heads * static_cast<std::int64_t>(sizeof(std::int64_t)));
  copy(from.output, to.output, num_heads * row_bytes);
  copy(from.lse, to.lse, num_heads * static_cast<std::int64_t>(sizeof(float)));
}

}  // namespace

void fetch_payloads_cuda(const PayloadCopy* copies,
                         std::int64_t batch,
                         std::int64_t num_heads,
                         std::int64_t num_kv_heads,
                         std::int64_t head_dim,
                         DType dtype,
                         PayloadRow* payloads,
                         void* stream) {
  if (batch <= 0) return;
  const std::int64_t per_matrix =
      std::clamp<std::int64_t>(kBlocks / (batch * (num_kv_heads + 1)), 1, kMostBlocksPerMatrix);
  const dim3 grid(static_cast<unsigned>(per_matrix),
                  static_cast<unsigned>(num_kv_heads + 1),
                  static_cast<unsigned>(batch));
  launch(fetch_kernel,
         grid,
         kThreads,
         0,
         static_cast<cudaStream_t>(stream),
         copies,
         num_heads,
         num_kv_heads,
         head_dim * static_cast<std::int64_t>(size_of(dtype)),
         payloads);
  check_launch("fetch_payloads_cuda");
}

}  // namespace hybridgen::kernels
