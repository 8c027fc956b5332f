// SPDX-License-Identifier: Apache-2.0
// CUDA's device functions: barriers, warp operations, atomics, and arithmetic that C++ lacks.
#pragma once

#include <algorithm>
#include <atomic>
#include <bit>
#include <cmath>
#include <concepts>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "support/cuda_emulator/block.h"
#include "support/cuda_emulator/half_types.h"

// NOLINTBEGIN(bugprone-reserved-identifier): CUDA's names

using hybridgen::cuda_emulator::Where;

inline void __syncthreads(Where where = Where::current()) {
  hybridgen::cuda_emulator::Block::current().synchronize(where);
}

inline void __syncwarp(unsigned mask = 0xffffffffU, Where where = Where::current()) {
  const hybridgen::cuda_emulator::WarpExchange all(mask, "__syncwarp", nullptr, 0, where);
}

// All CUDA threads of a block are one OS thread: the compiler alone could reorder.
inline void __threadfence_block() { std::atomic_signal_fence(std::memory_order_seq_cst); }
inline void __threadfence() { std::atomic_signal_fence(std::memory_order_seq_cst); }

namespace hybridgen::cuda_emulator {

template <typename T>
concept Shuffled = std::same_as<T, int> || std::same_as<T, unsigned> || std::same_as<T, long> ||
                   std::same_as<T, unsigned long> || std::same_as<T, long long> ||
                   std::same_as<T, unsigned long long> || std::same_as<T, float> ||
                   std::same_as<T, double> || IsHalfType<T>;

/// `source` says from which lane a lane reads: of (its place in its part of the warp, the parts'
/// width) the place that it wants, which is its own value where that lies outside.
template <Shuffled T, typename Source>
T shuffle(unsigned mask, const char* name, T value, int width, Where where, Source source) {
  const WarpExchange all(mask, name, &value, sizeof(T), where);
  const int place = all.lane() & (width - 1);
  const int wanted = source(place, width);
  if (wanted < 0 || wanted >= width) return value;
  return all.from<T>(all.lane() - place + wanted);
}

inline unsigned votes(unsigned mask, const char* name, bool predicate, Where where) {
  const WarpExchange all(mask, name, &predicate, sizeof(predicate), where);
  unsigned lanes = 0;
  for (int lane = 0; lane < warpSize; ++lane) {
    if ((mask >> lane & 1U) != 0 && all.from<bool>(lane)) lanes |= 1U << lane;
  }
  return lanes;
}

}  // namespace hybridgen::cuda_emulator

template <hybridgen::cuda_emulator::Shuffled T>
T __shfl_sync(
    unsigned mask, T value, int lane, int width = warpSize, Where where = Where::current()) {
  return hybridgen::cuda_emulator::shuffle(
      mask, "__shfl_sync", value, width, where, [lane](int, int w) { return lane & (w - 1); });
}

template <hybridgen::cuda_emulator::Shuffled T>
T __shfl_up_sync(
    unsigned mask, T value, unsigned delta, int width = warpSize, Where where = Where::current()) {
  return hybridgen::cuda_emulator::shuffle(
      mask, "__shfl_up_sync", value, width, where, [delta](int place, int) {
        return place - static_cast<int>(delta);
      });
}

template <hybridgen::cuda_emulator::Shuffled T>
T __shfl_down_sync(
    unsigned mask, T value, unsigned delta, int width = warpSize, Where where = Where::current()) {
  return hybridgen::cuda_emulator::shuffle(
      mask, "__shfl_down_sync", value, width, where, [delta](int place, int) {
        return place + static_cast<int>(delta);
      });
}

template <hybridgen::cuda_emulator::Shuffled T>
T __shfl_xor_sync(
    unsigned mask, T value, int flipped, int width = warpSize, Where where = Where::current()) {
  return hybridgen::cuda_emulator::shuffle(
      mask, "__shfl_xor_sync", value, width, where, [flipped](int place, int) {
        return place ^ flipped;
      });
}

inline unsigned __ballot_sync(unsigned mask, int predicate, Where where = Where::current()) {
  return hybridgen::cuda_emulator::votes(mask, "__ballot_sync", predicate != 0, where);
}
inline int __any_sync(unsigned mask, int predicate, Where where = Where::current()) {
  return hybridgen::cuda_emulator::votes(mask, "__any_sync", predicate != 0, where) != 0 ? 1 : 0;
}
inline int __all_sync(unsigned mask, int predicate, Where where = Where::current()) {
  return hybridgen::cuda_emulator::votes(mask, "__all_sync", predicate != 0, where) == mask ? 1 : 0;
}

// ---- Atomics, relaxed as CUDA's are ----

namespace hybridgen::cuda_emulator {

template <typename T, typename Change>
T change_atomically(T* address, Change change) {
  const std::atomic_ref<T> shared(*address);
  T before = shared.load(std::memory_order_relaxed);
  while (!shared.compare_exchange_weak(before, change(before), std::memory_order_relaxed)) {
  }
  return before;
}

}  // namespace hybridgen::cuda_emulator

template <typename T>
T atomicAdd(T* address, std::type_identity_t<T> value) {
  return hybridgen::cuda_emulator::change_atomically(address, [=](T old) { return old + value; });
}
template <std::integral T>
T atomicMax(T* address, std::type_identity_t<T> value) {
  return hybridgen::cuda_emulator::change_atomically(address,
                                                     [=](T old) { return std::max(old, value); });
}
template <std::integral T>
T atomicMin(T* address, std::type_identity_t<T> value) {
  return hybridgen::cuda_emulator::change_atomically(address,
                                                     [=](T old) { return std::min(old, value); });
}
template <typename T>
T atomicExch(T* address, std::type_identity_t<T> value) {
  return hybridgen::cuda_emulator::change_atomically(address, [=](T) { return value; });
}
template <std::integral T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> value) {
  return hybridgen::cuda_emulator::change_atomically(
      address, [=](T old) { return old == expected ? value : old; });
}

// ---- Arithmetic ----

template <typename T>
T __ldcg(const T* address) {
  return *address;
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}
inline int __popc(unsigned bits) { return std::popcount(bits); }
inline int __popcll(unsigned long long bits) { return std::popcount(bits); }
inline int __clz(int bits) { return std::countl_zero(static_cast<unsigned>(bits)); }
inline int __ffs(int bits) {
  return bits == 0 ? 0 : std::countr_zero(static_cast<unsigned>(bits)) + 1;
}
inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned bits) { return std::bit_cast<float>(bits); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __int_as_float(int bits) { return std::bit_cast<float>(bits); }
// The device's are a few units in the last place off; these are the best approximation of both.
inline float __expf(float value) { return std::exp(value); }
inline float __logf(float value) { return std::log(value); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float value) { return 1.0F / std::sqrt(value); }

using std::max;
using std::min;

// NOLINTEND(bugprone-reserved-identifier)
