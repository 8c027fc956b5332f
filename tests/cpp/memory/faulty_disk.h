// SPDX-License-Identifier: Apache-2.0
// A disk whose calls fail as a test likes; what it does not answer itself the kernel does.
#pragma once

#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "memory/disk_calls.h"

namespace hybridgen {

enum class DiskCall : std::uint8_t {
  kOpen,
  kClose,
  kUnlink,
  kSetFlags,
  kReserve,
  kFreeBytes,
  kRead,
  kWrite,
  kFlush,
  kForget,
  kMap,
  kFetch,
  kFindCached
};

class FaultyDisk final : public DiskCalls {
 public:
  /// Asked before every call; a value is its result instead. Called by any thread.
  std::function<std::optional<std::int64_t>(DiskCall, int open_flags)> answer;
  /// Told after every call.
  std::function<void(DiskCall)> after;
  /// What a read or write moves at most.
  std::atomic<std::int64_t> most_bytes{std::numeric_limits<std::int64_t>::max()};

  int open(const std::string& path, int flags, mode_t mode) override {
    return make(DiskCall::kOpen, flags, [&] { return DiskCalls::open(path, flags, mode); });
  }
  int close(int file) override {
    return make(DiskCall::kClose, 0, [&] { return DiskCalls::close(file); });
  }
  int unlink(const std::string& path) override {
    return make(DiskCall::kUnlink, 0, [&] { return DiskCalls::unlink(path); });
  }
  int set_flags(int file, int flags) override {
    return make(DiskCall::kSetFlags, flags, [&] { return DiskCalls::set_flags(file, flags); });
  }
  int reserve(int file, std::int64_t offset, std::int64_t bytes) override {
    return make(DiskCall::kReserve, 0, [&] { return DiskCalls::reserve(file, offset, bytes); });
  }
  std::int64_t free_bytes(const std::string& path) override {
    return make(DiskCall::kFreeBytes, 0, [&] { return DiskCalls::free_bytes(path); });
  }
  std::int64_t read(int file, std::span<const iovec> to, std::int64_t offset) override {
    return make(DiskCall::kRead, 0, [&] { return DiskCalls::read(file, shortened(to), offset); });
  }
  std::int64_t write(int file, std::span<const iovec> from, std::int64_t offset) override {
    return make(
        DiskCall::kWrite, 0, [&] { return DiskCalls::write(file, shortened(from), offset); });
  }
  int flush(int file, std::int64_t offset, std::int64_t bytes) override {
    return make(DiskCall::kFlush, 0, [&] { return DiskCalls::flush(file, offset, bytes); });
  }
  int forget(int file, std::int64_t offset, std::int64_t bytes) override {
    return make(DiskCall::kForget, 0, [&] { return DiskCalls::forget(file, offset, bytes); });
  }
  int map(int file, std::int64_t bytes, std::byte*& data) override {
    return make(DiskCall::kMap, 0, [&] { return DiskCalls::map(file, bytes, data); });
  }
  int fetch(std::byte* data, std::int64_t bytes) override {
    return make(DiskCall::kFetch, 0, [&] { return DiskCalls::fetch(data, bytes); });
  }
  int find_cached(std::byte* data, std::size_t bytes, unsigned char* pages) override {
    return make(
        DiskCall::kFindCached, 0, [&] { return DiskCalls::find_cached(data, bytes, pages); });
  }

 private:
  template <typename Call>
  auto make(DiskCall which, int open_flags, const Call& call) -> decltype(call()) {
    if (answer) {
      if (const auto answered = answer(which, open_flags)) {
        return static_cast<decltype(call())>(*answered);
      }
    }
    const auto result = call();
    if (after) after(which);
    return result;
  }

  std::vector<iovec> shortened(std::span<const iovec> vectors) const {
    std::vector<iovec> some;
    auto left = static_cast<std::size_t>(most_bytes.load());
    for (iovec vector : vectors) {
      vector.iov_len = std::min(vector.iov_len, left);
      left -= vector.iov_len;
      if (vector.iov_len > 0) some.push_back(vector);
    }
    return some;
  }
};

/// An empty folder that goes with this.
class TestFolder {
 public:
  TestFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "hybridgen-disk-XXXXXX").string();
    if (::mkdtemp(name.data()) == nullptr) throw DeviceError("[test] no folder: " + name);
    path_ = name;
  }
  TestFolder(const TestFolder&) = delete;
  TestFolder& operator=(const TestFolder&) = delete;
  ~TestFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }

  const std::filesystem::path& path() const { return path_; }
  std::string string() const { return path_.string(); }
  std::vector<std::string> names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      names.push_back(entry.path().filename().string());
    }
    std::ranges::sort(names);
    return names;
  }

 private:
  std::filesystem::path path_;
};

}  // namespace hybridgen
