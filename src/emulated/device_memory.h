// SPDX-License-Identifier: Apache-2.0
// Memory of an emulated device: one range of addresses that the host may not touch, as a GPU's
// pointers cannot be read by the CPU, and an alias of it through which the device's operations
// work. Freed blocks are reused at once by the stream that they were allocated on, and only by it,
// as LibTorch's caching allocator for CUDA does.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>
#include <utility>
#include <vector>

namespace hybridgen::emulated {

using StreamIndex = std::size_t;

class DeviceMemory {
 public:
  /// Reserves `bytes` of addresses; physical memory is taken where something is written.
  /// DeviceError if the system refuses.
  explicit DeviceMemory(std::size_t bytes);
  ~DeviceMemory();
  DeviceMemory(const DeviceMemory&) = delete;
  DeviceMemory& operator=(const DeviceMemory&) = delete;

  /// Bytes that may be in use, at most those reserved.
  void set_capacity(std::size_t bytes);
  std::size_t capacity() const;
  /// Bytes neither in use nor kept for a stream.
  std::size_t free_bytes() const;
  struct Use {
    std::size_t now = 0;
    std::size_t peak = 0;   ///< since reset_peak()
    std::size_t taken = 0;  ///< in use or kept for a stream
  };
  Use use() const;
  void reset_peak();

  struct Allocated {
    void* address = nullptr;  ///< in the host's range; null: there is no room
    std::size_t bytes = 0;
    bool is_new = false;  ///< no operation that is still queued knows it
  };
  /// A block of at least `bytes` for `stream`. Where there is no room another stream may keep some
  /// (release_cached).
  Allocated allocate(std::size_t bytes, StreamIndex stream);
  /// The block's size and stream; it is kept for that stream.
  std::pair<std::size_t, StreamIndex> free(void* address);
  /// Gives what is kept for streams to all of them. Only while none has work.
  void release_cached();

  bool contains(const void* address) const;
  /// Where the device's operations find what `address` means.
  std::byte* alias(const void* address) const;

  /// Lets raw pointers be used for as long as it lives: for kernels that get device addresses.
  class Opened {
   public:
    explicit Opened(DeviceMemory& memory);
    ~Opened();
    Opened(const Opened&) = delete;
    Opened& operator=(const Opened&) = delete;

   private:
    DeviceMemory& memory_;
  };

 private:
  struct Block {
    std::size_t bytes;
    std::size_t used;  ///< of them
    StreamIndex stream;
  };
  /// A block kept for `stream` of `bytes` or somewhat more; its size, or 0 if there is none.
  std::size_t take_kept(std::size_t bytes, StreamIndex stream, std::size_t& offset);
  void let_go(std::size_t offset, std::size_t bytes);
  void give_back(std::size_t offset, std::size_t bytes);

  std::size_t reserved_;
  std::byte* host_ = nullptr;   ///< no access
  std::byte* alias_ = nullptr;  ///< the same memory, readable and writable
  mutable std::mutex mutex_;
  std::size_t capacity_;
  std::size_t taken_ = 0;  ///< in use or kept
  std::size_t in_use_ = 0;
  std::size_t peak_in_use_ = 0;
  int opened_ = 0;
  std::map<std::size_t, std::size_t> unowned_;  ///< offset to bytes, never adjacent
  std::map<std::size_t, Block> in_use_blocks_;  ///< by offset
  std::map<std::pair<StreamIndex, std::size_t>, std::vector<std::size_t>> kept_;  ///< last first
};

}  // namespace hybridgen::emulated
