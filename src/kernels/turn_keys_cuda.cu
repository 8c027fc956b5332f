// SPDX-License-Identifier: Apache-2.0
// Keys as attention reads them where tokens stand at their places among the retained ones: as many
// lanes of a warp share a key as have a pack of its first half to read.
#include "kernels/cuda_packs.h"
#include "kernels/cuda_resident.h"

namespace hybridgen::kernels {

namespace {

template <unsigned kCount, typename T>
__device__ void turn_key(const TurnKeys& args,
                         const T* from,
                         std::int64_t angles,
                         T* to,
                         unsigned lane,
                         unsigned lanes) {
  const std::int64_t half = args.head_dim / 2;
  for (std::int64_t i = lane * kCount; i < half; i += lanes * kCount) {
    float a[kCount];
    float b[kCount];
    read_anywhere(from + i, a);
    read_anywhere(from + i + half, b);
    turn(args.cosines + angles + i, args.sines + angles + i, a, b);
    write_anywhere(to + i, a);
    write_anywhere(to + i + half, b);
  }
  // The last one of an odd number is not turned.
  if (args.head_dim % 2 == 1 && lane == 0) to[args.head_dim - 1] = from[args.head_dim - 1];
}

template <typename T, unsigned kCount>
__global__ void turn_keys_kernel(const TurnKeys args, unsigned lanes) {
  const std::int64_t heads = args.batch * args.num_kv_heads;
  const std::int64_t keys = heads * args.max_resident;
  const unsigned lane = threadIdx.x % lanes;
  const std::int64_t of_block = blockDim.x / lanes;
  const std::int64_t step = gridDim.x * of_block;
  for (std::int64_t at = blockIdx.x * of_block + threadIdx.x / lanes; at < keys; at += step) {
    const std::int64_t token = at % args.max_resident;
    const std::int64_t head = at / args.max_resident % args.num_kv_heads;
    const StepRow& row = args.rows[at / args.max_resident / args.num_kv_heads];
    if (row.turned_keys == nullptr || token >= row.num_resident) continue;
    const std::int64_t places = row.place_rows[args.layer * args.num_kv_heads + head];
    const std::int64_t place = row.places[places * row.place_stride + token];
    const T* from = static_cast<const T*>(row.keys) + args.layer * row.layer_stride +
                    head * row.head_stride + (row.first_slot + token) * args.head_dim;
    T* to =
        static_cast<T*>(row.turned_keys) + head * row.turned_head_stride + token * args.head_dim;
    turn_key<kCount>(args, from, place * (args.head_dim / 2), to, lane, lanes);
  }
}

}  // namespace

void turn_keys_cuda(const TurnKeys& args, void* stream) {
  const std::int64_t keys = args.batch * args.num_kv_heads * args.max_resident;
  if (keys <= 0 || args.head_dim <= 0) return;
  // Halves of whole packs make keys of whole packs; an odd number of dimensions is no such key.
  const bool in_packs = args.head_dim % 2 == 0 &&
                        are_in_packs(args.dtype, {args.cosines, args.sines}, {args.head_dim / 2});
  with_packs_of(args.dtype, in_packs, [&]<typename T, unsigned kCount>(PackOf<T, kCount> /*pack*/) {
    const std::int64_t lanes = lanes_of_head(divide_up(args.head_dim, 2 * kCount));
    const LaunchShape shape = heads_shape(keys, lanes);
    launch(turn_keys_kernel<T, kCount>,
           grid_of(shape),
           static_cast<unsigned>(shape.threads),
           0,
           static_cast<cudaStream_t>(stream),
           args,
           static_cast<unsigned>(lanes));
  });
  check_launch("turn_keys_cuda");
}

}  // namespace hybridgen::kernels
