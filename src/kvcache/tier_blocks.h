// SPDX-License-Identifier: Apache-2.0
// K and V of all requests in tier blocks, and the ledger of which tier each lies in. A tier block
// is the K or the V of so many tokens of one request, all layers and heads: what is placed, and
// moved, as a whole. Holds numbers only; what they say is done by others.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "hybridgen/core/tiers.h"

namespace hybridgen {

enum class KvSide : std::uint8_t { kKeys, kValues };

/// Where a block lies. kInterleaved: its pages by turns in DRAM and in CXL memory.
enum class BlockPlace : std::uint8_t { kDram, kCxl, kInterleaved, kDisk };
/// "dram", "cxl", "dram and cxl by turns" or "disk".
std::string_view name_of(BlockPlace place);

inline constexpr std::int64_t kTierBlockTokens = 256;

/// Tokens of a block whose rows take `row_bytes` per layer and head: kTierBlockTokens or the
/// smallest multiple of it whose rows fill whole pages.
std::int64_t tier_block_tokens(std::int64_t row_bytes, std::int64_t page_bytes);

/// Bytes by host tier.
class TierBytes {
 public:
  std::int64_t& operator[](TierKind tier) { return bytes_[index_of(tier)]; }
  std::int64_t operator[](TierKind tier) const { return bytes_[index_of(tier)]; }
  /// Over all host tiers.
  std::int64_t sum() const { return bytes_[0] + bytes_[1] + bytes_[2]; }
  /// Adds a block's bytes where `place` puts them; negative ones take them away.
  void add(BlockPlace place, std::int64_t bytes);
  friend bool operator==(const TierBytes&, const TierBytes&) = default;

 private:
  static std::size_t index_of(TierKind tier) {
    return static_cast<std::size_t>(tier) - static_cast<std::size_t>(TierKind::kDram);
  }
  std::array<std::int64_t, 3> bytes_{};
};

/// The host tiers, from the fastest down.
inline constexpr std::array kHostTiers{TierKind::kDram, TierKind::kCxl, TierKind::kDisk};

struct BlockId {
  std::int64_t request = 0;
  KvSide side = KvSide::kKeys;
  std::int64_t index = 0;  ///< tokens [index, index + 1) * the side's block tokens
  friend bool operator==(const BlockId&, const BlockId&) = default;
};

/// K and V of a request that are still written to, and so cannot go to a disk.
struct OpenBytes {
  std::int64_t resting = 0;
  std::int64_t growing = 0;  ///< more, while it takes memory for so many tokens at once
  /// Of a request that asked for the disk: all that may come to lie there.
  std::int64_t to_disk = 0;
};

struct TierBlock {
  BlockId id;
  std::int64_t bytes = 0;
  BlockPlace place = BlockPlace::kDram;  ///< where it lies, or will once its moves are done
  bool is_closed = false;                ///< nothing is written to it any more
  bool is_moving = false;                ///< on its way to `place`, and to nowhere else meanwhile
  bool goes_to_disk = false;             ///< once it is closed, and stays there
};

/// The blocks of all requests of an engine, in the order in which they came into being. Used by one
/// thread.
class TierLedger {
 public:
  void add(const TierBlock& block);
  void move(std::size_t index, BlockPlace to);
  void set_moving(std::size_t index, bool is_moving) { blocks_[index].is_moving = is_moving; }
  /// Blocks of `side` before `index` of that request are closed from now on.
  void close_before(std::int64_t request, KvSide side, std::int64_t index);
  /// Forgets all blocks of a request.
  void forget(std::int64_t request);

  /// How often anything was added, moved or forgotten.
  std::int64_t num_changes() const { return num_changes_; }
  /// Oldest first.
  std::span<const TierBlock> blocks() const { return blocks_; }
  /// Of the block with that id; blocks().size() if there is none.
  std::size_t find(const BlockId& id) const;
  /// Bytes of one side of all requests, by tier.
  const TierBytes& bytes(KvSide side) const { return bytes_[static_cast<std::size_t>(side)]; }
  /// Of both sides in one tier.
  std::int64_t bytes(TierKind tier) const {
    return bytes(KvSide::kKeys)[tier] + bytes(KvSide::kValues)[tier];
  }
  /// Forgets the newest blocks but the first `count` of all.
  void keep_first(std::size_t count);

 private:
  std::vector<TierBlock> blocks_;
  std::array<TierBytes, 2> bytes_{};
  std::int64_t num_changes_ = 0;
};

}  // namespace hybridgen
