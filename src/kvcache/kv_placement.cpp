// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_placement.h"

#include <algorithm>
#include <array>
#include <optional>

namespace hybridgen {
namespace {

BlockPlace place_in(TierKind tier) {
  return tier == TierKind::kDram  ? BlockPlace::kDram
         : tier == TierKind::kCxl ? BlockPlace::kCxl
                                  : BlockPlace::kDisk;
}

class Placing {
 public:
  Placing(const PlacementRule& rule, std::span<const TierBlock> blocks)
      : rule_(rule), blocks_(blocks), places_(blocks.size()) {
    for (std::size_t i = 0; i < blocks.size(); ++i) {
      places_[i] = blocks[i].place;
      used_.add(places_[i], blocks[i].bytes);
    }
  }

  PlacementDecision decide(std::span<const NewBlock> growth) {
    fit_smaller_rooms();
    for (const NewBlock& block : growth) growing_ += block.bytes;
    for (const NewBlock& block : growth) {
      const std::optional<BlockPlace> place = place_new(block);
      if (!place.has_value()) return {.fits = false};
      used_.add(*place, block.bytes);
      growing_ -= block.bytes;
      decision_.places.push_back(*place);
    }
    settle_on_disk();
    if (rule_.placement == KvPlacement::kSemantic) {
      lift();
      keep_low_water();
    }
    return std::move(decision_);
  }

 private:
  std::int64_t free(TierKind tier) const { return rule_.room[tier] - used_[tier]; }

  // Others may have been given what this one's blocks lie in.
  void fit_smaller_rooms() {
    moves_in_memory_ = true;
    for (const TierKind tier : {TierKind::kDram, TierKind::kCxl}) {
      while (decision_.fits && free(tier) < 0) decision_.fits = push_down_from(tier);
    }
    moves_in_memory_ = rule_.placement == KvPlacement::kSemantic;  // the baselines move nothing
  }

  std::optional<BlockPlace> place_new(const NewBlock& block) {
    if (rule_.placement == KvPlacement::kInterleave) {
      const std::int64_t half = block.bytes - block.bytes / 2;
      if (free(TierKind::kDram) >= half && free(TierKind::kCxl) >= half) {
        return BlockPlace::kInterleaved;
      }
    }
    const bool goes_below = rule_.placement == KvPlacement::kSemantic &&
                            block.id.side == KvSide::kValues && !all_fits_in_dram();
    const std::array order = goes_below ? std::array{TierKind::kCxl, TierKind::kDram}
                                        : std::array{TierKind::kDram, TierKind::kCxl};
    // Keys take the place of others; nobody else does while there is room elsewhere.
    const bool pushes = rule_.placement == KvPlacement::kSemantic && block.id.side == KvSide::kKeys;
    if (!pushes) {
      for (const TierKind tier : order) {
        if (free(tier) >= block.bytes) return place_in(tier);
      }
    }
    for (const TierKind tier : order) {
      if (make_room(tier, block.bytes)) return place_in(tier);
    }
    return std::nullopt;
  }

  bool all_fits_in_dram() const {
    return used_.sum() + growing_ + rule_.low_water <= rule_.room[TierKind::kDram];
  }

  bool make_room(TierKind tier, std::int64_t bytes) {
    if (rule_.room[tier] < bytes) return false;
    while (free(tier) < bytes) {
      if (!push_down_from(tier)) return false;
    }
    return true;
  }

  // The oldest value of a tier, or its oldest key if no value can go.
  bool push_down_from(TierKind tier) {
    return push_down_from(tier, KvSide::kValues) || push_down_from(tier, KvSide::kKeys);
  }

  bool push_down_from(TierKind tier, KvSide side) {
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      if (blocks_[i].id.side != side || !lies_in(i, tier)) continue;
      for (const TierKind below : kHostTiers) {
        if (below > tier && may_lie_in(i, below) && make_room(below, blocks_[i].bytes)) {
          move(i, place_in(below));
          return true;
        }
      }
    }
    return false;
  }

