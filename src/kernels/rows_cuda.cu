// SPDX-License-Identifier: Apache-2.0
// Norms and element-wise kernels on the device. A thread reads its own numbers again for each sweep
// over a row: they lie in the first-level cache, and what it wrote is there for it without a
// barrier.
#include "kernels/cuda_packs.h"
#include "kernels/cuda_rows.h"

namespace hybridgen::kernels {

namespace {

/// Calls `visit` with the first number of each of this thread's packs of a row.
template <unsigned kCount, typename Visit>
__device__ __forceinline__ void for_packs_of_row(std::int64_t dim, Visit visit) {
  const std::int64_t step = static_cast<std::int64_t>(blockDim.x) * kCount;
  for (std::int64_t i = static_cast<std::int64_t>(threadIdx.x) * kCount; i < dim; i += step) {
    visit(i);
  }
}

/// x += addend if there is one; the sum of the squares, or of the numbers, over this thread's x.
template <unsigned kCount, typename T>
__device__ float add_and_sum(T* x, const T* addend, std::int64_t dim, bool of_squares) {
  float sum = 0.0F;
  for_packs_of_row<kCount>(dim, [&](std::int64_t i) {
    float v[kCount];
    read_pack(x + i, v);
    if (addend != nullptr) {
      float more[kCount];
      read_pack(addend + i, more);
      for (unsigned k = 0; k < kCount; ++k) v[k] = round_to<T>(v[k] + more[k]);
      write_pack(x + i, v);
    }
    for (unsigned k = 0; k < kCount; ++k) sum += of_squares ? v[k] * v[k] : v[k];
  });
  return sum;
}

template <unsigned kCount, typename T>
__device__ float sum_squared_deviations(const T* x, std::int64_t dim, float mean) {
  float sum = 0.0F;
  for_packs_of_row<kCount>(dim, [&](std::int64_t i) {
    float v[kCount];
    read_pack(x + i, v);
    for (unsigned k = 0; k < kCount; ++k) sum = fmaf(v[k] - mean, v[k] - mean, sum);
  });
  return sum;
}

/// normed * weight + bias for a layer norm, whose `normed` are not rounded before.
template <unsigned kCount, typename T>
__device__ __forceinline__ void write_weighted(
    const float (&normed)[kCount], const void* weight, const void* bias, std::int64_t i, T* y) {
  float w[kCount];
  read_pack(static_cast<const T*>(weight) + i, w);
  float shift[kCount];
  for (unsigned k = 0; k < kCount; ++k) shift[k] = -0.0F;  // changes nothing, not even -0
  if (bias != nullptr) read_pack(static_cast<const T*>(bias) + i, shift);
  for (unsigned k = 0; k < kCount; ++k) w[k] = fmaf(normed[k], w[k], shift[k]);
  write_pack(y + i, w);
}

template <typename T, unsigned kCount>
__global__ void norm_rows_kernel(const NormRows args) {
  DEVICE_SHARED(float, shared, kMostNormThreads / kWarp);
  for (std::int64_t at = blockIdx.x; at < args.rows * args.heads; at += gridDim.x) {
    const std::int64_t row = at / args.heads;
    const std::int64_t head = at % args.heads * args.dim;
    T* x = static_cast<T*>(args.x) + row * args.x_stride + head;
    T* y = static_cast<T*>(args.y) + row * args.y_stride + head;
    T* second_y = static_cast<T*>(args.second_y) + row * args.second_y_stride + head;
    const T* addend = args.addend == nullptr
                          ? nullptr
                          : static_cast<const T*>(args.addend) + row * args.addend_stride + head;
    const auto dim = static_cast<float>(args.dim);
    float sum =
        combine_block(add_and_sum<kCount>(x, addend, args.dim, !args.is_layer_norm), shared, Sum{});
    float mean = 0.0F;
    if (args.is_layer_norm) {
      mean = sum / dim;
      sum = combine_block(sum_squared_deviations<kCount>(x, args.dim, mean), shared, Sum{});
    }
    const float scale = 1.0F / sqrtf(sum / dim + args.eps);
    for_packs_of_row<kCount>(args.dim, [&](std::int64_t i) {
      float v[kCount];
      read_pack(x + i, v);
      for (unsigned k = 0; k < kCount; ++k) {
        v[k] = (v[k] - mean) * scale;
        if (!args.is_layer_norm) v[k] = round_to<T>(v[k]);
      }
      write_weighted(v, args.weight, args.bias, i, y);
      if (args.second_y != nullptr) {
        write_weighted(v, args.second_weight, args.second_bias, i, second_y);
      }
    });
  }
}

/// Calls `visit(row, i)` for each of this thread's packs of all rows.
template <unsigned kCount, typename Visit>
__device__ __forceinline__ void for_packs(std::int64_t rows, std::int64_t dim, Visit visit) {
  const std::int64_t threads = blockDim.x;
  const std::int64_t first = (blockIdx.x * threads + threadIdx.x) * kCount;
  const std::int64_t step = gridDim.x * threads * kCount;
  for (std::int64_t row = blockIdx.y; row < rows; row += gridDim.y) {
    for (std::int64_t i = first; i < dim; i += step) visit(row, i);
  }
}

template <typename T, unsigned kCount>
__global__ void silu_gate_kernel(const SiluGateArgs args) {
  for_packs<kCount>(args.rows, args.dim, [&](std::int64_t row, std::int64_t i) {
    float gate[kCount];
    float up[kCount];
    read_pack(static_cast<const T*>(args.gate) + row * args.gate_stride + i, gate);
    read_pack(static_cast<const T*>(args.up) + row * args.up_stride + i, up);
    for (unsigned k = 0; k < kCount; ++k) {
      // The CPU's exponential ends there, too; an infinite gate then stays infinite.
      const float e = expf(fminf(-gate[k], 88.0F));
      up[k] *= gate[k] / (1.0F + e);
    }
    write_pack(static_cast<T*>(args.y) + row * args.y_stride + i, up);
  });
}

template <typename T, unsigned kCount>
__global__ void relu_kernel(T* x, std::int64_t count) {
  for_packs<kCount>(1, count, [&](std::int64_t /*row*/, std::int64_t i) {
    float v[kCount];
    read_pack(x + i, v);
    for (unsigned k = 0; k < kCount; ++k) v[k] = 0.0F > v[k] ? 0.0F : v[k];  // NaN stays
    write_pack(x + i, v);
  });
}

template <typename T, unsigned kCount>
__global__ void add_kernel(T* y, const T* x, std::int64_t count) {
  for_packs<kCount>(1, count, [&](std::int64_t /*row*/, std::int64_t i) {
    float v[kCount];
    float more[kCount];
    read_pack(y + i, v);
    read_pack(x + i, more);
    for (unsigned k = 0; k < kCount; ++k) v[k] += more[k];
    write_pack(y + i, v);
  });
}

template <typename T, unsigned kCount>
__global__ void select_rows_kernel(const SelectRows args) {
  for_packs<kCount>(args.rows, args.dim, [&](std::int64_t row, std::int64_t i) {
    T* y = static_cast<T*>(args.y) + row * args.y_stride + i;
    const std::int64_t id = args.ids[row] + args.offset;
    float v[kCount];
    read_pack(static_cast<const T*>(args.table) + id * args.dim + i, v);
    write_pack(y, v);
  });
}

/// Launches `kernel` for rows of `dim` numbers in packs of kCount.
template <unsigned kCount, typename Kernel, typename... Arguments>
void launch_for_packs(
    std::int64_t rows, std::int64_t dim, void* stream, Kernel kernel, Arguments... arguments) {
  const LaunchShape shape = elementwise_shape(rows, divide_up(dim, kCount));
  launch(kernel,
         grid_of(shape),
         static_cast<unsigned>(shape.threads),
         0,
         static_cast<cudaStream_t>(stream),
         arguments...);
}

}  // namespace

void norm_rows_cuda(const NormRows& args, void* stream) {
  if (args.rows <= 0 || args.heads <= 0 || args.dim <= 0) return;
  const bool in_packs = are_in_packs(
      args.dtype,
      {args.x,
       args.addend,
       args.weight,
       args.bias,
       args.y,
       args.second_y,
       args.second_weight,
       args.second_bias},
      {args.dim, args.x_stride, args.addend_stride, args.y_stride, args.second_y_stride});
  with_packs_of(args.dtype, in_packs, [&]<typename T, unsigned kCount>(PackOf<T, kCount> /*pack*/) {
    const LaunchShape shape = norm_shape(args.rows * args.heads, divide_up(args.dim, kCount));
    launch(norm_rows_kernel<T, kCount>,
           grid_of(shape),
           static_cast<unsigned>(shape.threads),
           0,
           static_cast<cudaStream_t>(stream),
           args);
  });
  check_launch("norm_rows_cuda");
}

void silu_gate_cuda(const SiluGateArgs& args, void* stream) {
  if (args.rows <= 0 || args.dim <= 0) return;
  const bool in_packs = are_in_packs(args.dtype,
                                     {args.gate, args.up, args.y},
                                     {args.dim, args.gate_stride, args.up_stride, args.y_stride});
  with_packs_of(args.dtype, in_packs, [&]<typename T, unsigned kCount>(PackOf<T, kCount> /*pack*/) {
    launch_for_packs<kCount>(args.rows, args.dim, stream, silu_gate_kernel<T, kCount>, args);
  });
  check_launch("silu_gate_cuda");
}

void relu_cuda(DType dtype, void* x, std::int64_t count, void* stream) {
  if (count <= 0) return;
  const bool in_packs = are_in_packs(dtype, {x}, {count});
  with_packs_of(dtype, in_packs, [&]<typename T, unsigned kCount>(PackOf<T, kCount> /*pack*/) {
    launch_for_packs<kCount>(1, count, stream, relu_kernel<T, kCount>, static_cast<T*>(x), count);
  });
  check_launch("relu_cuda");
}

void add_cuda(DType dtype, void* y, const void* x, std::int64_t count, void* stream) {
  if (count <= 0) return;
  const bool in_packs = are_in_packs(dtype, {y, x}, {count});
  with_packs_of(dtype, in_packs, [&]<typename T, unsigned kCount>(PackOf<T, kCount> /*pack*/) {
    launch_for_packs<kCount>(1,
                             count,
                             stream,
                             add_kernel<T, kCount>,
                             static_cast<T*>(y),
                             static_cast<const T*>(x),
                             count);
  });
  check_launch("add_cuda");
}

void select_rows_cuda(const SelectRows& args, void* stream) {
  if (args.rows <= 0 || args.dim <= 0) return;
  const bool in_packs = are_in_packs(args.dtype, {args.table, args.y}, {args.dim, args.y_stride});
  with_packs_of(args.dtype, in_packs, [&]<typename T, unsigned kCount>(PackOf<T, kCount> /*pack*/) {
    launch_for_packs<kCount>(args.rows, args.dim, stream, select_rows_kernel<T, kCount>, args);
  });
  check_launch("select_rows_cuda");
}

}  // namespace hybridgen::kernels
