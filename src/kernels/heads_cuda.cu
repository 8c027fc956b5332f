// SPDX-License-Identifier: Apache-2.0
// Query and key heads between their projection and attention. As many lanes of a warp share a head
// as have a pack of its first half to read; each lane holds the same numbers of the second half,
// with which they are turned.
#include "kernels/cuda_packs.h"
#include "kernels/cuda_rows.h"

namespace hybridgen::kernels {

namespace {

/// What a group of lanes does: to one head, and with the value beside it.
template <typename T>
struct Head {
  T* x = nullptr;  ///< null: no head
  const T* norm = nullptr;
  bool turns = false;
  std::int64_t row = 0;
  T* key_slot = nullptr;  ///< null: the head stays where it is alone
  const T* value = nullptr;
  T* value_slot = nullptr;  ///< null: no value is copied
};

/// Of a row, query heads come first, then KV heads.
__host__ __device__ inline std::int64_t heads_of_row(const HeadsOfRows& args) {
  return (args.query != nullptr ? args.num_heads : 0) +
         (args.key != nullptr || args.value != nullptr ? args.num_kv_heads : 0);
}

template <typename T>
__device__ Head<T> kv_head_at(const HeadsOfRows& args, std::int64_t row, std::int64_t head) {
  Head<T> at;
  at.row = row;
  const std::int64_t within = head * args.head_dim;
  if (args.key != nullptr) {
    at.x = static_cast<T*>(args.key) + row * args.key_stride + within;
    at.norm = static_cast<const T*>(args.key_norm);
    at.turns = args.rotate_key && args.cosines != nullptr;
  }
  if (args.step_rows == nullptr || args.step_rows[row].num_resident <= 0) return at;
  const StepRow& step = args.step_rows[row];
  const std::int64_t slot = step.first_slot + step.num_resident - 1;
  const std::int64_t place =
      args.layer * step.layer_stride + head * step.head_stride + slot * args.head_dim;
  if (args.key != nullptr) at.key_slot = static_cast<T*>(step.keys) + place;
  if (args.value != nullptr) {
    at.value = static_cast<const T*>(args.value) + row * args.value_stride + within;
    at.value_slot = static_cast<T*>(step.values) + place;
  }
  return at;
}

template <typename T>
__device__ Head<T> head_at(const HeadsOfRows& args, std::int64_t row, std::int64_t head) {
  Head<T> at;
  at.row = row;
  at.turns = args.cosines != nullptr;
  if (args.query != nullptr) {
    if (head < args.num_heads) {
      at.x = static_cast<T*>(args.query) + row * args.query_stride + head * args.head_dim;
      at.norm = static_cast<const T*>(args.query_norm);
      return at;
    }
    head -= args.num_heads;
  }
  return kv_head_at<T>(args, row, head);
}

/// This lane's part of the sum of squares of a head.
template <unsigned kCount, typename T>
__device__ float sum_squares(const T* x, std::int64_t head_dim, unsigned lane, unsigned lanes) {
  float sum = 0.0F;
  const std::int64_t half = head_dim / 2;
  for (std::int64_t i = lane * kCount; i < half; i += lanes * kCount) {
    float first[kCount];
    float second[kCount];
    read_pack(x + i, first);
    read_pack(x + i + half, second);
    for (unsigned k = 0; k < kCount; ++k) sum += first[k] * first[k] + second[k] * second[k];
  }
  if (head_dim % 2 == 1 && lane == 0) {
    const float last = to_float(x[head_dim - 1]);
    sum += last * last;
  }
  return sum;
}

/// The numbers of a head from `i` on, normalised if there is a norm, each step rounded to T.
template <unsigned kCount, typename T>
__device__ __forceinline__ void read_normed(
    const T* x, const T* norm, float scale, std::int64_t i, float (&to)[kCount]) {
  read_pack(x + i, to);
  if (norm == nullptr) return;
  float weight[kCount];
  read_pack(norm + i, weight);
  for (unsigned k = 0; k < kCount; ++k) to[k] = round_to<T>(round_to<T>(to[k] * scale) * weight[k]);
}

template <unsigned kCount, typename T>
__device__ void finish_head(
    const HeadsOfRows& args, const Head<T>& head, float scale, unsigned lane, unsigned lanes) {
  const std::int64_t half = args.head_dim / 2;
  const std::int64_t angles = head.turns ? args.rotation_rows[head.row] * half : 0;
  for (std::int64_t i = lane * kCount; i < half; i += lanes * kCount) {
    float a[kCount];
    float b[kCount];
    read_normed(head.x, head.norm, scale, i, a);
    read_normed(head.x, head.norm, scale, i + half, b);
    if (head.turns) turn(args.cosines + angles + i, args.sines + angles + i, a, b);
    write_pack(head.x + i, a);
    write_pack(head.x + i + half, b);
    if (head.key_slot != nullptr) {
      write_anywhere(head.key_slot + i, a);
      write_anywhere(head.key_slot + i + half, b);
    }
  }
  if (args.head_dim % 2 == 1 && lane == 0) {  // the last one of an odd number is not turned
    float last[1];
    read_normed(head.x, head.norm, scale, args.head_dim - 1, last);
    write_pack(head.x + args.head_dim - 1, last);
    if (head.key_slot != nullptr) write_pack(head.key_slot + args.head_dim - 1, last);
  }
}

template <typename T, unsigned kCount>
__global__ void place_heads_kernel(const HeadsOfRows args, unsigned lanes) {
  const std::int64_t per_row = heads_of_row(args);
  const std::int64_t heads = args.rows * per_row;
  const unsigned lane = threadIdx.x % lanes;
  const std::int64_t of_block = blockDim.x / lanes;
  const std::int64_t step = gridDim.x * of_block;
  // Threads without a head stay: a sum takes whole warps.
  for (std::int64_t first = blockIdx.x * of_block; first < heads; first += step) {
    const std::int64_t at = first + threadIdx.x / lanes;
    Head<T> head;
    if (at < heads) head = head_at<T>(args, at / per_row, at % per_row);
    float squares = 0.0F;
    if (head.norm != nullptr) squares = sum_squares<kCount>(head.x, args.head_dim, lane, lanes);
    for (unsigned other = lanes / 2; other > 0; other /= 2) {
      squares += __shfl_xor_sync(kAllLanes, squares, static_cast<int>(other));
    }
    const float scale = 1.0F / sqrtf(squares / static_cast<float>(args.head_dim) + args.eps);
    if (head.x != nullptr) finish_head<kCount>(args, head, scale, lane, lanes);
    if (head.value_slot == nullptr) continue;
    for (std::int64_t i = lane * kCount; i < args.head_dim; i += lanes * kCount) {
      float v[kCount];
      read_pack(head.value + i, v);
      write_anywhere(head.value_slot + i, v);
    }
  }
}

}  // namespace

void place_heads_cuda(const HeadsOfRows& args, void* stream) {
  const std::int64_t heads = args.rows * heads_of_row(args);
  if (args.rows <= 0 || heads <= 0 || args.head_dim <= 0) return;
  const std::int64_t half = args.head_dim / 2;
  // Halves of whole packs make heads of whole packs; an odd number of dimensions is no such head.
  const bool in_packs = args.head_dim % 2 == 0 &&
                        are_in_packs(args.dtype,
                                     {args.query,
                                      args.key,
                                      args.value,
                                      args.query_norm,
                                      args.key_norm,
                                      args.cosines,
                                      args.sines},
                                     {half, args.query_stride, args.key_stride, args.value_stride});
  with_packs_of(args.dtype, in_packs, [&]<typename T, unsigned kCount>(PackOf<T, kCount> /*pack*/) {
    const std::int64_t lanes = lanes_of_head(divide_up(args.head_dim, 2 * kCount));
    const LaunchShape shape = heads_shape(heads, lanes);
    launch(place_heads_kernel<T, kCount>,
           grid_of(shape),
           static_cast<unsigned>(shape.threads),
           0,
           static_cast<cudaStream_t>(stream),
           args,
           static_cast<unsigned>(lanes));
  });
  check_launch("place_heads_cuda");
}

}  // namespace hybridgen::kernels
