// SPDX-License-Identifier: Apache-2.0
// What the requests of an engine hold of the host tiers for their keys and values. Where these lie
// is decided as they come, so what a request needs is a sum over all tiers, and what each tier has
// of it is the engine's.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>

#include "kvcache/tier_blocks.h"
#include "memory/budgets.h"

namespace hybridgen {

bool has_lower_tiers(const Budgets& budgets);
/// What a request holds beyond its own bytes where there are tiers below DRAM: their ends, which
/// are too small for a block.
std::int64_t slack_bytes(const Budgets& budgets, std::int64_t largest_block_bytes);
/// Bytes that all host tiers have, whoever uses them.
std::int64_t host_capacity(const Budgets& budgets);

/// Used by one thread. The budgets must outlive it.
class KvRoom {
 public:
  /// `halves`: between DRAM and CXL memory, as far as both have room; else the fastest first.
  KvRoom(Budgets& budgets, bool halves) : budgets_(budgets), halves_(halves) {}

  bool has_lower_tiers() const { return hybridgen::has_lower_tiers(budgets_); }

  /// What blocks may take, by tier: what was promised to requests in all, or, for a while, more.
  TierBytes room() const;

  /// What would be held, were `kv_bytes` more promised and `dram_bytes` of DRAM given to others: of
  /// requests that asked for the disk what `open` says on it, as far as it has room, and for one
  /// of them at a time memory to grow in; of all else as much as can be in the fastest tiers.
  /// Nothing: there is not so much.
  std::optional<TierBytes> with(std::int64_t kv_bytes,
                                std::int64_t dram_bytes,
                                const OpenBytes& open = {}) const;

  /// Promises so much more and holds `wanted`, which with() gave, and what is `used` beyond it.
  /// OutOfMemoryError where another engine was faster.
  void promise(std::int64_t kv_bytes,
               const TierBytes& wanted,
               const TierBytes& used,
               const OpenBytes& open = {});
  /// Promises `kv_bytes` less and holds what is left of it in the fastest tiers that have room.
  void take_back(std::int64_t kv_bytes, const TierBytes& used, const OpenBytes& open = {});

  /// The tier turned out to have only what is `used` of it, whatever its budget says: more is held
  /// of the others.
  void shut(TierKind tier, const TierBytes& used);
  /// No tier is shut any more.
  void reopen() { most_ = {}; }
  bool is_shut() const;

 private:
  void hold(const TierBytes& bytes);
  std::int64_t largest_growth(const OpenBytes& more) const;
  TierBytes held() const;
  Reservation& in(TierKind tier) { return held_[index_of(tier)]; }
  const Reservation& in(TierKind tier) const { return held_[index_of(tier)]; }
  static std::size_t index_of(TierKind tier) {
    return static_cast<std::size_t>(tier) - static_cast<std::size_t>(TierKind::kDram);
  }

  Budgets& budgets_;
  bool halves_;
  std::int64_t promised_ = 0;
  std::int64_t to_disk_ = 0;             ///< of them
  std::multiset<std::int64_t> growing_;  ///< of the requests that asked for the disk
  std::array<Reservation, kHostTiers.size()> held_;
  std::array<std::optional<std::int64_t>, kHostTiers.size()> most_;  ///< of tiers that are shut
};

}  // namespace hybridgen
