// SPDX-License-Identifier: Apache-2.0
// A file's bytes as memory that can be read: the page cache itself, which every process of the
// machine that maps the same file shares. Nothing is copied.
//
// Memory that the disk cannot fill, or that lies beyond the end of a file that has become shorter,
// is SIGBUS to its reader. Who reads here fetches first, which tells; should pages have left the
// cache since and not come again, reading gives zeros, and the mapping counts that. Handlers for
// SIGBUS that others install later take this away until protect() puts ours before them.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <mutex>

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

  /// Returns 0 once these bytes can be read without waiting for a disk, which does not keep them
  /// there; else an errno, ENODATA if the file has become shorter. Costs next to nothing where they
  /// are there already.
  int fetch(std::int64_t begin, std::int64_t bytes);
  /// Whether these bytes, or all, can be read without waiting for a disk. No where fetch() fails.
  bool has(std::int64_t begin, std::int64_t bytes);
  bool is_there();
  /// Lets bus errors of mappings come here first, whoever has asked for them since.
  static void protect();
  /// Zeros that readers got go: who reads there asks the file again. An errno if that cannot be.
  int restore();

  /// Reads of this mapping that got zeros so far.
  std::int64_t zero_reads() const;
  /// The same of all mappings of the process.
  static std::int64_t all_zero_reads();
  /// What all_zero_reads() was after this mapping's latest; 0: there was none.
  std::int64_t latest_zero_read() const;

 private:
  bool is_there(std::int64_t begin, std::int64_t end);

  int file_;
  std::int64_t bytes_;
  DiskCalls& calls_;
  std::byte* data_ = nullptr;
  int error_;
  bool is_told_ = false;               ///< whether the system says what is there
  GuardedAddresses* guard_ = nullptr;  ///< of a list that only grows
  std::mutex restoring_;
  std::atomic<bool> is_restoring_ = false;
};

}  // namespace hybridgen
