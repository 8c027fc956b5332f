// SPDX-License-Identifier: Apache-2.0
// Operations of a warp: all lanes that a mask names give a few bytes and get those of the others.
// Shuffles, votes, ldmatrix and mma are made of this one exchange.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <source_location>
#include <string>
#include <vector>

#include "support/cuda_emulator/sanitizer.h"

namespace hybridgen::cuda_emulator {

class Block;

inline constexpr std::size_t kMaxPayloadBytes = 64;

/// The lanes that carry out one operation together. What they gave stays until each has read it, so
/// that a fast lane's next operation cannot overwrite it.
struct WarpGroup {
  std::uint32_t mask = 0;
  std::uint32_t arrived = 0;  ///< 0: free
  std::uint32_t reading = 0;
  const char* operation = nullptr;
  Ordering ordering;
  // Apart, so that looking through a warp's groups reads few cache lines.
  using Payload = std::array<std::byte, kMaxPayloadBytes>;
  std::unique_ptr<std::array<Payload, 32>> payloads = std::make_unique<std::array<Payload, 32>>();

  bool is_complete() const { return arrived == mask; }
};

class Warps {
 public:
  void start_block(int threads);

  /// Returns when all lanes of `mask` have called it with the same mask and operation; the
  /// caller then reads and calls finish_reading. Fails the block where CUDA leaves undefined what
  /// happens.
  WarpGroup& exchange(Block& block,
                      std::uint32_t mask,
                      const char* operation,
                      const void* data,
                      std::size_t bytes,
                      std::source_location where);
  void finish_reading(Block& block, WarpGroup& group);

  /// What is wrong with a thread's end: empty, or that others of its warp wait for it.
  std::string thread_ended(int thread) const;

 private:
  // A lane is in one group at most, so there is always a free one.
  using Groups = std::array<WarpGroup, 32>;
  /// Empty if the running thread may carry out the operation.
  std::string what_is_wrong(const Block& block, std::uint32_t mask, const char* operation) const;
  WarpGroup& join_group(const Block& block, std::uint32_t mask, const char* operation);

  std::vector<std::unique_ptr<Groups>> warps_;
};

/// One operation of the running CUDA thread.
class WarpExchange {
 public:
  WarpExchange(std::uint32_t mask,
               const char* operation,
               const void* data,
               std::size_t bytes,
               std::source_location where);
  ~WarpExchange();
  WarpExchange(const WarpExchange&) = delete;
  WarpExchange& operator=(const WarpExchange&) = delete;

  int lane() const { return lane_; }
  std::uint32_t mask() const { return group_.mask; }
  /// What a lane gave. Fails the block if the mask does not name it.
  template <typename T>
  T from(int lane) const {
    T value;
    read(lane, &value, sizeof(T));
    return value;
  }

 private:
  void read(int lane, void* to, std::size_t bytes) const;

  Block& block_;
  int lane_;
  WarpGroup& group_;
};

}  // namespace hybridgen::cuda_emulator
