// SPDX-License-Identifier: Apache-2.0
// Kernels with one fault each, beside what is right. All work on one warp, or on kThreads of a
// block.
#pragma once

#include <cstdint>

#include "kernels/cuda_launch.h"
#include "kernels/cuda_tensor_core.h"

namespace hybridgen::kernels::test {

inline constexpr int kThreads = 64;
inline constexpr int kLanes = 32;

inline int thread() { return static_cast<int>(threadIdx.x); }

// ---- Barriers ----

/// out[i] = in[i + 1], through shared memory.
inline __global__ void neighbour(const float* in, float* out, bool has_barrier) {
  DEVICE_SHARED(float, values, kThreads);
  values[thread()] = in[thread()];
  if (has_barrier) __syncthreads();
  out[thread()] = values[(thread() + 1) % kThreads];
}

/// The same in a source that does not know of the emulator.
inline __global__ void neighbour_in_raw_shared(const float* in, float* out, bool has_barrier) {
  __shared__ float values[kThreads];
  values[thread()] = in[thread()];
  if (has_barrier) __syncthreads();
  out[thread()] = values[(thread() + 1) % kThreads];
}

/// out[i] = in[i + 1], in place: all must have read before one writes.
inline __global__ void shift_in_place(const float* in, float* out, bool has_barrier) {
  DEVICE_SHARED(float, values, kThreads);
  values[thread()] = in[thread()];
  __syncthreads();
  const float next = values[(thread() + 1) % kThreads];
  if (has_barrier) __syncthreads();
  values[thread()] = next;
  __syncthreads();
  out[thread()] = values[thread()];
}

/// Of a warp, thread 0 waits for all lanes, which wait at a barrier.
inline __global__ void barrier_beside_a_shuffle(float* out) {
  if (thread() == 0) {
    out[0] = __shfl_sync(0xffffffffU, 1.0F, 0);
  } else {
    __syncthreads();
  }
}

inline __global__ void two_barriers() {
  if (thread() % 2 == 0) __syncthreads();
  if (thread() % 2 == 1) __syncthreads();
}

/// Sum of 32 values in the way of devices whose warps were one thread: lanes read what others
/// write.
inline __global__ void warp_sum(const float* in, float* out, bool has_syncwarp) {
  DEVICE_SHARED(float, values, kLanes);
  values[thread()] = in[thread()];
  for (int offset = kLanes / 2; offset > 0; offset /= 2) {
    if (has_syncwarp) __syncwarp();
    const float other = thread() < offset ? values[thread() + offset] : 0.0F;
    if (has_syncwarp) __syncwarp();
    if (thread() < offset) values[thread()] += other;
  }
  if (thread() == 0) out[0] = values[0];
}

// ---- Warp operations ----

inline __global__ void shuffle_with_an_ended_lane(float* out) {
  if (thread() >= 16) return;
  out[thread()] = __shfl_xor_sync(0xffffffffU, 1.0F, 1);
}

inline __global__ void mask_without_its_caller() { __syncwarp(0xfffffffeU); }

inline __global__ void masks_that_differ() { __syncwarp(thread() == 0 ? 0xffffffffU : 0xffffU); }

inline __global__ void operations_that_differ(int* out) {
  out[thread()] = thread() % 2 == 0 ? __any_sync(0xffffffffU, 1) : __shfl_sync(0xffffffffU, 1, 0);
}

inline __global__ void shuffle_from_outside_the_mask(float* out) {
  if (thread() < 16) out[thread()] = __shfl_sync(0xffffU, 1.0F, 20);
}

// ---- Memory ----

inline __global__ void reads_what_nobody_wrote(float* out) {
  DEVICE_SHARED(float, values, kThreads);
  out[thread()] = values[thread()];
}

inline __global__ void all_write_one(int* out) { out[0] = thread(); }
inline __global__ void blocks_write_one(unsigned* out) {
  if (thread() == 0) out[0] = blockIdx.x;
}

/// `past` elements behind the end.
inline __global__ void overruns_raw_shared(float* out, int past) {
  __shared__ float values[kThreads];
  values[thread() + past] = 1.0F;
  __syncthreads();
  out[thread()] = values[thread() + past];
}
inline __global__ void overruns_shared(float* out, int past) {
  DEVICE_SHARED(float, values, kThreads);
  float* start = values;
  start[thread() + past] = 1.0F;
  __syncthreads();
  out[thread()] = start[thread() + past];
}
inline __global__ void overruns_dynamic_shared(float* out, int past) {
  DEVICE_DYNAMIC_SHARED(float, values);
  values[thread() + past] = 1.0F;
  __syncthreads();
  out[thread()] = values[thread() + past];
}
inline __global__ void overruns_global(float* out, int past) { out[thread() + past] = 1.0F; }

inline __global__ void loads_four(const float* in, float* out) {
  out[thread()] = reinterpret_cast<const float4*>(in)[0].x;
}

inline __global__ void too_much_static_shared(float* out) {
  DEVICE_SHARED(float, values, 12289);
  values[0] = 1.0F;
  out[0] = values[0];
}

// ---- cp.async ----

/// out = in, four floats a thread, through shared memory.
inline __global__ void copies_async(const float* in, float* out, bool waits) {
  DEVICE_SHARED(float4, values, kThreads);
  copy_async_16(&values[thread()], in + 4 * thread());
  commit_copies();
  if (waits) wait_for_copies<0>();
  __syncthreads();
  // Of another thread: its wait and the barrier are both needed.
  const int other = (thread() + 1) % kThreads;
  reinterpret_cast<float4*>(out)[other] = values[other];
}

inline __global__ void copies_async_from_an_odd_place(const float* in, float* out) {
  DEVICE_SHARED(float4, values, kThreads);
  copy_async_16(&values[thread()], in + 1);
  out[0] = values[0].x;
}

inline __global__ void loads_matrices_of_global_memory(const float* in, std::uint32_t* out) {
  std::uint32_t registers[4];
  load_matrices(registers, in + 4 * thread());
  out[thread()] = registers[0];
}

}  // namespace hybridgen::kernels::test
