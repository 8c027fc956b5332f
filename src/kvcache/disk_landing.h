// SPDX-License-Identifier: Apache-2.0
// Memory that one layer's blocks of one side are read into from the disk: [block][G][unit], as they
// lie there, so that a block is one read into memory that follows itself. It stays from layer to
// layer, in huge pages where it fills them: fresh small pages would cost more than the read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "kvcache/kv_memory.h"
#include "memory/placed_bytes.h"
#include "memory/placed_memory.h"

namespace hybridgen {

/// Bytes on the disk of what a block has of one layer and head: whole pages. What lies behind a
/// short last block up to the page is its own.
std::int64_t disk_unit_bytes(const KvMemory& memory, std::int64_t block);

class DiskLanding {
 public:
  /// Addresses for all blocks of a layer of `memory`, which must outlive it. OutOfMemoryError.
  DiskLanding(const KvMemory& memory, const PagePlace& place);

  /// From now on it stands for these blocks of a layer, [blocks] 0 or 1; until end(), for none.
  void begin(std::vector<std::uint8_t> blocks) { has_ = std::move(blocks); }
  void end() noexcept { has_.clear(); }
  bool is_free() const { return has_.empty(); }
  /// Whether a block's rows are here, once they were read.
  bool has(std::int64_t block) const { return has_[static_cast<std::size_t>(block)] != 0; }

  /// Memory for blocks, unless they have it. One thread at a time. OutOfMemoryError.
  void take(std::span<const std::int64_t> blocks);
  /// Of a block and KV head; the heads of a block follow each other.
  std::byte* unit(std::int64_t block, std::int64_t kv_head) {
    return memory_.data() + offset_of(block, kv_head);
  }
  const std::byte* unit(std::int64_t block, std::int64_t kv_head) const {
    return memory_.data() + offset_of(block, kv_head);
  }
  /// Adds where its pages lie. DeviceError if the system does not tell.
  void report(PlacedBytes& bytes) const { bytes.add(memory_.found(), memory_.span()); }

 private:
  std::int64_t offset_of(std::int64_t block, std::int64_t kv_head) const {
    return block * block_bytes_ + kv_head * unit_bytes_of(block);
  }
  std::int64_t unit_bytes_of(std::int64_t block) const {
    return block + 1 == num_blocks_ ? last_unit_bytes_ : unit_bytes_;
  }
  void join_around(std::int64_t block);

  PagePlace place_;
  std::int64_t num_blocks_;
  std::int64_t unit_bytes_;       ///< of a block and head
  std::int64_t last_unit_bytes_;  ///< of the last block, which may be short
  std::int64_t block_bytes_;      ///< of all heads
  PlacedMemory memory_;
  std::vector<std::uint8_t> has_;       ///< [blocks], or none
  std::vector<std::uint8_t> is_taken_;  ///< [blocks]
};

}  // namespace hybridgen
