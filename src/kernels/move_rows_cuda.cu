// SPDX-License-Identifier: Apache-2.0
// Moves of a whole step: some lanes of a warp for each KV head of each layer and request. Nobody
// reads or writes another's rows.
#include "kernels/cuda_packs.h"
#include "kernels/cuda_resident.h"

namespace hybridgen::kernels {

namespace {

template <typename T, unsigned kCount>
__device__ void copy_row(const T* from, T* to, std::int64_t dim, unsigned lane, unsigned lanes) {
  for (std::int64_t i = lane * kCount; i < dim; i += lanes * kCount) {
    if (begins_a_pack(from + i) && begins_a_pack(to + i)) {
      *reinterpret_cast<Pack<T, kCount>*>(to + i) =
          *reinterpret_cast<const Pack<T, kCount>*>(from + i);
    } else {
      for (unsigned k = 0; k < kCount; ++k) to[i + k] = from[i + k];
    }
  }
}

template <typename T, unsigned kCount>
__global__ void move_rows_kernel(const MoveRows args, unsigned lanes) {
  const std::int64_t of_row = args.num_layers * args.num_kv_heads;
  const std::int64_t heads = args.batch * of_row;
  const unsigned lane = threadIdx.x % lanes;
  const std::int64_t of_block = blockDim.x / lanes;
  const std::int64_t step = gridDim.x * of_block;
  for (std::int64_t at = blockIdx.x * of_block + threadIdx.x / lanes; at < heads; at += step) {
    const std::int64_t slot = args.slots[at];
    if (slot < 0) continue;
    const StepRow& row = args.rows[at / of_row];
    const std::int64_t layer = at % of_row / args.num_kv_heads;
    const std::int64_t head = layer * row.layer_stride + at % args.num_kv_heads * row.head_stride;
    const std::int64_t from = head + (row.first_slot + row.num_resident - 1) * args.head_dim;
    const std::int64_t to = head + slot * args.head_dim;
    T* keys = static_cast<T*>(row.keys);
    T* values = static_cast<T*>(row.values);
    copy_row<T, kCount>(keys + from, keys + to, args.head_dim, lane, lanes);
    copy_row<T, kCount>(values + from, values + to, args.head_dim, lane, lanes);
  }
}

}  // namespace

void move_rows_cuda(const MoveRows& args, void* stream) {
  const std::int64_t heads = args.batch * args.num_layers * args.num_kv_heads;
  if (heads <= 0 || args.head_dim <= 0) return;
  const bool in_packs = are_in_packs(args.dtype, {}, {args.head_dim});
  with_packs_of(args.dtype, in_packs, [&]<typename T, unsigned kCount>(PackOf<T, kCount> /*pack*/) {
    const std::int64_t lanes = lanes_of_head(divide_up(args.head_dim, kCount));
    const LaunchShape shape = heads_shape(heads, lanes);
    launch(move_rows_kernel<T, kCount>,
           grid_of(shape),
           static_cast<unsigned>(shape.threads),
           0,
           static_cast<cudaStream_t>(stream),
           args,
           static_cast<unsigned>(lanes));
  });
  check_launch("move_rows_cuda");
}

}  // namespace hybridgen::kernels
