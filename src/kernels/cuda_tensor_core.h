// SPDX-License-Identifier: Apache-2.0
// The PTX that our kernels use, one function an instruction. The kernel emulator of the tests
// carries out the same functions without PTX (docs/cuda.md). Compute capability 8.0 and above.
//
// Registers of 16-bit elements hold two each, the one of the lower index in the lower half.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <type_traits>

#include "kernels/cuda_launch.h"

namespace hybridgen::kernels {

/// C += A B for one warp: A [16, 16], B [16, 8], C [16, 8]; T is __half or __nv_bfloat16. Of lane
/// l, with q = 2 (l % 4): a[0] is A[l / 4, q..q+1], a[1] A[l / 4 + 8, q..q+1], a[2] and a[3] the
/// same at q + 8; b[0] is B[q..q+1, l / 4], b[1] the same at q + 8; c[0..1] is C[l / 4, q..q+1],
/// c[2..3] C[l / 4 + 8, q..q+1]. Products are exact; how the sum is rounded is the device's affair.
/// All 32 lanes call it.
template <typename T>
__device__ __forceinline__ void mma_16x8x16(float (&c)[4],
                                            const std::uint32_t (&a)[4],
                                            const std::uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, __half> || std::is_same_v<T, __nv_bfloat16>);
#if defined(__CUDA_ARCH__)
  if constexpr (std::is_same_v<T, __half>) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  } else {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  }
#elif !defined(__CUDACC__)
  cuda_emulator::mma_16x8x16<T>(c, a, b);
#endif
}

/// Four 8 x 8 matrices of 16-bit elements from shared memory for one warp. Lane l gives the address
/// of row l % 8 of matrix l / 8, eight elements at a multiple of 16 bytes; to[j] becomes elements
/// 2 (l % 4) and the next one of row l / 4 of matrix j. All 32 lanes call it.
__device__ __forceinline__ void load_matrices(std::uint32_t (&to)[4], const void* row) {
#if defined(__CUDA_ARCH__)
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
#elif !defined(__CUDACC__)
  cuda_emulator::load_matrices(to, row, /*is_transposed=*/false);
#endif
}

/// The same, with the matrices transposed on the way: of column l / 4.
__device__ __forceinline__ void load_matrices_transposed(std::uint32_t (&to)[4], const void* row) {
#if defined(__CUDA_ARCH__)
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
               : "r"(address)
               : "memory");
#elif !defined(__CUDACC__)
  cuda_emulator::load_matrices(to, row, /*is_transposed=*/true);
#endif
}

/// Starts to copy 16 bytes from global to shared memory, both at multiples of 16: the first `bytes`
/// (0 to 16) are read, the rest becomes zero. Done when a wait_for_copies of this thread says so.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, int bytes = 16) {
#if defined(__CUDA_ARCH__)
  const auto address = static_cast<std::uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(address),
               "l"(__cvta_generic_to_global(global)),
               "r"(bytes)
               : "memory");
#elif !defined(__CUDACC__)
  cuda_emulator::copy_async_16(shared, global, bytes);
#endif
}

/// Ends a group of copies: all that this thread started since the last one.
__device__ __forceinline__ void commit_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#elif !defined(__CUDACC__)
  cuda_emulator::commit_copies();
#endif
}

/// Waits until at most the kPending newest groups of this thread are unfinished. Other threads see
/// the copies after a barrier behind it.
template <int kPending>
__device__ __forceinline__ void wait_for_copies() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
#elif !defined(__CUDACC__)
  cuda_emulator::wait_for_copies(kPending);
#endif
}

}  // namespace hybridgen::kernels
