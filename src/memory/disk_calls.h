// SPDX-License-Identifier: Apache-2.0
// What the disk tier asks of the system. Tests replace single calls to make them fail.
#pragma once

#include <sys/types.h>
#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

namespace hybridgen {

/// Every call does what its name says of the kernel's; it returns the kernel's value, or -errno.
/// Thread-safe.
class DiskCalls {
 public:
  DiskCalls() = default;
  DiskCalls(const DiskCalls&) = delete;
  DiskCalls& operator=(const DiskCalls&) = delete;
  virtual ~DiskCalls() = default;

  virtual int open(const std::string& path, int flags, mode_t mode);
  virtual int close(int file);
  virtual int unlink(const std::string& path);
  /// fcntl(F_SETFL).
  virtual int set_flags(int file, int flags);
  /// fallocate(2): bytes [offset, offset + bytes) are the file's own from then on.
  virtual int reserve(int file, std::int64_t offset, std::int64_t bytes);
  /// Bytes that this user may still write to the file system of `path`.
  virtual std::int64_t free_bytes(const std::string& path);
  virtual std::int64_t read(int file, std::span<const iovec> to, std::int64_t offset);
  virtual std::int64_t write(int file, std::span<const iovec> from, std::int64_t offset);
  /// Ends when bytes that were written through the page cache are on the disk (sync_file_range).
  virtual int flush(int file, std::int64_t offset, std::int64_t bytes);
  /// The page cache need not keep these bytes (posix_fadvise, POSIX_FADV_DONTNEED).
  virtual int forget(int file, std::int64_t offset, std::int64_t bytes);
  /// Maps the first bytes of a file for reading: at `data`, in place of what is there, or anywhere
  /// if it is null.
  virtual int map(int file, std::int64_t bytes, std::byte*& data);
  virtual int unmap(std::byte* data, std::int64_t bytes);
  /// Ends when mapped bytes, from a page's boundary on, can be read without waiting for the disk.
  virtual int fetch(std::byte* data, std::int64_t bytes);
  /// Bit 0 of each of `pages` says whether the page cache has that page of mapped bytes.
  virtual int find_cached(std::byte* data, std::size_t bytes, unsigned char* pages);
};

/// Forgets the first `bytes` of what `vectors` list, which a call has moved; returns the rest.
std::span<iovec> drop_front(std::span<iovec> vectors, std::int64_t bytes);

/// The kernel's own, or what a DiskCallsForTest has put in their place.
DiskCalls& disk_calls();

/// Stands in for the kernel's calls as long as it lives: for files that are opened from now on.
class DiskCallsForTest {
 public:
  explicit DiskCallsForTest(DiskCalls& calls);
  ~DiskCallsForTest();
  DiskCallsForTest(const DiskCallsForTest&) = delete;
  DiskCallsForTest& operator=(const DiskCallsForTest&) = delete;

 private:
  DiskCalls* before_;
};

}  // namespace hybridgen
