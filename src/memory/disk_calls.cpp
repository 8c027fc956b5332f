// SPDX-License-Identifier: Apache-2.0
#include "memory/disk_calls.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>

#include "memory/page_calls.h"

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif

namespace hybridgen {
namespace {

template <typename Value>
Value value_or_error(Value value) {
  return value < 0 ? static_cast<Value>(-errno) : value;
}

std::atomic<DiskCalls*> in_place{nullptr};

}  // namespace

int DiskCalls::open(const std::string& path, int flags, mode_t mode) {
  return value_or_error(::open(path.c_str(), flags, mode));
}

int DiskCalls::close(int file) { return value_or_error(::close(file)); }

int DiskCalls::unlink(const std::string& path) { return value_or_error(::unlink(path.c_str())); }

int DiskCalls::set_flags(int file, int flags) {
  return value_or_error(::fcntl(file, F_SETFL, flags));
}

int DiskCalls::reserve(int file, std::int64_t offset, std::int64_t bytes) {
  // Not posix_fallocate: where the file system cannot reserve, it would write every block.
  return value_or_error(::fallocate(file, 0, offset, bytes));
}

std::int64_t DiskCalls::free_bytes(const std::string& path) {
  struct statvfs system{};
  if (::statvfs(path.c_str(), &system) != 0) return -errno;
  return static_cast<std::int64_t>(system.f_bavail) * static_cast<std::int64_t>(system.f_frsize);
}

std::int64_t DiskCalls::read(int file, std::span<const iovec> to, std::int64_t offset) {
  return value_or_error(
      std::int64_t{::preadv(file, to.data(), static_cast<int>(to.size()), offset)});
}

std::int64_t DiskCalls::write(int file, std::span<const iovec> from, std::int64_t offset) {
  return value_or_error(
      std::int64_t{::pwritev(file, from.data(), static_cast<int>(from.size()), offset)});
}

int DiskCalls::flush(int file, std::int64_t offset, std::int64_t bytes) {
  constexpr unsigned kAll =
      SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER;
  return value_or_error(::sync_file_range(file, offset, bytes, kAll));
}

int DiskCalls::forget(int file, std::int64_t offset, std::int64_t bytes) {
  return -::posix_fadvise(file, offset, bytes, POSIX_FADV_DONTNEED);
}

int DiskCalls::map(int file, std::int64_t bytes, std::byte*& data) {
  const int flags = MAP_SHARED | (data == nullptr ? 0 : MAP_FIXED);
  void* const mapped = ::mmap(data, static_cast<std::size_t>(bytes), PROT_READ, flags, file, 0);
  if (mapped == MAP_FAILED) return -errno;
  data = static_cast<std::byte*>(mapped);
  // Advice: whole huge pages are read at a time, where the file system has them.
  static_cast<void>(::madvise(mapped, static_cast<std::size_t>(bytes), MADV_HUGEPAGE));
  return 0;
}

int DiskCalls::unmap(std::byte* data, std::int64_t bytes) {
  return value_or_error(::munmap(data, static_cast<std::size_t>(bytes)));
}

int DiskCalls::fetch(std::byte* data, std::int64_t bytes) {
  if (::madvise(data, static_cast<std::size_t>(bytes), MADV_POPULATE_READ) == 0) return 0;
  if (errno != EINVAL) return -errno;
  // A kernel before 5.14: each page is read, and errors show as zeros (file_mapping.h).
  for (std::int64_t at = 0; at < bytes; at += static_cast<std::int64_t>(page_bytes())) {
    static_cast<void>(*const_cast<volatile std::byte*>(data + at));
  }
  return 0;
}

int DiskCalls::find_cached(std::byte* data, std::size_t bytes, unsigned char* pages) {
  return value_or_error(::mincore(data, bytes, pages));
}

std::span<iovec> drop_front(std::span<iovec> vectors, std::int64_t bytes) {
  while (bytes > 0) {
    iovec& first = vectors.front();
    const std::int64_t part = std::min(bytes, static_cast<std::int64_t>(first.iov_len));
    first.iov_base = static_cast<std::byte*>(first.iov_base) + part;
    first.iov_len -= static_cast<std::size_t>(part);
    bytes -= part;
    if (first.iov_len == 0) vectors = vectors.subspan(1);
  }
  return vectors;
}

DiskCalls& disk_calls() {
  static DiskCalls calls;
  DiskCalls* const instead = in_place.load();
  return instead == nullptr ? calls : *instead;
}

DiskCallsForTest::DiskCallsForTest(DiskCalls& calls) : before_(in_place.exchange(&calls)) {}

DiskCallsForTest::~DiskCallsForTest() { in_place.store(before_); }

}  // namespace hybridgen
