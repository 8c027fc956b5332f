// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_room.h"

#include <algorithm>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

TierBytes larger_of(const TierBytes& a, const TierBytes& b) {
  TierBytes larger;
  for (const TierKind tier : kHostTiers) larger[tier] = std::max(a[tier], b[tier]);
  return larger;
}

}  // namespace

bool has_lower_tiers(const Budgets& budgets) {
  return budgets.has(TierKind::kCxl) || budgets.has(TierKind::kDisk);
}

std::int64_t slack_bytes(const Budgets& budgets, std::int64_t largest_block_bytes) {
  return has_lower_tiers(budgets)
             ? static_cast<std::int64_t>(kHostTiers.size()) * largest_block_bytes
             : 0;
}

std::int64_t host_capacity(const Budgets& budgets) {
  std::int64_t bytes = 0;
  for (const TierKind tier : kHostTiers) {
    if (budgets.has(tier)) bytes += budgets[tier].capacity_bytes();
  }
  return bytes;
}

TierBytes KvRoom::held() const {
  TierBytes bytes;
  for (const TierKind tier : kHostTiers) bytes[tier] = in(tier).bytes();
  return bytes;
}

TierBytes KvRoom::room() const {
  TierBytes bytes = held();
  for (const TierKind tier : kHostTiers) {
    bytes[tier] = std::min(bytes[tier], most_[index_of(tier)].value_or(bytes[tier]));
  }
  return bytes;
}

void KvRoom::shut(TierKind tier, const TierBytes& used) {
  most_[index_of(tier)] = used[tier];
  take_back(0, used);
}

bool KvRoom::is_shut() const {
  return std::ranges::any_of(most_, [](const auto& most) { return most.has_value(); });
}

std::int64_t KvRoom::largest_growth(const OpenBytes& more) const {
  const std::int64_t growing = more.to_disk > 0 ? more.growing : 0;
  return growing_.empty() ? growing : std::max(growing, *growing_.rbegin());
}

std::optional<TierBytes> KvRoom::with(std::int64_t kv_bytes,
                                      std::int64_t dram_bytes,
                                      const OpenBytes& open) const {
  TierBytes room;
  for (const TierKind tier : kHostTiers) {
    if (!budgets_.has(tier)) continue;
    // Others of this process may have taken more than this engine was to have.
    room[tier] = std::max<std::int64_t>(0, budgets_[tier].free_bytes()) + in(tier).bytes();
    if (tier == TierKind::kDram) room[tier] -= dram_bytes;
    if (room[tier] < 0) return std::nullopt;
    room[tier] = std::min(room[tier], most_[index_of(tier)].value_or(room[tier]));
  }
  std::int64_t left = promised_ + kv_bytes + largest_growth(open);
  TierBytes wanted;
  wanted[TierKind::kDisk] = std::min({to_disk_ + open.to_disk, left, room[TierKind::kDisk]});
  left -= wanted[TierKind::kDisk];
  if (halves_) {
    wanted[TierKind::kCxl] = std::min(left / 2, room[TierKind::kCxl]);
    left -= wanted[TierKind::kCxl];
  }
  for (const TierKind tier : kHostTiers) {
    const std::int64_t more = std::min(left, room[tier] - wanted[tier]);
    wanted[tier] += more;
    left -= more;
  }
  return left == 0 ? std::optional(wanted) : std::nullopt;
}

void KvRoom::hold(const TierBytes& bytes) {
  const TierBytes before = held();
  for (const TierKind tier : kHostTiers) {  // what may fail first
    const std::int64_t more = bytes[tier] - before[tier];
    if (more <= 0) continue;
    try {
      in(tier).add(budgets_[tier].reserve(more, "admit request"));
    } catch (...) {
      for (const TierKind other : kHostTiers) {
        in(other).give_back(std::max<std::int64_t>(0, in(other).bytes() - before[other]));
      }
      throw;
    }
  }
  for (const TierKind tier : kHostTiers) {
    in(tier).give_back(std::max<std::int64_t>(0, in(tier).bytes() - bytes[tier]));
  }
}

void KvRoom::promise(std::int64_t kv_bytes,
                     const TierBytes& wanted,
                     const TierBytes& used,
                     const OpenBytes& open) {
  hold(larger_of(wanted, used));
  promised_ += kv_bytes;
  to_disk_ += open.to_disk;
  if (open.to_disk > 0) growing_.insert(open.growing);
}

void KvRoom::take_back(std::int64_t kv_bytes, const TierBytes& used, const OpenBytes& open) {
  promised_ -= kv_bytes;
  to_disk_ -= open.to_disk;
  if (open.to_disk > 0) growing_.erase(growing_.find(open.growing));
  const std::optional<TierBytes> wanted = with(0, 0);
  if (!wanted.has_value()) return;
  try {
    hold(larger_of(*wanted, used));
  } catch (const OutOfMemoryError&) {
    return;  // another engine took some of it just now: what is held already will do
  }
}

}  // namespace hybridgen
