// SPDX-License-Identifier: Apache-2.0
// The shared memory of one block. What a kernel has not written is NaN in every dtype, and between
// two arrays lies memory that AddressSanitizer guards.
#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace hybridgen::cuda_emulator {

/// What one block can have in all (compute capability 9.0), and without asking for more with
/// cudaFuncSetAttribute.
inline constexpr std::size_t kMaxSharedBytes = std::size_t{227} << 10;
inline constexpr std::size_t kSharedBytesWithoutAsking = std::size_t{48} << 10;

class SharedArena {
 public:
  SharedArena();
  ~SharedArena();
  SharedArena(const SharedArena&) = delete;
  SharedArena& operator=(const SharedArena&) = delete;

  /// Forgets all arrays: a block starts, which was launched with so much dynamic shared memory.
  void start_block(std::size_t dynamic_bytes);

  /// The array that the declaration `key` means in this block. Null if static arrays need more than
  /// nvcc allows.
  void* static_array(const void* key, std::size_t bytes, std::size_t alignment);
  void* dynamic_array() const { return dynamic_; }

  /// Whether all bytes belong to one array.
  bool holds(const void* address, std::size_t bytes) const;

 private:
  struct Array {
    const void* key;
    std::byte* place;
    std::size_t bytes;
  };
  std::byte* add(const void* key, std::size_t bytes, std::size_t alignment);

  struct Free {
    void operator()(std::byte* memory) const;
  };
  std::unique_ptr<std::byte, Free> memory_;
  std::size_t used_ = 0;
  std::size_t static_bytes_ = 0;
  void* dynamic_ = nullptr;
  std::vector<Array> arrays_;
};

}  // namespace hybridgen::cuda_emulator
