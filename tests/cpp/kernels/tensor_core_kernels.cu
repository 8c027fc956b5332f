// SPDX-License-Identifier: Apache-2.0
#include "tensor_core_kernels.h"

#include "kernels/cuda_tensor_core.h"

namespace hybridgen::kernels::test {

namespace {

__device__ std::uint32_t pair_of(const std::uint16_t* first, int stride) {
  return first[0] | static_cast<std::uint32_t>(first[stride]) << 16;
}

template <typename T>
__global__ void multiply(const std::uint16_t* a, const std::uint16_t* b, float* c) {
  const int lane = static_cast<int>(threadIdx.x);
  const int row = lane / 4;
  const int pair = 2 * (lane % 4);
  std::uint32_t of_a[4];
  std::uint32_t of_b[2];
  float of_c[4];
  for (int j = 0; j < 4; ++j) {
    of_a[j] = pair_of(a + (row + j % 2 * 8) * 16 + pair + j / 2 * 8, 1);
    of_c[j] = c[(row + j / 2 * 8) * 8 + pair + j % 2];
  }
  for (int j = 0; j < 2; ++j) of_b[j] = pair_of(b + (pair + j * 8) * 8 + row, 8);
  mma_16x8x16<T>(of_c, of_a, of_b);
  for (int j = 0; j < 4; ++j) c[(row + j / 2 * 8) * 8 + pair + j % 2] = of_c[j];
}

__global__ void load(const std::uint16_t* matrices, bool is_transposed, std::uint32_t* out) {
  DEVICE_SHARED(uint4, rows, 32);
  const int lane = static_cast<int>(threadIdx.x);
  rows[lane] = reinterpret_cast<const uint4*>(matrices)[lane];
  __syncwarp();
  std::uint32_t registers[4];
  if (is_transposed) {
    load_matrices_transposed(registers, &rows[lane]);
  } else {
    load_matrices(registers, &rows[lane]);
  }
  for (int j = 0; j < 4; ++j) out[lane * 4 + j] = registers[j];
}

__global__ void copy(const float* in, int pieces, int last_bytes, float* out) {
  constexpr int kStages = 3;
  DEVICE_SHARED(float4, stages, kStages);
  const auto start = [&](int piece) {
    if (piece < pieces) {
      copy_async_16(&stages[piece % kStages], in + 4 * piece, piece + 1 < pieces ? 16 : last_bytes);
    }
    commit_copies();  // of nothing behind the end, so that the count of groups stays right
  };
  for (int piece = 0; piece + 1 < kStages; ++piece) start(piece);
  for (int piece = 0; piece < pieces; ++piece) {
    start(piece + kStages - 1);
    wait_for_copies<kStages - 1>();
    reinterpret_cast<float4*>(out)[piece] = stages[piece % kStages];
  }
}

}  // namespace

void multiply_on_tensor_core(DType dtype, const void* a, const void* b, float* c) {
  const auto* of_a = static_cast<const std::uint16_t*>(a);
  const auto* of_b = static_cast<const std::uint16_t*>(b);
  if (dtype == DType::kFloat16) {
    launch(multiply<__half>, 1, 32, 0, nullptr, of_a, of_b, c);
  } else {
    launch(multiply<__nv_bfloat16>, 1, 32, 0, nullptr, of_a, of_b, c);
  }
}

void load_four_matrices(const std::uint16_t* matrices, bool is_transposed, std::uint32_t* out) {
  launch(load, 1, 32, 0, nullptr, matrices, is_transposed, out);
}

void copy_through_shared(const float* in, int pieces, int last_bytes, float* out) {
  launch(copy, 1, 1, 0, nullptr, in, pieces, last_bytes, out);
}

}  // namespace hybridgen::kernels::test
