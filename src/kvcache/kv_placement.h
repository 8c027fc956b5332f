// SPDX-License-Identifier: Apache-2.0
// Which tier new blocks of K and V go to, and which old ones move (paper §4.4). Values in, values
// out: what lies where afterwards follows from the rooms, the blocks and the growth alone.
//
// Semantic. The CPU reads every key in every step and of the values a few chosen rows. So keys lie
// in DRAM, and values do as long as all of both fits. From then on new values go to CXL memory, and
// old ones, oldest first, as keys need their place. Once keys alone exceed DRAM, the least recently
// generated ones go to CXL memory, where they are still scanned. Below CXL memory is the disk:
// values first, then keys. Keys come back up as soon as there is room, values only from the disk.
// A block that is still written to never goes to the disk, and one that is on its way stays on it.
// A request may ask for the disk: its blocks go there as soon as they are closed.
//
// Interleave and first touch are what the paper compares with: by pages over both memories, and
// DRAM while there is any. Nothing moves there but what must go to the disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "hybridgen/core/tiers.h"
#include "kvcache/tier_blocks.h"

namespace hybridgen {

struct PlacementRule {
  KvPlacement placement = KvPlacement::kSemantic;
  TierBytes room;  ///< of K and V of all requests; 0: no such tier
  /// Bytes that are to stay free in every tier above the last that has room, so that growth rarely
  /// waits for a move; see low_water_bytes.
  std::int64_t low_water = 0;
};

struct NewBlock {
  BlockId id;
  std::int64_t bytes = 0;
};

struct BlockMove {
  std::size_t block = 0;  ///< among the blocks that were given
  BlockPlace from = BlockPlace::kDram;
  BlockPlace to = BlockPlace::kDram;
  friend bool operator==(const BlockMove&, const BlockMove&) = default;
};

struct PlacementDecision {
  bool fits = true;                  ///< false: some room is too small, and the rest means nothing
  std::vector<BlockPlace> places{};  ///< of the new blocks
  std::vector<BlockMove> moves{};    ///< to be done in this order; the new blocks may need them
};

/// `blocks`: those that there are, oldest first. `growth`: those that come now, in order.
PlacementDecision place_blocks(const PlacementRule& rule,
                               std::span<const TierBlock> blocks,
                               std::span<const NewBlock> growth);

/// Room for the next keys of each of `num_requests`, whose blocks take `key_block_bytes`; an eighth
/// of the room at most. 0 if nothing lies below DRAM.
std::int64_t low_water_bytes(const TierBytes& room,
                             std::int64_t num_requests,
                             std::int64_t key_block_bytes);

}  // namespace hybridgen
