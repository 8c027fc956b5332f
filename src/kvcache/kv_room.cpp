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

bool KvRoom::has_lower_tiers() const {
  return budgets_.has(TierKind::kCxl) || budgets_.has(TierKind::kDisk);
}

std::int64_t KvRoom::capacity() const {
  std::int64_t bytes = 0;
  for (const TierKind tier : kHostTiers) {
    if (budgets_.has(tier)) bytes += budgets_[tier].capacity_bytes();
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

std::optional<TierBytes> KvRoom::with(std::int64_t kv_bytes, std::int64_t dram_bytes) const {
  std::int64_t left = promised_ + kv_bytes;
  TierBytes wanted;
  for (const TierKind tier : kHostTiers) {
    if (!budgets_.has(tier)) continue;
    // Others of this process may have taken more than this engine was to have.
    std::int64_t room = std::max<std::int64_t>(0, budgets_[tier].free_bytes()) + in(tier).bytes();
    if (tier == TierKind::kDram) room -= dram_bytes;
    if (room < 0) return std::nullopt;
    room = std::min(room, most_[index_of(tier)].value_or(room));
    wanted[tier] = std::min(left, room);
    left -= wanted[tier];
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

void KvRoom::promise(std::int64_t kv_bytes, const TierBytes& wanted, const TierBytes& used) {
  hold(larger_of(wanted, used));
  promised_ += kv_bytes;
}

void KvRoom::take_back(std::int64_t kv_bytes, const TierBytes& used) {
  promised_ -= kv_bytes;
  const std::optional<TierBytes> wanted = with(0, 0);
  if (!wanted.has_value()) return;
  try {
    hold(larger_of(*wanted, used));
  } catch (const OutOfMemoryError&) {
    // Another engine took some of it just now: what is held already will do.
  }
}

}  // namespace hybridgen
