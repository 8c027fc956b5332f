// SPDX-License-Identifier: Apache-2.0
#include "memory/file_extents.h"

#include <algorithm>
#include <iterator>

namespace hybridgen {

void FileExtents::grow(std::int64_t bytes) {
  const FileExtent grown{.offset = size_bytes_, .bytes = bytes};
  size_bytes_ += bytes;
  give_back({&grown, 1});
}

std::vector<FileExtent> FileExtents::take(std::int64_t bytes) {
  if (bytes > free_bytes_) return {};
  std::vector<FileExtent> taken;
  auto from =
      std::ranges::find_if(free_, [bytes](const auto& piece) { return piece.second >= bytes; });
  if (from == free_.end()) from = free_.begin();
  for (std::int64_t missing = bytes; missing > 0;) {
    const auto [offset, length] = *from;
    const std::int64_t part = std::min(length, missing);
    from = free_.erase(from);
    if (part < length) from = free_.emplace_hint(from, offset + part, length - part);
    taken.push_back({.offset = offset, .bytes = part});
    missing -= part;
  }
  free_bytes_ -= bytes;
  return taken;
}

void FileExtents::give_back(std::span<const FileExtent> extents) {
  for (const FileExtent& extent : extents) {
    auto next = free_.lower_bound(extent.offset);
    auto piece = free_.emplace_hint(next, extent.offset, extent.bytes);
    if (next != free_.end() && extent.offset + extent.bytes == next->first) {
      piece->second += next->second;
      free_.erase(next);
    }
    if (piece != free_.begin()) {
      const auto before = std::prev(piece);
      if (before->first + before->second == piece->first) {
        before->second += piece->second;
        free_.erase(piece);
      }
    }
    free_bytes_ += extent.bytes;
  }
}

}  // namespace hybridgen
