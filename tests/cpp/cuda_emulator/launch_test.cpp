// SPDX-License-Identifier: Apache-2.0
// Launches, blocks and warps as CUDA defines them.
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <thread>
#include <vector>

#include "emulated_memory.h"
#include "kernels/cuda_launch.h"
#include "support/in_every_order.h"

namespace hybridgen::kernels::test {
namespace {

using cuda_emulator::test::DeviceArray;
using hybridgen::test::in_every_order;

// ---- What a device refuses ----

__global__ void nothing() {}
__global__ void fills(int* out, int value) { out[threadIdx.x] = value; }

cudaError_t error_of_launch(dim3 grid, dim3 block, std::size_t shared_bytes = 0) {
  launch(nothing, grid, block, shared_bytes, nullptr);
  return cudaGetLastError();
}

TEST(Launch, ShapesBeyondTheDevicesLimitsAreRefused) {
  EXPECT_EQ(error_of_launch({1, 70000}, 1), cudaErrorInvalidConfiguration);
  EXPECT_EQ(error_of_launch({1, 1, 65536}, 1), cudaErrorInvalidConfiguration);
  EXPECT_EQ(error_of_launch(0x80000000U, 1), cudaErrorInvalidConfiguration);
  EXPECT_EQ(error_of_launch(1, 1025), cudaErrorInvalidConfiguration);
  EXPECT_EQ(error_of_launch(1, {32, 33}), cudaErrorInvalidConfiguration);
  EXPECT_EQ(error_of_launch(1, {1, 1, 65}), cudaErrorInvalidConfiguration);
  EXPECT_EQ(error_of_launch(0, 1), cudaErrorInvalidConfiguration);
  EXPECT_EQ(error_of_launch(1, 0), cudaErrorInvalidConfiguration);
  // 0xffffffff * 2 threads: the product must not wrap around.
  EXPECT_EQ(error_of_launch(1, {0xffffffffU, 2}), cudaErrorInvalidConfiguration);

  EXPECT_EQ(error_of_launch({3, 2, 2}, 1), cudaSuccess);
  EXPECT_EQ(error_of_launch(1, {4, 4, 64}), cudaSuccess);
}

TEST(Launch, SharedMemoryBeyond48KibMustBeAskedFor) {
  constexpr int kMax = 227 << 10;
  EXPECT_EQ(error_of_launch(1, 1, (48 << 10) + 1), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, kMax + 1),
            cudaErrorInvalidValue);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidValue);
  EXPECT_EQ(cudaFuncSetAttribute(nothing, cudaFuncAttributeMaxDynamicSharedMemorySize, kMax),
            cudaSuccess);
  EXPECT_EQ(error_of_launch(1, 1, kMax), cudaSuccess);
  EXPECT_EQ(error_of_launch(1, 1, kMax + 1), cudaErrorInvalidValue);
}

TEST(Launch, ARefusedLaunchRunsNothingAndItsErrorIsReadOnce) {
  DeviceArray<int> out(std::vector<int>{7});
  launch(fills, 1, 1025, 0, nullptr, out.data(), 1);
  EXPECT_EQ(cudaGetLastError(), cudaErrorInvalidConfiguration);
  EXPECT_EQ(cudaGetLastError(), cudaSuccess);
  EXPECT_EQ(out.values(), std::vector{7});
}

// ---- Streams ----

std::vector<std::pair<cudaStream_t, std::function<void()>>> queued;

TEST(Launch, RunsWhenTheStreamsOwnerRunsItWithTheArgumentsOfTheLaunch) {
  int place = 0;
  const auto stream = reinterpret_cast<cudaStream_t>(&place);
  DeviceArray<int> out(std::vector<int>{0, 0});
  cuda_emulator::set_enqueue(
      [](cudaStream_t on, std::function<void()> run) { queued.emplace_back(on, std::move(run)); });
  int value = 3;
  launch(fills, 1, 2, 0, stream, out.data(), value);
  value = 4;
  std::vector<int> copied(2, -1);
  cudaMemcpyAsync(copied.data(), out.data(), 2 * sizeof(int), cudaMemcpyDeviceToHost, stream);
  cuda_emulator::set_enqueue(nullptr);

  EXPECT_EQ(out.values(), (std::vector{0, 0}));
  ASSERT_EQ(queued.size(), 2U);
  EXPECT_EQ(queued[0].first, stream);
  // As on a stream's own thread.
  std::thread([] {
    for (const auto& [on, run] : queued) run();
  }).join();
  EXPECT_EQ(copied, (std::vector{3, 3}));
  queued.clear();
}

