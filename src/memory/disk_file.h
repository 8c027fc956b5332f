// SPDX-License-Identifier: Apache-2.0
// The file that a disk tier lives in: it has no name, so that it ends with the process, however
// that ends. Hands out slots and grows as they are needed.
//
// Read and written past the page cache (O_DIRECT) where the file system takes that: whole pages,
// from and to whole pages of memory. Elsewhere through the cache, which is told to forget.
#pragma once

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <span>
#include <string>
#include <vector>

#include "memory/disk_calls.h"
#include "memory/file_extents.h"

namespace hybridgen {

/// What offsets, sizes and addresses of disk transfers are multiples of.
inline constexpr std::int64_t kDiskPageBytes = 4096;
inline constexpr std::int64_t round_up_to_disk_page(std::int64_t bytes) {
  return (bytes + kDiskPageBytes - 1) / kDiskPageBytes * kDiskPageBytes;
}

/// Memory and the place in the file that it is read from or written to.
struct DiskRange {
  std::byte* memory = nullptr;
  std::int64_t offset = 0;
  std::int64_t bytes = 0;
};

/// What transfers read and write. Thread-safe.
class DiskTarget {
 public:
  virtual ~DiskTarget() = default;
  /// Move all bytes of `ranges`, which follow each other, to or from their memory. DeviceError with
  /// path, place and the system's text.
  virtual void read(std::span<const DiskRange> ranges) = 0;
  virtual void write(std::span<const DiskRange> ranges) = 0;

 protected:
  DiskTarget() = default;
};

/// ConfigError for a folder that is none or whose file system has less room.
void check_disk_room(const std::string& folder,
                     std::int64_t capacity_bytes,
                     DiskCalls& calls = disk_calls());

class DiskFile;

/// Bytes of a file, given back with it. Movable; the file must outlive it.
class DiskSlot {
 public:
  DiskSlot() = default;
  DiskSlot(DiskSlot&& other) noexcept;
  DiskSlot& operator=(DiskSlot&& other) noexcept;
  ~DiskSlot();

  std::int64_t size_bytes() const;
  /// Appends where bytes [begin, begin + bytes) of the slot lie in the file: to or from `memory`.
  /// Whole pages, inside the slot.
  void append_ranges(std::int64_t begin,
                     std::int64_t bytes,
                     std::byte* memory,
                     std::vector<DiskRange>& ranges) const;

 private:
  friend class DiskFile;
  DiskSlot(DiskFile* file, std::vector<FileExtent> extents)
      : file_(file), extents_(std::move(extents)) {}
  DiskFile* file_ = nullptr;
  std::vector<FileExtent> extents_;
};

/// Thread-safe.
class DiskFile final : public DiskTarget {
 public:
  /// A file in `folder` that grows to `capacity_bytes` at most, in steps of `step_bytes`. First
  /// removes what ended processes left there (disk_leftovers.h). Throws ConfigError for a folder
  /// that is none, may not be written to or whose file system has less room, DeviceError for what
  /// else the system refuses. `calls` must outlive it.
  DiskFile(std::string folder,
           std::int64_t capacity_bytes,
           DiskCalls& calls = disk_calls(),
           std::int64_t step_bytes = std::int64_t{64} << 20);
  DiskFile(const DiskFile&) = delete;
  DiskFile& operator=(const DiskFile&) = delete;
  ~DiskFile() override;

  const std::string& folder() const { return folder_; }
  std::int64_t capacity_bytes() const { return capacity_bytes_; }
  /// Past the page cache.
  bool is_direct() const { return is_direct_; }
  /// Whether the file system had a file without a name; else it had one for a moment.
  bool is_unnamed() const { return is_unnamed_; }
  /// Whether slots can no longer fail for want of space once they are had.
  bool is_reserved() const { return is_reserved_; }

  /// A slot of `bytes` > 0, rounded up to whole pages. OutOfMemoryError if the capacity is taken or
  /// the file system is full.
  DiskSlot take(std::int64_t bytes);
  /// In slots.
  std::int64_t taken_bytes() const;

  /// As DiskTarget; OutOfMemoryError for a full disk.
  void read(std::span<const DiskRange> ranges) override;
  void write(std::span<const DiskRange> ranges) override;

 private:
  friend class DiskSlot;
  int open_with(int more_flags);
  int open_in_folder(int flags);
  void check_direct();
  void grow_to(std::int64_t size);
  int reserve(std::int64_t offset, std::int64_t bytes);
  void give_back(std::span<const FileExtent> extents) noexcept;
  void transfer(std::span<const DiskRange> ranges, bool is_write);
  [[noreturn]] void fail(const char* what,
                         std::int64_t offset,
                         std::int64_t bytes,
                         int error) const;

  std::string folder_;
  std::int64_t capacity_bytes_;
  std::int64_t step_bytes_;
  DiskCalls& calls_;
  int file_ = -1;
  bool is_direct_ = true;
  bool is_unnamed_ = true;
  bool is_reserved_ = true;
  mutable std::mutex mutex_;  ///< of the line below
  FileExtents extents_;
};

}  // namespace hybridgen
