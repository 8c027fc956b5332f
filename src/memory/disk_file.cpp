// SPDX-License-Identifier: Apache-2.0
#include "memory/disk_file.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <string_view>
#include <system_error>
#include <utility>

#include "hybridgen/core/error.h"
#include "memory/disk_leftovers.h"

namespace hybridgen {
namespace {

constexpr std::string_view kOption = "KVConfig(disk=hg.Disk(path, size))";
constexpr mode_t kOwnerOnly = S_IRUSR | S_IWUSR;
// A call that moves less than a page has failed for all that we can do; it may do so for a while.
constexpr int kMostIdleCalls = 100;

std::string text_of(int error) { return std::generic_category().message(error); }

std::string human(std::int64_t bytes) { return human_bytes(static_cast<double>(bytes)); }

bool is_full(int error) { return error == ENOSPC || error == EDQUOT; }

/// How a file system without unnamed files answers (open(2)); a kernel without them opens a folder.
bool has_no_unnamed_files(int error) {
  return error == EOPNOTSUPP || error == EISDIR || error == ENOENT || error == ENOSYS;
}

}  // namespace

DiskSlot::DiskSlot(DiskSlot&& other) noexcept
    : file_(std::exchange(other.file_, nullptr)), extents_(std::move(other.extents_)) {}

DiskSlot& DiskSlot::operator=(DiskSlot&& other) noexcept {
  DiskSlot taken(std::move(other));
  std::swap(file_, taken.file_);
  std::swap(extents_, taken.extents_);
  return *this;
}

DiskSlot::~DiskSlot() {
  if (file_ != nullptr) file_->give_back(extents_);
}

std::int64_t DiskSlot::size_bytes() const {
  std::int64_t bytes = 0;
  for (const FileExtent& extent : extents_) bytes += extent.bytes;
  return bytes;
}

void DiskSlot::append_ranges(std::int64_t begin,
                             std::int64_t bytes,
                             std::byte* memory,
                             std::vector<DiskRange>& ranges) const {
  HYBRIDGEN_DCHECK(begin >= 0 && begin + bytes <= size_bytes());
  for (const FileExtent& extent : extents_) {
    if (bytes == 0) return;
    if (begin < extent.bytes) {
      const std::int64_t part = std::min(bytes, extent.bytes - begin);
      ranges.push_back({.memory = memory, .offset = extent.offset + begin, .bytes = part});
      memory += part;
      bytes -= part;
      begin = 0;
    } else {
      begin -= extent.bytes;
    }
  }
}

void check_disk_room(const std::string& folder, std::int64_t capacity_bytes, DiskCalls& calls) {
  const std::int64_t free = calls.free_bytes(folder);
  if (free < 0) {
    throw ConfigError(message("[disk tier] path is ",
                              folder,
                              ": ",
                              text_of(static_cast<int>(-free)),
                              "; allowed: a folder that exists; correct ",
                              kOption));
  }
  if (free < capacity_bytes) {
    throw ConfigError(message("[disk tier] size is ",
                              human(capacity_bytes),
                              "; allowed: up to the ",
                              human(free),
                              " that the file system of ",
                              folder,
                              " has free; correct ",
                              kOption));
  }
}

DiskFile::DiskFile(std::string folder,
                   std::int64_t capacity_bytes,
                   DiskCalls& calls,
                   std::int64_t step_bytes)
    : folder_(std::move(folder)),
      capacity_bytes_(capacity_bytes / kDiskPageBytes * kDiskPageBytes),
      step_bytes_(round_up_to_disk_page(std::max<std::int64_t>(step_bytes, 1))),
      calls_(calls) {
  if (capacity_bytes_ < kDiskPageBytes) {
    throw ConfigError(message("[disk tier] size is ",
                              capacity_bytes,
                              " bytes; allowed: >= ",
                              kDiskPageBytes,
                              "; correct ",
                              kOption));
  }
  sweep_disk_leftovers(folder_, calls_);
  check_disk_room(folder_, capacity_bytes_, calls_);
  file_ = open_with(O_DIRECT);
  if (file_ == -EINVAL) {
    is_direct_ = false;
    file_ = open_with(0);
  }
  if (file_ < 0) {
    throw ConfigError(message("[disk tier] path is ",
                              folder_,
                              ", where no file can be made: ",
                              text_of(-file_),
                              "; allowed: a folder that this process may write to; correct ",
                              kOption));
  }
  try {
    grow_to(std::min(step_bytes_, capacity_bytes_));
    check_direct();
  } catch (...) {
    calls_.close(file_);
    throw;
  }
}

DiskFile::~DiskFile() { calls_.close(file_); }

int DiskFile::open_with(int more_flags) {
  constexpr int kFlags = O_RDWR | O_CLOEXEC;
  const int file = open_in_folder(kFlags | more_flags | O_TMPFILE);
  if (file >= 0 || !has_no_unnamed_files(-file)) return file;
  is_unnamed_ = false;
  return open_in_folder(kFlags | more_flags | O_CREAT | O_EXCL);
}

int DiskFile::open_in_folder(int flags) {
  const bool is_unnamed = (flags & O_TMPFILE) == O_TMPFILE;
  const std::string path = is_unnamed ? folder_ : folder_ + "/" + new_disk_file_name();
  int file = -EINTR;
  while (file == -EINTR) file = calls_.open(path, flags, kOwnerOnly);
  if (is_unnamed) return file;
  if (file == -EEXIST) return file;  // somebody else's
  // Also where opening failed: with O_DIRECT the file may have been made before it was refused.
  const int error = calls_.unlink(path);
  if (file >= 0 && error < 0 && error != -ENOENT) {
    calls_.close(file);
    return error;
  }
  return file;
}

// Some file systems take the flag when they open a file, and refuse what comes then.
void DiskFile::check_direct() {
  if (!is_direct_) return;
  struct alignas(kDiskPageBytes) Page {
    std::array<std::byte, kDiskPageBytes> bytes{};
  };
  Page page;
  const iovec all{.iov_base = page.bytes.data(), .iov_len = page.bytes.size()};
  std::int64_t moved = -EINTR;
  while (moved == -EINTR) moved = calls_.write(file_, {&all, 1}, 0);
  if (moved >= 0) {
    moved = -EINTR;
    while (moved == -EINTR) moved = calls_.read(file_, {&all, 1}, 0);
  }
  if (moved >= 0) return;  // how much of a page says nothing; transfers see to that
  if (moved != -EINVAL) {
    fail("trying it out failed at", 0, kDiskPageBytes, static_cast<int>(-moved));
  }
  if (const int error = calls_.set_flags(file_, 0); error < 0) {
    fail("leaving O_DIRECT failed at", 0, kDiskPageBytes, -error);
  }
  is_direct_ = false;
}

int DiskFile::reserve(std::int64_t offset, std::int64_t bytes) {
  if (!is_reserved_) return 0;
  int error = -EINTR;
  while (error == -EINTR) error = calls_.reserve(file_, offset, bytes);
  if (error == -EOPNOTSUPP || error == -ENOSYS || error == -EINVAL) {
    is_reserved_ = false;  // then a write says that the disk is full
    return 0;
  }
  return error;
}

// Of a full disk takes what is needed, if not the whole step.
void DiskFile::grow_to(std::int64_t size) {
  const std::int64_t old_size = extents_.size_bytes();
  const std::int64_t steps = (size - old_size + step_bytes_ - 1) / step_bytes_;
  std::int64_t more = std::min(steps * step_bytes_, capacity_bytes_ - old_size);
  int error = reserve(old_size, more);
  if (is_full(-error) && more > size - old_size) {
    more = size - old_size;
    error = reserve(old_size, more);
  }
  if (error < 0) fail("could not grow by", old_size, more, -error);
  extents_.grow(more);
}

DiskSlot DiskFile::take(std::int64_t bytes) {
  const std::int64_t wanted = round_up_to_disk_page(bytes);
  const std::scoped_lock lock(mutex_);
  const std::int64_t missing = wanted - extents_.free_bytes();
  if (extents_.size_bytes() + missing > capacity_bytes_) {
    throw OutOfMemoryError(
        message("[disk tier] wants ",
                human(wanted),
                ", but only ",
                human(capacity_bytes_ - (extents_.size_bytes() - extents_.free_bytes())),
                " of ",
                human(capacity_bytes_),
                " in ",
                folder_,
                " are free; raise the size in ",
                kOption,
                " or run fewer or shorter requests at a time"));
  }
  if (missing > 0) grow_to(extents_.size_bytes() + missing);
  return {this, extents_.take(wanted)};
}

std::int64_t DiskFile::taken_bytes() const {
  const std::scoped_lock lock(mutex_);
  return extents_.size_bytes() - extents_.free_bytes();
}

void DiskFile::give_back(std::span<const FileExtent> extents) noexcept {
  const std::scoped_lock lock(mutex_);
  extents_.give_back(extents);
}

void DiskFile::read(std::span<const DiskRange> ranges) { transfer(ranges, /*is_write=*/false); }

void DiskFile::write(std::span<const DiskRange> ranges) { transfer(ranges, /*is_write=*/true); }

void DiskFile::transfer(std::span<const DiskRange> ranges, bool is_write) {
  if (ranges.empty()) return;
  std::vector<iovec> vectors;
  vectors.reserve(ranges.size());
  std::int64_t missing = 0;
  for (const DiskRange& range : ranges) {
    HYBRIDGEN_DCHECK(range.offset == ranges.front().offset + missing);
    vectors.push_back({.iov_base = range.memory, .iov_len = static_cast<std::size_t>(range.bytes)});
    missing += range.bytes;
  }
  const char* const what = is_write ? "could not write" : "could not read";
  const std::int64_t begin = ranges.front().offset;
  const std::int64_t bytes = missing;
  std::int64_t offset = begin;
  std::span<iovec> left = vectors;
  for (int idle_calls = 0; missing > 0;) {
    std::int64_t moved =
        is_write ? calls_.write(file_, left, offset) : calls_.read(file_, left, offset);
    if (moved == -EINTR) continue;
    if (moved < 0) fail(what, offset, missing, static_cast<int>(-moved));
    if (is_direct_) moved = moved / kDiskPageBytes * kDiskPageBytes;  // the next one is aligned too
    if (moved == 0 && ++idle_calls == kMostIdleCalls) fail(what, offset, missing, EIO);
    left = drop_front(left, moved);
    offset += moved;
    missing -= moved;
  }
  if (is_direct_) return;
  // A page that is not on the disk yet cannot be forgotten.
  if (const int error = is_write ? calls_.flush(file_, begin, bytes) : 0; error < 0) {
    fail(what, begin, bytes, -error);
  }
  static_cast<void>(calls_.forget(file_, begin, bytes));  // advice only
}

void DiskFile::fail(const char* what, std::int64_t offset, std::int64_t bytes, int error) const {
  const std::string text = message("[disk tier] the file in ",
                                   folder_,
                                   ' ',
                                   what,
                                   ' ',
                                   bytes,
                                   " bytes at ",
                                   offset,
                                   ": ",
                                   text_of(error),
                                   "; allowed: a disk that has room and works; make room there or "
                                   "name another folder in ",
                                   kOption);
  if (is_full(error)) throw OutOfMemoryError(text);
  throw DeviceError(text);
}

}  // namespace hybridgen
