// SPDX-License-Identifier: Apache-2.0
#include "kvcache/kv_memory.h"

#include <algorithm>
#include <cstring>
#include <system_error>

#include "hybridgen/core/error.h"
#include "kvcache/tier_blocks.h"
#include "memory/huge_pages.h"

namespace hybridgen {
namespace {

constexpr auto kUnit = static_cast<std::int64_t>(kHugePageBytes);

std::int64_t page() { return static_cast<std::int64_t>(page_bytes()); }

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

std::int64_t bytes_per_head(const KvMemoryShape& shape) { return shape.capacity * shape.row_bytes; }

/// Where there is room for a huge page, no two heads have part of the same one.
std::int64_t stride_of(const KvMemoryShape& shape) {
  const std::int64_t bytes = bytes_per_head(shape);
  return round_up(bytes, bytes >= kUnit ? kUnit : page());
}

}  // namespace

KvMemory::KvMemory(const KvMemoryShape& shape)
    : shape_(shape),
      stride_(stride_of(shape)),
      block_tokens_(tier_block_tokens(shape.row_bytes, page())),
      memory_(static_cast<std::size_t>(shape.num_kv_heads * shape.num_layers * stride_)),
      pinned_(shape.pins) {
  // One rule for all addresses that its pages mostly follow, rather than one for every block.
  if (!shape_.place.nodes.empty()) memory_.prefer({0, memory_.size_bytes()}, shape_.place);
  for (const NumaPart& part : shape_.numa_parts) {
    PagePlace place = shape_.place;
    place.first = part.node;
    memory_.prefer({static_cast<std::size_t>(part.first_head * head_stride()),
                    static_cast<std::size_t>(part.num_heads * head_stride())},
                   place);
  }
}

std::int64_t KvMemory::grown_tokens() const {
  return std::min(num_blocks_ * block_tokens_, shape_.capacity);
}

std::int64_t KvMemory::blocks_for(std::int64_t tokens) const {
  return (std::min(tokens, shape_.capacity) + block_tokens_ - 1) / block_tokens_;
}

std::int64_t KvMemory::bytes_of(BlockRange blocks) const {
  const std::int64_t tokens = std::min(blocks.end * block_tokens_, shape_.capacity) -
                              std::min(blocks.begin * block_tokens_, shape_.capacity);
  return tokens * shape_.row_bytes * shape_.num_layers * shape_.num_kv_heads;
}

std::vector<ByteRange> KvMemory::ranges_of(BlockRange blocks,
                                           std::int64_t layer,
                                           std::int64_t first_head,
                                           std::int64_t num_heads) const {
  const std::int64_t block_bytes = block_tokens_ * shape_.row_bytes;
  const std::int64_t used = round_up(bytes_per_head(shape_), page());
  const std::int64_t begin = std::min(blocks.begin * block_bytes, used);
  const std::int64_t end = std::min(blocks.end * block_bytes, used);
  const std::int64_t first_layer = layer < 0 ? 0 : layer;
  const std::int64_t end_layer = layer < 0 ? shape_.num_layers : layer + 1;
  std::vector<ByteRange> ranges;
  for (std::int64_t g = first_head; g < first_head + num_heads; ++g) {
    for (std::int64_t l = first_layer; l < end_layer; ++l) {
      ranges.push_back({static_cast<std::size_t>(offset_of(l, g) + begin),
                        static_cast<std::size_t>(end - begin)});
    }
  }
  return ranges;
}

void KvMemory::grow(std::int64_t tokens, std::string_view operation) {
  grow(tokens, shape_.place, operation);
}

void KvMemory::grow(std::int64_t tokens, const PagePlace& place, std::string_view operation) {
  const BlockRange coming{num_blocks_, blocks_for(tokens)};
  if (coming.end <= coming.begin) return;
  take(coming, place, operation);
  num_blocks_ = coming.end;
  // Twice as fast as units fill, so that none is left behind, and no step waits for many. Pinned
  // pages cannot be joined: of theirs only those are huge that a first growth fills.
  if (pinned_.is_empty()) join_full_units(2 * (bytes_of(coming) / kUnit) + 1);
  try {
    pinned_.pin(spans_of(coming));
  } catch (...) {
    memory_.give_back(ranges_of(coming));
    num_blocks_ = coming.begin;
    throw;
  }
}

void KvMemory::take(BlockRange blocks,
                    const PagePlace& place,
                    std::string_view operation,
                    std::int64_t layer) {
  if (place.nodes.empty()) {  // a decode step may not allocate
    const std::int64_t bytes = bytes_of(blocks);
    memory_.require_free(layer < 0 ? bytes : bytes / shape_.num_layers, place, operation);
    return;
  }
  if (place.tier != TierKind::kDram || shape_.numa_parts.empty()) {
    memory_.take(ranges_of(blocks, layer), place, operation);
    return;
  }
  std::size_t taken = 0;
  try {
    for (; taken < shape_.numa_parts.size(); ++taken) {
      const NumaPart& part = shape_.numa_parts[taken];
      PagePlace own = place;
      own.first = part.node;
      memory_.take(ranges_of(blocks, layer, part.first_head, part.num_heads), own, operation);
    }
  } catch (...) {
    for (std::size_t i = 0; i < taken; ++i) {
      const NumaPart& part = shape_.numa_parts[i];
      memory_.give_back(ranges_of(blocks, layer, part.first_head, part.num_heads));
    }
    throw;
  }
}

PageMove KvMemory::move(BlockRange blocks, const PagePlace& place) {
  const std::lock_guard<std::mutex> lock(*moving_);
  return memory_.move(ranges_of(blocks), place);
}

std::vector<PageSpan> KvMemory::spans_of(BlockRange blocks, std::int64_t layer) const {
  std::vector<PageSpan> spans;
  if (!pinned_.is_wanted()) return spans;
  for (const ByteRange& range : ranges_of(blocks, layer)) spans.push_back(memory_.span_of(range));
  return spans;
}

void KvMemory::bring_copies(BlockRange blocks, const PagePlace& place, bool contents) {
  if (beside_.size_bytes() == 0) beside_ = PlacedMemory(memory_.size_bytes());
  beside_.take(ranges_of(blocks), place, "move keys and values");
  if (contents) copy_beside(blocks);
}

void KvMemory::copy_beside(BlockRange blocks) {
  for (const ByteRange& range : ranges_of(blocks)) {
    std::memcpy(beside_.data() + range.begin, memory_.data() + range.begin, range.bytes);
  }
}

PageMove KvMemory::switch_to_copies(BlockRange blocks, const PagePlace& from, bool contents) {
  if (!contents) copy_beside(blocks);
  const std::vector<ByteRange> ranges = ranges_of(blocks);
  PageMove result;
  pinned_.unpin(spans_of(blocks));
  if (const int error = memory_.take_over(ranges, beside_); error != 0) {
    beside_.give_back(ranges);
    static_cast<void>(memory_.move(ranges, from));  // those before it, which are not pinned now
    result.left_bytes = bytes_of(blocks);
    result.why =
        message("putting pages into their places failed: ", std::generic_category().message(error));
  } else {
    result.moved_bytes = bytes_of(blocks);
  }
  pin_again(blocks);
  return result;
}

void KvMemory::pin_again(BlockRange blocks) noexcept {
  try {
    pinned_.pin(spans_of(blocks));
  } catch (...) {  // NOLINT(bugprone-empty-catch): it goes on without, as where nothing is pinned
  }
}

// Of single layers nothing is pinned: they come back from a disk, and are not back before all are.
void KvMemory::give_back(BlockRange blocks, std::int64_t layer) noexcept {
  if (layer < 0) pinned_.unpin(spans_of(blocks));
  memory_.give_back(ranges_of(blocks, layer));
}

PagesFound KvMemory::found() const { return memory_.found(ranges_of({0, num_blocks_})); }

// Units of 2 MiB of which seven eighths or more have come: unit k of every (layer, head), then unit
// k + 1, or, where they are smaller than that, all of them as soon as these are full.
std::int64_t KvMemory::full_units() const {
  const std::int64_t grown = grown_tokens() * shape_.row_bytes;
  if (stride_ % kUnit == 0) {
    return (grown + kUnit / 8) / kUnit * shape_.num_kv_heads * shape_.num_layers;
  }
  const bool is_full = grown >= stride_ - stride_ / 8;
  return is_full ? static_cast<std::int64_t>(memory_.size_bytes()) / kUnit : 0;
}

void KvMemory::join_full_units(std::int64_t at_most) {
  const std::int64_t end = std::min(full_units(), joined_units_ + at_most);
  if (joined_units_ >= end) return;
  const std::unique_lock<std::mutex> lock(*moving_, std::try_to_lock);
  if (!lock.owns_lock()) return;  // the next growth will
  const std::int64_t heads = shape_.num_kv_heads * shape_.num_layers;
  for (; joined_units_ < end; ++joined_units_) {
    const std::int64_t unit =
        stride_ % kUnit == 0 ? joined_units_ % heads * (stride_ / kUnit) + joined_units_ / heads
                             : joined_units_;
    // Where blocks lie on nodes of their own, a huge page must not carry some of them away.
    memory_.join({static_cast<std::size_t>(unit * kUnit), kHugePageBytes},
                 !shape_.place.nodes.empty());
  }
}

}  // namespace hybridgen