  bool lies_in(std::size_t block, TierKind tier) const {
    const BlockPlace place = places_[block];
    return place == place_in(tier) ||
           (place == BlockPlace::kInterleaved && tier != TierKind::kDisk);
  }

  bool may_lie_in(std::size_t block, TierKind tier) const {
    if (blocks_[block].is_moving) return false;
    if (tier == TierKind::kDisk) return blocks_[block].is_closed;
    return moves_in_memory_;
  }

  void settle_on_disk() {
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      const bool goes = blocks_[i].goes_to_disk && places_[i] != BlockPlace::kDisk;
      if (goes && may_lie_in(i, TierKind::kDisk) && free(TierKind::kDisk) >= blocks_[i].bytes) {
        move(i, BlockPlace::kDisk);
      }
    }
  }

  // What lies below its place comes back where there is room: keys first, the newest first, and
  // values from the disk to where no key is missing.
  void lift() {
    if (used_[TierKind::kCxl] + used_[TierKind::kDisk] == 0) return;
    for (const TierKind tier : {TierKind::kDram, TierKind::kCxl}) {
      if (lift_to(tier, KvSide::kKeys)) lift_to(tier, KvSide::kValues);
    }
  }

  // Whether none of that side lies below the tier any more.
  bool lift_to(TierKind tier, KvSide side) {
    bool is_done = true;
    for (std::size_t i = blocks_.size(); i-- > 0;) {
      const bool is_below =
          places_[i] == BlockPlace::kDisk ||
          (places_[i] == BlockPlace::kCxl && tier == TierKind::kDram && side == KvSide::kKeys);
      if (blocks_[i].id.side != side || !is_below || blocks_[i].goes_to_disk) continue;
      if (blocks_[i].is_moving) {
        is_done = false;
        continue;
      }
      if (free(tier) >= blocks_[i].bytes + rule_.low_water) {
        move(i, place_in(tier));
      } else {
        is_done = false;
      }
    }
    return is_done;
  }

  void keep_low_water() {
    if (rule_.room[TierKind::kCxl] + rule_.room[TierKind::kDisk] == 0) return;
    const bool has_disk = rule_.room[TierKind::kDisk] > 0;
    for (const TierKind tier : {TierKind::kCxl, TierKind::kDram}) {
      const bool is_last = tier == TierKind::kCxl && !has_disk;
      if (is_last || rule_.room[tier] < rule_.low_water) continue;
      while (free(tier) < rule_.low_water && push_down_ahead(tier)) {
      }
    }
  }

  // Nobody needs the place yet: no key goes for it while a value is there, even one that cannot.
  bool push_down_ahead(TierKind tier) {
    if (push_down_from(tier, KvSide::kValues)) return true;
    for (std::size_t i = 0; i < blocks_.size(); ++i) {
      if (blocks_[i].id.side == KvSide::kValues && lies_in(i, tier)) return false;
    }
    return push_down_from(tier, KvSide::kKeys);
  }

  void move(std::size_t block, BlockPlace to) {
    decision_.moves.push_back({block, places_[block], to});
    used_.add(places_[block], -blocks_[block].bytes);
    used_.add(to, blocks_[block].bytes);
    places_[block] = to;
  }

  const PlacementRule& rule_;
  std::span<const TierBlock> blocks_;
  std::vector<BlockPlace> places_;
  TierBytes used_;
  bool moves_in_memory_ = true;
  std::int64_t growing_ = 0;  ///< bytes of new blocks that have no place yet
  PlacementDecision decision_;
};

}  // namespace

PlacementDecision place_blocks(const PlacementRule& rule,
                               std::span<const TierBlock> blocks,
                               std::span<const NewBlock> growth) {
  return Placing(rule, blocks).decide(growth);
}

std::int64_t low_water_bytes(const TierBytes& room,
                             std::int64_t num_requests,
                             std::int64_t key_block_bytes) {
  if (room[TierKind::kCxl] + room[TierKind::kDisk] == 0) return 0;
  return std::min(num_requests * key_block_bytes, room[TierKind::kDram] / 8);
}

}  // namespace hybridgen
