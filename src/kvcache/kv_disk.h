// SPDX-License-Identifier: Apache-2.0
// K and V of one request that lie on the disk. A block there has no memory of its own: whoever
// reads it has it read first, of one layer, into memory that all layers use by turns
// (disk_landing.h). StoredHead asks for what it reads, and who knows earlier says so earlier
// (expect), so that it is there by then. The memory is the next layer's once its readers are done
// (release).
//
// A block is a KvMemory's: tokens of one side, all layers and heads. On the disk it is
// [L][G][unit], a unit being what the block has of one layer and head: so that a layer is one read.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "kvcache/disk_landing.h"
#include "kvcache/kv_memory.h"
#include "kvcache/tier_blocks.h"
#include "memory/disk_queue.h"
#include "memory/placed_bytes.h"

namespace hybridgen {

/// The disk of an engine.
struct KvDiskDevice {
  DiskFile* file = nullptr;
  DiskQueue* queue = nullptr;
  PagePlace place{};  ///< of what is read back for a while
};

class KvDisk {
 public:
  /// All must outlive it.
  KvDisk(const KvDiskDevice& device, KvMemory& keys, KvMemory& values);
  /// Nobody reads any more.
  ~KvDisk();
  KvDisk(const KvDisk&) = delete;
  KvDisk& operator=(const KvDisk&) = delete;

  /// Layers that are there for readers at a time: the one that is read and the next.
  static constexpr std::int64_t kLayersRead = 2;
  /// Bytes that these take at most, of all layers' `kv_bytes`.
  static std::int64_t reading_bytes(std::int64_t kv_bytes, std::int64_t num_layers) {
    return (kLayersRead * kv_bytes + num_layers - 1) / num_layers;
  }

  // Blocks that go to the disk and come back for good. write and bring_back take their time, on one
  // thread, beside readers; leave and arrive complete them, when nobody reads. Either may be undone
  // by the other before it is completed: leave and arrive do what is left to do then.

  /// Copies a block that nobody writes to any more. It stays in memory. Throws what DiskFile::take
  /// and DiskQueue::wait do.
  void write(KvSide side, std::int64_t block);
  /// Its memory goes: after write(), or after a bring_back() that threw.
  void leave(KvSide side, std::int64_t block) noexcept;
  /// Reads a block into memory at `place`; false: it had not left. Throws what KvMemory::take and
  /// DiskQueue::wait do.
  bool bring_back(KvSide side, std::int64_t block, const PagePlace& place);
  /// Its copy goes: after bring_back().
  void arrive(KvSide side, std::int64_t block) noexcept;

  /// Blocks that are nowhere else.
  std::int64_t num_blocks(KvSide side) const {
    return side_of(side).num_out.load(std::memory_order_acquire);
  }

  // For readers.

  /// Begins to read what the disk has of a layer's side. One thread at a time. Throws
  /// OutOfMemoryError.
  void expect(std::int64_t layer, KvSide side);
  /// Returns when all of a layer's side is there: what the disk has of it in what is returned,
  /// which holds until release(); null: it has nothing. Throws what expect and DiskQueue::wait do.
  const DiskLanding* bring(std::int64_t layer, KvSide side) {
    return num_blocks(side) > 0 ? bring_all(layer, side) : nullptr;
  }
  /// The same of the blocks that hold `tokens`, which ascend, of one KV head.
  const DiskLanding* bring(std::int64_t layer,
                           KvSide side,
                           std::int64_t kv_head,
                           std::span<const std::int32_t> tokens) {
    return num_blocks(side) > 0 ? bring_tokens(layer, side, kv_head, tokens) : nullptr;
  }
  /// Nobody reads the layer any more, until it is asked for again.
  void release(std::int64_t layer) noexcept;
  /// Of all layers, as after a step.
  void release_all() noexcept;
  /// Adds where the pages lie that layers are read into. DeviceError if the system does not tell.
  void report(PlacedBytes& bytes) const;
  /// Layers that are there for readers, or on their way.
  std::int64_t num_layers_read() const;

 private:
  enum class State : std::uint8_t {
    kInMemory,
    kCopied,  ///< and to leave
    kOut,
    kBack  ///< its copy is to go
  };
  struct Block {
    State state = State::kInMemory;
    DiskSlot slot;                     ///< kInMemory: none
    std::vector<std::uint8_t> is_out;  ///< [L]
  };
  struct Side {
    KvMemory* memory = nullptr;
    std::vector<Block> blocks;
    std::vector<std::unique_ptr<DiskLanding>> landings;
    std::atomic<std::int64_t> num_out{0};
  };
  /// What is there for a layer's readers, of one side.
  struct Load {
    DiskLanding* landing = nullptr;     ///< null: nobody has asked
    std::vector<std::uint8_t> is_in;    ///< [blocks][G]: what was read
    std::unique_ptr<DiskTransfer> all;  ///< null: nobody has asked for all of it
  };

  Side& side_of(KvSide side) { return sides_[static_cast<std::size_t>(side)]; }
  const Side& side_of(KvSide side) const { return sides_[static_cast<std::size_t>(side)]; }
  Load& load_of(std::int64_t layer, KvSide side) {
    return loads_[static_cast<std::size_t>(layer) * 2 + static_cast<std::size_t>(side)];
  }
  Block& block_of(KvSide side, std::int64_t block) {
    return side_of(side).blocks[static_cast<std::size_t>(block)];
  }
  void bring_layer_back(KvSide side,
                        std::int64_t block,
                        std::int64_t layer,
                        const PagePlace& place);
  static std::byte* memory_of(const Side& side,
                              std::int64_t block,
                              std::int64_t layer,
                              std::int64_t kv_head);
  void append_unit(const Side& side,
                   std::int64_t block,
                   const DiskSlot& slot,
                   std::int64_t layer,
                   std::int64_t kv_head,
                   std::byte* memory,
                   std::vector<DiskRange>& ranges) const;
  const DiskLanding* bring_all(std::int64_t layer, KvSide side);
  const DiskLanding* bring_tokens(std::int64_t layer,
                                  KvSide side,
                                  std::int64_t kv_head,
                                  std::span<const std::int32_t> tokens);
  // With the lock.
  DiskLanding& land(std::int64_t layer, KvSide side);
  void begin(std::int64_t layer, KvSide side);
  void append_landed(const Side& side,
                     std::int64_t block,
                     std::int64_t layer,
                     std::int64_t kv_head,
                     DiskLanding& landing,
                     std::vector<DiskRange>& ranges) const;
  void release(std::int64_t layer, KvSide side, std::unique_lock<std::mutex>& lock) noexcept;

  KvDiskDevice device_;
  std::int64_t num_layers_;
  std::int64_t num_kv_heads_;
  std::array<Side, 2> sides_;
  mutable std::mutex mutex_;  ///< of all below, and of blocks
  std::vector<Load> loads_;   ///< [L][2]
};

}  // namespace hybridgen