// ---- Blocks ----

__global__ void writes_place(unsigned* out) {
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  const unsigned thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const unsigned block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  __syncthreads();  // places last beyond a switch
  out[block * threads + thread] = threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z +
                                  1000 * (blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z);
}

TEST(Block, EveryThreadOfEveryBlockHasItsPlace) {
  const dim3 grid(2, 3, 4);
  const dim3 block(5, 3, 2);
  std::vector<unsigned> expected;
  for (unsigned bz = 0; bz < 4; ++bz)
    for (unsigned by = 0; by < 3; ++by)
      for (unsigned bx = 0; bx < 2; ++bx)
        for (unsigned z = 0; z < 2; ++z)
          for (unsigned y = 0; y < 3; ++y)
            for (unsigned x = 0; x < 5; ++x)
              expected.push_back(x + 10 * y + 100 * z + 1000 * (bx + 10 * by + 100 * bz));
  in_every_order([&] {
    DeviceArray<unsigned> out(expected.size());
    launch(writes_place, grid, block, 0, nullptr, out.data());
    EXPECT_EQ(out.values(), expected);
  });
}

/// Inclusive prefix sums: two barriers a step, and no thread may be a step ahead.
__global__ void prefix_sums(const int* in, int* out) {
  DEVICE_DYNAMIC_SHARED(int, values);
  const unsigned thread = threadIdx.x;
  values[thread] = in[thread];
  for (unsigned offset = 1; offset < blockDim.x; offset *= 2) {
    __syncthreads();
    const int other = thread >= offset ? values[thread - offset] : 0;
    __syncthreads();
    values[thread] += other;
  }
  out[thread] = values[thread];
}

TEST(Block, BarriersOrderWhatThreadsShare) {
  for (const unsigned threads : {1U, 33U, 1024U}) {
    std::vector<int> values(threads);
    std::iota(values.begin(), values.end(), 1);
    std::vector<int> expected(threads);
    std::partial_sum(values.begin(), values.end(), expected.begin());
    DeviceArray<int> in(values);
    in_every_order([&] {
      DeviceArray<int> out(threads);
      launch(prefix_sums, 1, threads, threads * sizeof(int), nullptr, in.data(), out.data());
      EXPECT_EQ(out.values(), expected);
    });
  }
}

/// Threads that have ended are not waited for.
__global__ void half_ends_early(int* out) {
  if (threadIdx.x >= blockDim.x / 2) return;
  __syncthreads();
  out[threadIdx.x] = 1;
}

TEST(Block, ABarrierWaitsForLivingThreadsOnly) {
  in_every_order([] {
    DeviceArray<int> out(32);
    launch(half_ends_early, 1, 64, 0, nullptr, out.data());
    EXPECT_EQ(out.values(), std::vector<int>(32, 1));
  });
}

__global__ void counts(int* count, unsigned long long* bits, int* largest) {
  atomicAdd(count, 1);
  atomicMax(largest, static_cast<int>(threadIdx.x));
  atomicCAS(bits, 0ULL, 1ULL + threadIdx.x);
}

TEST(Block, AtomicsLoseNothing) {
  in_every_order([] {
    DeviceArray<int> count(std::vector<int>{0});
    DeviceArray<unsigned long long> bits(std::vector<unsigned long long>{0});
    DeviceArray<int> largest(std::vector<int>{-1});
    launch(counts, 3, 100, 0, nullptr, count.data(), bits.data(), largest.data());
    EXPECT_EQ(count.values(), std::vector{300});
    EXPECT_EQ(largest.values(), std::vector{99});
    EXPECT_GE(bits.values()[0], 1U);  // the first one's, whoever that is
    EXPECT_LE(bits.values()[0], 100U);
  });
}

