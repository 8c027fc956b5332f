// SPDX-License-Identifier: Apache-2.0
#include "memory/weight_files.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <system_error>
#include <utility>

#include "hybridgen/core/error.h"
#include "memory/disk_leftovers.h"
#include "memory/host_buffer.h"
#include "memory/huge_pages.h"

namespace hybridgen {
namespace {

// Between files, so that the end of one and the begin of the next are never read in one call.
constexpr std::int64_t kGap = kDiskPageBytes;
// Where a huge page of a file begins, one of all files' bytes does.
constexpr auto kHuge = static_cast<std::int64_t>(kHugePageBytes);
constexpr std::int64_t kPackedBegin = std::int64_t{1} << 60;

std::string text_of(int error) { return std::generic_category().message(error); }

[[noreturn]] void fail(
    const std::string& path, const char* what, std::int64_t at, std::int64_t bytes, int error) {
  const std::string text =
      message("[stream weights] ",
              path,
              ": could not ",
              what,
              ' ',
              bytes,
              " bytes at ",
              at,
              ": ",
              error == 0 ? "the file ends before" : text_of(error),
              "; allowed: a disk that works and files that stay as they were "
              "when the model was loaded; repair that, or let weights lie in "
              "memory of the engine's own: WeightConfig(host=1.0), without shared");
  if (error == ENOSPC || error == EDQUOT) throw OutOfMemoryError(text);
  throw DeviceError(text);
}

}  // namespace

WeightFiles::~WeightFiles() {
  for (File& file : files_) close(file);
  if (packed_) close(*packed_);
  if (packing_ >= 0) calls_.close(packing_);
}

void WeightFiles::close(File& file) {
  file.mapping.reset();
  calls_.close(file.descriptor);
}

int WeightFiles::open_to_read(const std::string& path, bool& is_direct) {
  is_direct = wants_direct_;
  for (;;) {
    const int flags = O_RDONLY | O_CLOEXEC | (is_direct ? O_DIRECT : 0);
    const int descriptor = calls_.open(path, flags, 0);
    if (descriptor == -EINTR) continue;
    if (descriptor != -EINVAL || !is_direct) return descriptor;
    is_direct = false;  // the file system has no such reads
  }
}

std::int64_t WeightFiles::add(const std::string& path, std::int64_t end) {
  auto found = std::ranges::find(files_, path, &File::path);
  if (found == files_.end()) {
    bool is_direct = false;
    const int descriptor = open_to_read(path, is_direct);
    struct stat status{};
    if (descriptor < 0 || ::fstat(descriptor, &status) != 0) {
      throw CheckpointError(message("[load weights] ",
                                    path,
                                    " cannot be opened: ",
                                    text_of(descriptor < 0 ? -descriptor : errno),
                                    "; allowed: a file that this process may read"));
    }
    std::int64_t begin = 0;
    if (!files_.empty()) {
      const std::int64_t last = files_.back().begin + files_.back().bytes + kGap;
      begin = (last + kHuge - 1) / kHuge * kHuge;
    }
    files_.push_back({.path = path,
                      .descriptor = descriptor,
                      .begin = begin,
                      .bytes = status.st_size,
                      .is_direct = is_direct});
    found = std::prev(files_.end());
  }
  if (end > found->bytes) {
    throw CheckpointError(message("[load weights] ",
                                  path,
                                  " has ",
                                  found->bytes,
                                  " bytes and a tensor ends at ",
                                  end,
                                  "; the file is damaged or incomplete, download it again"));
  }
  return found->begin;
}

// Without a name; where a file system has none such, its name goes at once.
int WeightFiles::open_packed(const std::string& folder) {
  constexpr int kFlags = O_RDWR | O_CLOEXEC;
  constexpr mode_t kOwnerOnly = S_IRUSR | S_IWUSR;
  int file = -EINTR;
  while (file == -EINTR) file = calls_.open(folder, kFlags | O_TMPFILE, kOwnerOnly);
  if (file != -EOPNOTSUPP && file != -EISDIR) return file;
  const std::string path = folder + "/" + new_disk_file_name();
  file = -EINTR;
  while (file == -EINTR) file = calls_.open(path, kFlags | O_CREAT | O_EXCL, kOwnerOnly);
  if (file >= 0) calls_.unlink(path);
  return file;
}

std::int64_t WeightFiles::append(const std::string& folder, std::span<const std::byte> bytes) {
  if (!packed_) {
    packing_ = open_packed(folder);
    bool is_direct = false;
    const int descriptor =
        packing_ < 0 ? packing_ : open_to_read(message("/proc/self/fd/", packing_), is_direct);
    if (descriptor < 0) {
      throw ConfigError(message("[load weights] folder is ",
                                folder,
                                ", where no file without a name can be made: ",
                                text_of(-descriptor),
                                "; allowed: a folder that this process may write to, on a local "
                                "disk; pass another WeightConfig(folder=...)"));
    }
    packed_ = File{.path = "the packed weights in " + folder,
                   .descriptor = descriptor,
                   .begin = kPackedBegin,
                   .is_direct = is_direct};
  }
  File& file = *packed_;
  const std::int64_t begin = round_up_to_disk_page(file.bytes);
  // Whole pages, so that the last one can be read past the page cache.
  std::vector<std::byte> tail(static_cast<std::size_t>(round_up_to_disk_page(std::ssize(bytes))) -
                              bytes.size());
  iovec parts[] = {{.iov_base = const_cast<std::byte*>(bytes.data()), .iov_len = bytes.size()},
                   {.iov_base = tail.data(), .iov_len = tail.size()}};
  std::span<iovec> left(parts);
  std::int64_t at = begin;
  for (std::int64_t missing = round_up_to_disk_page(std::ssize(bytes)); missing > 0;) {
    const std::int64_t moved = calls_.write(packing_, left, at);
    if (moved == -EINTR) continue;
    if (moved <= 0)
      fail(file.path, "write", at, missing, moved == 0 ? EIO : static_cast<int>(-moved));
    left = drop_front(left, moved);
    at += moved;
    missing -= moved;
  }
  file.bytes = at;
  return file.begin + begin;
}

const WeightFiles::File& WeightFiles::file_of(std::int64_t offset) const {
  if (packed_.has_value() && offset >= kPackedBegin) return *packed_;
  const auto after = std::ranges::upper_bound(files_, offset, {}, &File::begin);
  return *std::prev(after);
}

std::int64_t WeightFiles::read_all(const File& file, std::span<iovec> memory, std::int64_t at) {
  std::int64_t missing = 0;
  for (const iovec& part : memory) missing += static_cast<std::int64_t>(part.iov_len);
  std::int64_t sum = 0;
  while (missing > 0) {
    const std::int64_t moved = calls_.read(file.descriptor, memory, at + sum);
    if (moved == -EINTR) continue;
    if (moved < 0) fail(file.path, "read", at + sum, missing, static_cast<int>(-moved));
    if (moved == 0) break;  // its end
    memory = drop_front(memory, moved);
    sum += moved;
    missing -= moved;
    // The rest of a page that the file does not have; the next call would not be aligned.
    if (file.is_direct && moved % kDiskPageBytes != 0) break;
  }
  return sum;
}

void WeightFiles::read(std::span<const DiskRange> ranges) {
  if (ranges.empty()) return;
  const File& file = file_of(ranges.front().offset);
  std::vector<iovec> vectors;
  vectors.reserve(ranges.size());
  std::int64_t bytes = 0;
  for (const DiskRange& range : ranges) {
    vectors.push_back({.iov_base = range.memory, .iov_len = static_cast<std::size_t>(range.bytes)});
    bytes += range.bytes;
  }
  if (file.is_direct) {
    read_direct(file, ranges, bytes);
    return;
  }
  const std::int64_t at = ranges.front().offset - file.begin;
  const std::int64_t moved = read_all(file, vectors, at);
  if (moved < bytes) fail(file.path, "read", at + moved, bytes - moved, 0);
}

// Whole pages into memory of the thread's own, as tensors in a checkpoint begin anywhere.
void WeightFiles::read_direct(const File& file,
                              std::span<const DiskRange> ranges,
                              std::int64_t bytes) {
  const std::int64_t at = ranges.front().offset - file.begin;
  const std::int64_t begin = at / kDiskPageBytes * kDiskPageBytes;
  const std::int64_t size = round_up_to_disk_page(at + bytes) - begin;
  thread_local HostBuffer pages;
  // Room for the alignment, too, which smaller buffers lack.
  const auto wanted = static_cast<std::size_t>(size + kDiskPageBytes);
  if (pages.size_bytes() < wanted) pages = HostBuffer(wanted);
  auto address = reinterpret_cast<std::uintptr_t>(pages.data());
  std::byte* const memory =
      pages.data() + (kDiskPageBytes - address % kDiskPageBytes) % kDiskPageBytes;
  iovec all{.iov_base = memory, .iov_len = static_cast<std::size_t>(size)};
  const std::int64_t moved = read_all(file, {&all, 1}, begin);
  if (moved < at + bytes - begin) {
    fail(file.path, "read", begin + moved, at + bytes - begin - moved, 0);
  }
  const std::byte* from = memory + (at - begin);
  for (const DiskRange& range : ranges) {
    std::memcpy(range.memory, from, static_cast<std::size_t>(range.bytes));
    from += range.bytes;
  }
}

FileMapping& WeightFiles::mapping_of(std::int64_t offset) {
  File& file = const_cast<File&>(file_of(offset));  // of files_ or packed_, which are ours
  const std::scoped_lock lock(mapping_mutex_);
  if (file.mapping == nullptr) {
    auto mapping = std::make_unique<FileMapping>(file.descriptor, file.bytes, calls_);
    if (mapping->error() != 0) {
      fail(file.path, "map (which direct=True does not)", 0, file.bytes, mapping->error());
    }
    file.mapping = std::move(mapping);
  }
  return *file.mapping;
}

std::byte* WeightFiles::address_of(std::int64_t offset) {
  return mapping_of(offset).data() + (offset - file_of(offset).begin);
}

void WeightFiles::fetch(std::span<const DiskRange> ranges) {
  for (const DiskRange& range : ranges) {
    const File& file = file_of(range.offset);
    const std::int64_t at = range.offset - file.begin;
    const int error = file.mapping->fetch(at, range.bytes);
    if (error != 0) fail(file.path, "read", at, range.bytes, error == ENODATA ? 0 : error);
  }
}

bool WeightFiles::have(std::span<const DiskRange> ranges) const {
  return std::ranges::all_of(ranges, [this](const DiskRange& range) {
    const File& file = file_of(range.offset);
    return file.mapping->has(range.offset - file.begin, range.bytes);
  });
}

template <typename Call>
void WeightFiles::for_each_mapped(const Call& call) const {
  const std::scoped_lock lock(mapping_mutex_);
  for (const File& file : files_) {
    if (file.mapping != nullptr) call(file);
  }
  if (packed_ && packed_->mapping != nullptr) call(*packed_);
}

bool WeightFiles::is_there() {
  bool is_all = true;
  for_each_mapped([&](const File& file) { is_all = is_all && file.mapping->is_there(); });
  return is_all;
}

std::int64_t WeightFiles::zero_reads() const {
  if (FileMapping::all_zero_reads() == 0) return 0;
  std::int64_t sum = 0;
  for_each_mapped([&](const File& file) { sum += file.mapping->zero_reads(); });
  return sum;
}

void WeightFiles::check_reads(std::int64_t seen) const {
  if (zero_reads() == seen) return;
  const File* last = nullptr;
  for_each_mapped([&](const File& file) {
    const bool is_later =
        last == nullptr || file.mapping->latest_zero_read() > last->mapping->latest_zero_read();
    if (is_later) last = &file;
  });
  fail(last->path, "read again some of", 0, last->bytes, EIO);
}

void WeightFiles::restore() {
  FileMapping::protect();
  if (FileMapping::all_zero_reads() == 0) return;
  for_each_mapped([](const File& file) {
    const int error = file.mapping->restore();
    if (error != 0) fail(file.path, "map", 0, file.bytes, error);
  });
}

void WeightFiles::write(std::span<const DiskRange>) {
  throw DeviceError("[stream weights] weights are not written while they are streamed");
}

}  // namespace hybridgen
