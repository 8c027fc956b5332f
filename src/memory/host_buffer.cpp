// SPDX-License-Identifier: Apache-2.0
#include "memory/host_buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstdint>
#include <limits>
#include <system_error>
#include <utility>

#include "hybridgen/core/error.h"
#include "memory/huge_pages.h"
#include "memory/numa.h"

namespace hybridgen {

// Delegates so that the destructor unmaps when the binding throws.
HostBuffer::HostBuffer(std::size_t bytes, int node) : HostBuffer() {
  if (bytes == 0) return;
  const bool huge = bytes >= kHugePageBytes;
  const std::size_t slack = huge ? kHugePageBytes : 0;  // room to move the start to an alignment
  int error = ENOMEM;
  void* mapping = MAP_FAILED;
  if (bytes <= std::numeric_limits<std::size_t>::max() - slack) {
    mapping =
        ::mmap(nullptr, bytes + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    error = errno;
  }
  if (mapping == MAP_FAILED) {
    throw OutOfMemoryError(message("[host buffer] mapping ",
                                   human_bytes(static_cast<double>(bytes)),
                                   " failed: ",
                                   std::generic_category().message(error),
                                   "; allowed: what the system has free; lower the memory settings "
                                   "or run fewer or shorter requests at a time"));
  }
  mapping_ = static_cast<std::byte*>(mapping);
  mapping_bytes_ = bytes + slack;
  size_bytes_ = bytes;
  data_ = mapping_;
  if (huge) {
    const std::size_t over = reinterpret_cast<std::uintptr_t>(mapping_) % kHugePageBytes;
    if (over != 0) data_ += kHugePageBytes - over;
    // Advice only: a kernel without huge pages refuses it and everything still works.
    static_cast<void>(::madvise(data_, bytes, MADV_HUGEPAGE));
    count_asked_huge_pages(static_cast<std::int64_t>(bytes));
  }
  if (node != -1) bind_to_node(data_, bytes, node);
}

HostBuffer::~HostBuffer() {
  if (mapping_ == nullptr) return;
  ::munmap(mapping_, mapping_bytes_);
  if (size_bytes_ >= kHugePageBytes)
    count_asked_huge_pages(-static_cast<std::int64_t>(size_bytes_));
}

HostBuffer::HostBuffer(HostBuffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)),
      size_bytes_(std::exchange(other.size_bytes_, 0)),
      mapping_(std::exchange(other.mapping_, nullptr)),
      mapping_bytes_(std::exchange(other.mapping_bytes_, 0)) {}

HostBuffer& HostBuffer::operator=(HostBuffer&& other) noexcept {
  HostBuffer taken(std::move(other));
  std::swap(data_, taken.data_);
  std::swap(size_bytes_, taken.size_bytes_);
  std::swap(mapping_, taken.mapping_);
  std::swap(mapping_bytes_, taken.mapping_bytes_);
  return *this;
}

}  // namespace hybridgen
