// SPDX-License-Identifier: Apache-2.0
// The files that weights are streamed out of: a checkpoint's own, and one that holds what those
// have in another form. Offsets count through all of them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "memory/disk_calls.h"
#include "memory/disk_file.h"
#include "memory/file_mapping.h"

namespace hybridgen {

/// Reads under way at a time: enough for a disk's queue, few enough to leave cores to the model.
inline constexpr int kWeightReaders = 4;

/// Files are added by one thread; after that it is thread-safe.
class WeightFiles final : public DiskTarget {
 public:
  /// `wants_direct`: reads past the page cache (O_DIRECT) where a file system takes that; else
  /// through it, which is faster as long as it holds the files.
  explicit WeightFiles(bool wants_direct, DiskCalls& calls = disk_calls())
      : calls_(calls), wants_direct_(wants_direct) {}
  ~WeightFiles() override;
  WeightFiles(const WeightFiles&) = delete;
  WeightFiles& operator=(const WeightFiles&) = delete;

  /// Offset of the first byte of the file at `path`; the same for one that is known.
  /// CheckpointError if it cannot be opened, or has fewer bytes than `end`.
  std::int64_t add(const std::string& path, std::int64_t end);
  /// Writes bytes into a file of our own in `folder`, which has no name and goes with the process;
  /// returns their offset, that of a page. DeviceError, OutOfMemoryError for a full disk.
  std::int64_t append(const std::string& folder, std::span<const std::byte> bytes);

  /// DeviceError with path, place and the system's text.
  void read(std::span<const DiskRange> ranges) override;
  void write(std::span<const DiskRange> ranges) override;  ///< never called

  /// Where the bytes from `offset` on are memory that can be read: their file's (file_mapping.h).
  /// Nothing may be appended after. DeviceError for a file that cannot be memory.
  std::byte* address_of(std::int64_t offset);
  /// Bytes that have an address come to it; `memory` of ranges is that. DeviceError as read().
  void fetch(std::span<const DiskRange> ranges);
  /// Whether bytes that have an address need not come.
  bool have(std::span<const DiskRange> ranges) const;
  /// Whether all such memory can be read without waiting for a disk.
  bool is_there();
  /// Reads of such memory so far that got zeros, as the disk had failed since the bytes came.
  std::int64_t zero_reads() const;
  /// DeviceError if there are more than `seen`.
  void check_reads(std::int64_t seen) const;
  /// Before it is read: no zeros are left there, and losses are counted. DeviceError if the system
  /// refuses.
  void restore();

 private:
  struct File {
    std::string path;
    int descriptor = -1;
    std::int64_t begin = 0;  ///< offset of its first byte
    std::int64_t bytes = 0;
    bool is_direct = false;
    std::unique_ptr<FileMapping> mapping{};  ///< null: nobody has asked
  };
  /// Opens it for reading; -errno if that fails.
  int open_packed(const std::string& folder);
  int open_to_read(const std::string& path, bool& is_direct);
  void close(File& file);
  const File& file_of(std::int64_t offset) const;
  FileMapping& mapping_of(std::int64_t offset);
  /// Calls `call` with every file that has a mapping.
  template <typename Call>
  void for_each_mapped(const Call& call) const;
  void read_direct(const File& file, std::span<const DiskRange> ranges, std::int64_t bytes);
  /// All of `memory` from `at` on; beyond the file's end nothing is read.
  std::int64_t read_all(const File& file, std::span<iovec> memory, std::int64_t at);

  DiskCalls& calls_;
  std::vector<File> files_;     ///< by `begin`
  std::optional<File> packed_;  ///< of our own, beyond all others
  int packing_ = -1;            ///< the same file, to write to
  bool wants_direct_;
  mutable std::mutex mapping_mutex_;  ///< of mappings that are made
};

}  // namespace hybridgen
