// SPDX-License-Identifier: Apache-2.0
#include "kvcache/tier_blocks.h"

#include <algorithm>
#include <numeric>

namespace hybridgen {

std::string_view name_of(BlockPlace place) {
  switch (place) {
    case BlockPlace::kDram:
      return "dram";
    case BlockPlace::kCxl:
      return "cxl";
    case BlockPlace::kInterleaved:
      return "dram and cxl by turns";
    case BlockPlace::kDisk:
      break;
  }
  return "disk";
}

std::int64_t tier_block_tokens(std::int64_t row_bytes, std::int64_t page_bytes) {
  const std::int64_t bytes = kTierBlockTokens * row_bytes;
  return kTierBlockTokens * (page_bytes / std::gcd(bytes, page_bytes));
}

void TierBytes::add(BlockPlace place, std::int64_t bytes) {
  TierBytes& self = *this;
  switch (place) {
    case BlockPlace::kDram:
      self[TierKind::kDram] += bytes;
      break;
    case BlockPlace::kCxl:
      self[TierKind::kCxl] += bytes;
      break;
    case BlockPlace::kInterleaved:
      self[TierKind::kDram] += bytes - bytes / 2;
      self[TierKind::kCxl] += bytes / 2;
      break;
    case BlockPlace::kDisk:
      self[TierKind::kDisk] += bytes;
      break;
  }
}

void TierLedger::add(const TierBlock& block) {
  ++num_changes_;
  blocks_.push_back(block);
  bytes_[static_cast<std::size_t>(block.id.side)].add(block.place, block.bytes);
}

void TierLedger::move(std::size_t index, BlockPlace to) {
  ++num_changes_;
  TierBlock& block = blocks_[index];
  TierBytes& bytes = bytes_[static_cast<std::size_t>(block.id.side)];
  bytes.add(block.place, -block.bytes);
  bytes.add(to, block.bytes);
  block.place = to;
}

void TierLedger::close_before(std::int64_t request, KvSide side, std::int64_t index) {
  for (TierBlock& block : blocks_) {
    if (block.id.request == request && block.id.side == side && block.id.index < index) {
      block.is_closed = true;
    }
  }
}

void TierLedger::forget(std::int64_t request) {
  ++num_changes_;
  std::erase_if(blocks_, [&](const TierBlock& block) {
    if (block.id.request != request) return false;
    bytes_[static_cast<std::size_t>(block.id.side)].add(block.place, -block.bytes);
    return true;
  });
}

std::size_t TierLedger::find(const BlockId& id) const {
  const auto found = std::ranges::find(blocks_, id, &TierBlock::id);
  return static_cast<std::size_t>(found - blocks_.begin());
}

void TierLedger::keep_first(std::size_t count) {
  ++num_changes_;
  for (; blocks_.size() > count; blocks_.pop_back()) {
    const TierBlock& block = blocks_.back();
    bytes_[static_cast<std::size_t>(block.id.side)].add(block.place, -block.bytes);
  }
}

}  // namespace hybridgen
