// SPDX-License-Identifier: Apache-2.0
// Packs of a row: numbers beside each other that a thread reads or writes at once, 16 bytes where
// all rows allow it, else one number. For .cu files alone.
#pragma once

#include <cstdint>
#include <initializer_list>

#include "kernels/cuda_grid.h"
#include "kernels/cuda_math.h"

namespace hybridgen::kernels {

inline constexpr std::int64_t kPackBytes = 16;

/// Numbers beside each other, as one access of up to 16 bytes.
template <typename T, unsigned kCount>
struct alignas(sizeof(T) * kCount < kPackBytes ? sizeof(T) * kCount : kPackBytes) Pack {
  T numbers[kCount];
};

template <unsigned kCount, typename T>
__device__ __forceinline__ void read_pack(const T* from, float (&to)[kCount]) {
  const auto pack = *reinterpret_cast<const Pack<T, kCount>*>(from);
  for (unsigned k = 0; k < kCount; ++k) to[k] = to_float(pack.numbers[k]);
}

template <unsigned kCount, typename T>
__device__ __forceinline__ void write_pack(T* to, const float (&from)[kCount]) {
  Pack<T, kCount> pack;
  for (unsigned k = 0; k < kCount; ++k) store(&pack.numbers[k], from[k]);
  *reinterpret_cast<Pack<T, kCount>*>(to) = pack;
}

/// Rounded to T and widened again.
template <typename T>
__device__ __forceinline__ float round_to(float value) {
  T rounded;
  store(&rounded, value);
  return to_float(rounded);
}

/// Whether a pack of 16 bytes may begin at this address.
__host__ __device__ inline bool begins_a_pack(const void* pointer) {
  return reinterpret_cast<std::uintptr_t>(pointer) % kPackBytes == 0;
}

/// Whether rows that begin at such pointers (null: none), with such sizes and strides in elements,
/// consist of whole packs of 16 bytes.
inline bool are_in_packs(DType dtype,
                         std::initializer_list<const void*> pointers,
                         std::initializer_list<std::int64_t> sizes) {
  const std::int64_t count = kPackBytes / static_cast<std::int64_t>(size_of(dtype));
  for (const void* pointer : pointers) {
    if (!begins_a_pack(pointer)) return false;
  }
  for (const std::int64_t size : sizes) {
    if (size % count != 0) return false;
  }
  return true;
}

/// Where only the device knows whether a pack may begin.
template <unsigned kCount, typename T>
__device__ __forceinline__ void read_anywhere(const T* from, float (&to)[kCount]) {
  if (begins_a_pack(from)) {
    read_pack(from, to);
  } else {
    for (unsigned k = 0; k < kCount; ++k) to[k] = to_float(from[k]);
  }
}

template <unsigned kCount, typename T>
__device__ __forceinline__ void write_anywhere(T* to, const float (&from)[kCount]) {
  if (begins_a_pack(to)) {
    write_pack(to, from);
  } else {
    for (unsigned k = 0; k < kCount; ++k) store(to + k, from[k]);
  }
}

/// Turns numbers of a head's first half with those of its second.
template <unsigned kCount>
__device__ __forceinline__ void turn(const float* cosines,
                                     const float* sines,
                                     float (&a)[kCount],
                                     float (&b)[kCount]) {
  float cosine[kCount];
  float sine[kCount];
  read_pack(cosines, cosine);
  read_pack(sines, sine);
  for (unsigned k = 0; k < kCount; ++k) {
    const float turned = a[k] * cosine[k] - b[k] * sine[k];
    b[k] = b[k] * cosine[k] + a[k] * sine[k];
    a[k] = turned;
  }
}

/// Names a type and how many numbers of it are one pack.
template <typename T, unsigned kCount>
struct PackOf {};

/// Calls `launch` with the PackOf of `dtype`.
template <typename Launch>
void with_packs_of(DType dtype, bool in_packs, Launch launch) {
  with_type_of(dtype, [&]<typename T>(T* /*type*/) {
    if (in_packs) {
      launch(PackOf<T, static_cast<unsigned>(kPackBytes / sizeof(T))>{});
    } else {
      launch(PackOf<T, 1>{});
    }
  });
}

inline dim3 grid_of(const LaunchShape& shape) {
  return {static_cast<unsigned>(shape.blocks_x), static_cast<unsigned>(shape.blocks_y)};
}

}  // namespace hybridgen::kernels
