// SPDX-License-Identifier: Apache-2.0
// A file's bytes as memory that can be read: the page cache itself, which every process of the
// machine that maps the same file shares. Nothing is copied.
//
// Memory that the disk cannot fill, or that lies beyond the end of a file that has become shorter,
// is SIGBUS to its reader. Who reads here fetches first, which tells; should pages have left the
// cache since and not come again, reading gives zeros, and the mapping counts that.
#pragma once

#include <cstddef>
#include <cstdint>

#include "memory/disk_calls.h"

namespace hybridgen {

/// Addresses whose readers get zeros instead of SIGBUS, see file_mapping.cpp.
struct GuardedAddresses;

/// Thread-safe.
class FileMapping {
 public:
  /// Of the first `bytes` > 0 of a file that stays open as long as this lives, as `calls` do. A
  /// mapping that cannot be had is in error().
  FileMapping(int file, std::int64_t bytes, DiskCalls& calls);
  ~FileMapping();
  FileMapping(const FileMapping&) = delete;
  FileMapping& operator=(const FileMapping&) = delete;

  /// An errno; 0: it is there.
  int error() const { return error_; }
  /// Read only, on a page's boundary.
  std::byte* data() const { return data_; }
  std::int64_t size_bytes() const { return bytes_; }

  /// Returns once these bytes can be read without waiting for a disk, which does not keep them
  /// there; else an errno.
  int fetch(std::int64_t begin, std::int64_t bytes);
  /// This process has no use for these bytes for now; the page cache keeps them as it likes.
  void forget(std::int64_t begin, std::int64_t bytes) noexcept;

  /// Reads of this mapping that got zeros so far.
  std::int64_t zero_reads() const;
  /// The same of all mappings of the process.
  static std::int64_t all_zero_reads();

 private:
  int file_;
  std::int64_t bytes_;
  DiskCalls& calls_;
  std::byte* data_ = nullptr;
  int error_ = 0;
  GuardedAddresses* guard_ = nullptr;  ///< of a list that only grows
};

}  // namespace hybridgen
