// SPDX-License-Identifier: Apache-2.0
// The words of CUDA C++ that are no C++: what they mean when the host's compiler reads a kernel.
#pragma once

#include <cstddef>

#include "support/cuda_emulator/block.h"

// NOLINTBEGIN(bugprone-reserved-identifier): CUDA's names
#define __host__
#define __device__
#define __global__
#define __constant__
#define __forceinline__ inline
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)

// For sources that know nothing of the emulator. DEVICE_SHARED finds more: see docs/cuda.md.
#define __shared__ static thread_local
// NOLINTEND(bugprone-reserved-identifier)

namespace hybridgen::cuda_emulator {

template <typename T, std::size_t kCount>
using ArrayOf = T[kCount];

/// The block's array for a DEVICE_SHARED declaration, which `key` stands for.
template <typename T, std::size_t kCount>
ArrayOf<T, kCount>& shared_array(const void* key) {
  Block& block = Block::current();
  void* memory = block.shared().static_array(key, sizeof(T) * kCount, alignof(T));
  if (memory == nullptr) {
    block.fail("static shared memory is more than 48 KiB; use DEVICE_DYNAMIC_SHARED");
  }
  return *static_cast<ArrayOf<T, kCount>*>(memory);
}

template <typename T>
T* dynamic_shared_array() {
  return static_cast<T*>(Block::current().shared().dynamic_array());
}

}  // namespace hybridgen::cuda_emulator

// NOLINTBEGIN(bugprone-macro-parentheses): types and names cannot stand in parentheses
#define DEVICE_SHARED(type, name, count)                     \
  static const char name##_declaration = 0;                  \
  ::hybridgen::cuda_emulator::ArrayOf<type, (count)>& name = \
      ::hybridgen::cuda_emulator::shared_array<type, (count)>(&name##_declaration)

#define DEVICE_DYNAMIC_SHARED(type, name) \
  type* name = ::hybridgen::cuda_emulator::dynamic_shared_array<type>()
// NOLINTEND(bugprone-macro-parentheses)
