// SPDX-License-Identifier: Apache-2.0
// Which bytes of a file are taken and which are free. Decides only; touches no file.
#pragma once

#include <cstdint>
#include <map>
#include <span>
#include <vector>

namespace hybridgen {

/// Bytes [offset, offset + bytes) of a file.
struct FileExtent {
  std::int64_t offset = 0;
  std::int64_t bytes = 0;
  friend bool operator==(const FileExtent&, const FileExtent&) = default;
};

/// Used by one thread at a time.
class FileExtents {
 public:
  /// What the file has, free or taken: [0, size_bytes()).
  std::int64_t size_bytes() const { return size_bytes_; }
  std::int64_t free_bytes() const { return free_bytes_; }

  /// The file became longer by `bytes`, which are free.
  void grow(std::int64_t bytes);
  /// `bytes` > 0 that were free: in one piece, the first that is long enough, or else in several
  /// from the start on, so that what is free can always be had. Empty if less is free.
  std::vector<FileExtent> take(std::int64_t bytes);
  /// What take() gave, or parts of it.
  void give_back(std::span<const FileExtent> extents);

 private:
  std::int64_t size_bytes_ = 0;
  std::int64_t free_bytes_ = 0;
  std::map<std::int64_t, std::int64_t> free_;  ///< offset -> bytes; neighbours are joined
};

}  // namespace hybridgen