__global__ void throws() {
  __syncthreads();
  if (threadIdx.x == 3) throw std::runtime_error("from a kernel");
  __syncthreads();
}

TEST(Block, WhatAKernelThrowsReachesItsLaunch) {
  in_every_order([] { EXPECT_THROW(launch(throws, 2, 64, 0, nullptr), std::runtime_error); });
}

// ---- Warps ----

__global__ void shuffles(int* out, int width) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  int* row = out + threadIdx.x * 4;
  row[0] = __shfl_sync(0xffffffffU, lane, 5, width);
  row[1] = __shfl_up_sync(0xffffffffU, lane, 2, width);
  row[2] = __shfl_down_sync(0xffffffffU, lane, 3, width);
  row[3] = __shfl_xor_sync(0xffffffffU, lane, 1, width);
}

TEST(Warp, ShufflesReadTheLaneThatCudaSays) {
  for (const int width : {4, 16, 32}) {
    std::vector<int> expected;
    for (int thread = 0; thread < 64; ++thread) {
      const int lane = thread % 32;
      const int first = lane / width * width;
      const int place = lane - first;
      expected.push_back(first + 5 % width);
      expected.push_back(place >= 2 ? lane - 2 : lane);
      expected.push_back(place + 3 < width ? lane + 3 : lane);
      expected.push_back(first + (place ^ 1));
    }
    in_every_order([&] {
      DeviceArray<int> out(expected.size());
      launch(shuffles, 1, 64, 0, nullptr, out.data(), width);
      EXPECT_EQ(out.values(), expected);
    });
  }
}

__global__ void votes(unsigned* out) {
  const unsigned lane = threadIdx.x;
  out[3 * lane] = __ballot_sync(0xffffffffU, lane % 3 == 0 ? 1 : 0);
  out[3 * lane + 1] = static_cast<unsigned>(__any_sync(0xffffffffU, lane == 7 ? 1 : 0));
  out[3 * lane + 2] = static_cast<unsigned>(__all_sync(0xffffffffU, lane == 7 ? 0 : 1));
}

TEST(Warp, VotesCountEveryLane) {
  in_every_order([] {
    DeviceArray<unsigned> out(96);
    launch(votes, 1, 32, 0, nullptr, out.data());
    for (std::size_t lane = 0; lane < 32; ++lane) {
      EXPECT_EQ(out.values()[3 * lane], 0x49249249U);
      EXPECT_EQ(out.values()[3 * lane + 1], 1U);
      EXPECT_EQ(out.values()[3 * lane + 2], 0U);
    }
  });
}

/// The halves of a warp go their own ways and meet again; one lane's next shuffle must not reach
/// another that still reads the one before.
__global__ void halves_apart(int* out) {
  const int lane = static_cast<int>(threadIdx.x);
  int value = lane;
  if (lane < 16) {
    for (int i = 0; i < 8; ++i) value = __shfl_sync(0x0000ffffU, value + 1, (lane + 1) % 16);
  } else {
    for (int i = 0; i < 3; ++i) value += __shfl_xor_sync(0xffff0000U, value, 1);
  }
  out[lane] = __shfl_xor_sync(0xffffffffU, value, 16);
}

TEST(Warp, PartsOfAWarpWorkApart) {
  std::vector<int> values(32);
  for (int lane = 0; lane < 32; ++lane) {
    // Eight places on, one more each; or three doublings of what both of a pair have.
    values[static_cast<std::size_t>(lane)] =
        lane < 16 ? (lane + 8) % 16 + 8 : 4 * (2 * (lane & ~1) + 1);
  }
  std::vector<int> expected;
  for (std::size_t lane = 0; lane < 32; ++lane) expected.push_back(values[lane ^ 16]);
  in_every_order([&] {
    DeviceArray<int> out(32);
    launch(halves_apart, 1, 32, 0, nullptr, out.data());
    EXPECT_EQ(out.values(), expected);
  });
}

}  // namespace
}  // namespace hybridgen::kernels::test
