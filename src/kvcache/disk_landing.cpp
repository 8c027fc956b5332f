// SPDX-License-Identifier: Apache-2.0
#include "kvcache/disk_landing.h"

#include <algorithm>

#include "memory/disk_file.h"
#include "memory/huge_pages.h"

namespace hybridgen {

namespace {

constexpr auto kHuge = static_cast<std::int64_t>(kHugePageBytes);

}  // namespace

std::int64_t disk_unit_bytes(const KvMemory& memory, std::int64_t block) {
  const std::int64_t begin = block * memory.block_tokens();
  const std::int64_t tokens = std::min(memory.block_tokens(), memory.shape().capacity - begin);
  return round_up_to_disk_page(tokens * memory.shape().row_bytes);
}

DiskLanding::DiskLanding(const KvMemory& memory, const PagePlace& place)
    : place_(place),
      num_blocks_(memory.blocks_for(memory.shape().capacity)),
      unit_bytes_(disk_unit_bytes(memory, 0)),
      last_unit_bytes_(disk_unit_bytes(memory, num_blocks_ - 1)),
      block_bytes_(unit_bytes_ * memory.shape().num_kv_heads),
      memory_(static_cast<std::size_t>((num_blocks_ - 1) * block_bytes_ +
                                       last_unit_bytes_ * memory.shape().num_kv_heads)),
      is_taken_(static_cast<std::size_t>(num_blocks_)) {}

void DiskLanding::take(std::span<const std::int64_t> blocks) {
  std::vector<ByteRange> ranges;
  std::vector<std::int64_t> missing;
  for (const std::int64_t block : blocks) {
    if (is_taken_[static_cast<std::size_t>(block)] != 0) continue;
    missing.push_back(block);
    const auto begin = static_cast<std::size_t>(offset_of(block, 0));
    const std::size_t end =
        std::min(begin + static_cast<std::size_t>(block_bytes_), memory_.size_bytes());
    if (!ranges.empty() && ranges.back().begin + ranges.back().bytes == begin) {
      ranges.back().bytes += end - begin;
    } else {
      ranges.push_back({begin, end - begin});
    }
  }
  if (missing.empty()) return;
  for (const ByteRange& range : ranges) {
    const std::size_t first = (range.begin + kHugePageBytes - 1) / kHugePageBytes * kHugePageBytes;
    const std::size_t end = (range.begin + range.bytes) / kHugePageBytes * kHugePageBytes;
    if (first < end) memory_.join_from_first_touch({first, end - first});
  }
  memory_.take(ranges, place_, "read keys and values from the disk");
  for (const std::int64_t block : missing) is_taken_[static_cast<std::size_t>(block)] = 1;
  for (const std::int64_t block : missing) join_around(block);
}

// Of what came at several times: huge pages that no block without memory has a part of.
void DiskLanding::join_around(std::int64_t block) {
  const auto size = static_cast<std::int64_t>(memory_.size_bytes());
  const std::int64_t end = std::min((block + 1) * block_bytes_, size);
  for (std::int64_t at = block * block_bytes_ / kHuge * kHuge; at < end; at += kHuge) {
    if (at + kHuge > size) return;
    const auto first = is_taken_.begin() + at / block_bytes_;
    const auto last = is_taken_.begin() + (at + kHuge - 1) / block_bytes_ + 1;
    if (std::all_of(first, last, [](std::uint8_t taken) { return taken != 0; })) {
      memory_.join({static_cast<std::size_t>(at), kHugePageBytes});
    }
  }
}

}  // namespace hybridgen
