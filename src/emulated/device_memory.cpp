// SPDX-License-Identifier: Apache-2.0
#include "emulated/device_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <iterator>

#include "hybridgen/core/error.h"

namespace hybridgen::emulated {
namespace {

constexpr std::size_t kGranule = 512;  // of a block's size and address
constexpr std::size_t kMostSlack = 2;  // a kept block is at most so many times what is asked for

std::size_t rounded(std::size_t bytes, std::size_t granule) {
  return (bytes + granule - 1) / granule * granule;
}

[[noreturn]] void refuse(const char* what, std::size_t bytes, int error) {
  throw DeviceError(message("[emulated device] ",
                            what,
                            " of ",
                            human_bytes(static_cast<double>(bytes)),
                            " was refused: ",
                            std::strerror(error),
                            "; allowed: what the system's limits on address space permit"));
}

}  // namespace

DeviceMemory::DeviceMemory(std::size_t bytes)
    : reserved_(rounded(bytes, static_cast<std::size_t>(sysconf(_SC_PAGESIZE)))),
      capacity_(reserved_) {
  const int file = memfd_create("hybridgen-emulated-device", MFD_CLOEXEC);
  if (file < 0 || ftruncate(file, static_cast<off_t>(reserved_)) != 0) {
    const int error = errno;
    if (file >= 0) {
      close(file);
    }
    refuse("a memory file", reserved_, error);
  }
  const auto map = [&](int protection) {
    void* address =
        mmap(nullptr, reserved_, protection, MAP_SHARED | MAP_NORESERVE, file, /*offset=*/0);
    if (address == MAP_FAILED) {
      const int error = errno;
      close(file);
      if (host_ != nullptr) {
        munmap(host_, reserved_);
      }
      refuse("a mapping", reserved_, error);
    }
    return static_cast<std::byte*>(address);
  };
  host_ = map(PROT_NONE);
  alias_ = map(PROT_READ | PROT_WRITE);
  close(file);
  unowned_[0] = reserved_;
}

DeviceMemory::~DeviceMemory() {
  munmap(host_, reserved_);
  munmap(alias_, reserved_);
}

void DeviceMemory::set_capacity(std::size_t bytes) {
  if (bytes == 0 || bytes > reserved_) {
    throw ConfigError(message("[emulated device] memory is ",
                              bytes,
                              " bytes; allowed: 1 to ",
                              reserved_,
                              "; make the device with more"));
  }
  const std::lock_guard lock(mutex_);
  capacity_ = bytes;
}

std::size_t DeviceMemory::capacity() const {
  const std::lock_guard lock(mutex_);
  return capacity_;
}

std::size_t DeviceMemory::free_bytes() const {
  const std::lock_guard lock(mutex_);
  return capacity_ > taken_ ? capacity_ - taken_ : 0;
}

DeviceMemory::Use DeviceMemory::use() const {
  const std::lock_guard lock(mutex_);
  return {.now = in_use_, .peak = peak_in_use_, .taken = taken_};
}

void DeviceMemory::reset_peak() {
  const std::lock_guard lock(mutex_);
  peak_in_use_ = in_use_;
}

DeviceMemory::Allocated DeviceMemory::allocate(std::size_t bytes, StreamIndex stream) {
  const std::size_t size = rounded(std::max<std::size_t>(bytes, 1), kGranule);
  const std::lock_guard lock(mutex_);
  std::size_t offset = 0;
  std::size_t block = take_kept(size, stream, offset);
  const bool is_new = block == 0;
  if (is_new) {
    block = size;
    const auto hole =
        std::ranges::find_if(unowned_, [&](const auto& each) { return each.second >= size; });
    if (hole == unowned_.end() || taken_ + size > capacity_) {
      return {};
    }
    offset = hole->first;
    const std::size_t rest = hole->second - size;
    unowned_.erase(hole);
    if (rest > 0) {
      unowned_[offset + size] = rest;
    }
    taken_ += size;
  }
  in_use_ += size;
  peak_in_use_ = std::max(peak_in_use_, in_use_);
  in_use_blocks_[offset] = {block, size, stream};
  return {host_ + offset, size, is_new};
}

// Sizes that grow a little from step to step find the block of the step before.
std::size_t DeviceMemory::take_kept(std::size_t bytes, StreamIndex stream, std::size_t& offset) {
  for (auto kept = kept_.lower_bound({stream, bytes}); kept != kept_.end(); ++kept) {
    const auto [owner, size] = kept->first;
    if (owner != stream || size > kMostSlack * bytes) {
      break;
    }
    if (!kept->second.empty()) {
      offset = kept->second.back();
      kept->second.pop_back();
      return size;
    }
  }
  return 0;
}

std::pair<std::size_t, StreamIndex> DeviceMemory::free(void* address) {
  const std::lock_guard lock(mutex_);
  const auto found =
      in_use_blocks_.find(static_cast<std::size_t>(static_cast<std::byte*>(address) - host_));
  if (found == in_use_blocks_.end()) {
    throw DeviceError("[emulated device] a block is freed that is not in use");
  }
  const auto [offset, block] = *found;
  in_use_blocks_.erase(found);
  in_use_ -= block.used;
  kept_[{block.stream, block.bytes}].push_back(offset);
  return {block.bytes, block.stream};
}

void DeviceMemory::release_cached() {
  const std::lock_guard lock(mutex_);
  for (const auto& [key, offsets] : kept_) {
    for (const std::size_t offset : offsets) {
      taken_ -= key.second;
      let_go(offset, key.second);
      give_back(offset, key.second);
    }
  }
  kept_.clear();
}

// Whole pages of the range go back to the system.
void DeviceMemory::let_go(std::size_t offset, std::size_t bytes) {
  const auto page = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  const std::size_t begin = rounded(offset, page);
  const std::size_t end = (offset + bytes) / page * page;
  if (begin < end) {
    madvise(alias_ + begin, end - begin, MADV_REMOVE);
  }
}

void DeviceMemory::give_back(std::size_t offset, std::size_t bytes) {
  const auto after = unowned_.lower_bound(offset);
  if (after != unowned_.end() && after->first == offset + bytes) {
    bytes += after->second;
    unowned_.erase(after);
  }
  const auto next = unowned_.lower_bound(offset);
  if (next != unowned_.begin()) {
    const auto before = std::prev(next);
    if (before->first + before->second == offset) {
      before->second += bytes;
      return;
    }
  }
  unowned_[offset] = bytes;
}

bool DeviceMemory::contains(const void* address) const {
  const auto* at = static_cast<const std::byte*>(address);
  return at >= host_ && at < host_ + reserved_;
}

std::byte* DeviceMemory::alias(const void* address) const {
  return alias_ + (static_cast<const std::byte*>(address) - host_);
}

DeviceMemory::Opened::Opened(DeviceMemory& memory) : memory_(memory) {
  const std::lock_guard lock(memory_.mutex_);
  if (memory_.opened_++ == 0) {
    mprotect(memory_.host_, memory_.reserved_, PROT_READ | PROT_WRITE);
  }
}

DeviceMemory::Opened::~Opened() {
  const std::lock_guard lock(memory_.mutex_);
  if (--memory_.opened_ == 0) {
    mprotect(memory_.host_, memory_.reserved_, PROT_NONE);
  }
}

}  // namespace hybridgen::emulated
