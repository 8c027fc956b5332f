// SPDX-License-Identifier: Apache-2.0
// Owning bytes in host memory, 64-byte aligned (2 MiB aligned and transparent-huge-page advised
// when 2 MiB or larger), zero-filled, untouched until used. Where they lie (NUMA node, CXL) is a
// property of the buffer, not of its users.
#pragma once

#include <cstddef>
#include <span>

namespace hybridgen {

class HostBuffer {
 public:
  HostBuffer() = default;
  /// On `node`, or where the system likes (-1). Throws OutOfMemoryError with errno text, and what
  /// bind_to_node() throws. bytes == 0 gives an empty buffer.
  explicit HostBuffer(std::size_t bytes, int node = -1);
  ~HostBuffer();
  HostBuffer(HostBuffer&& other) noexcept;
  HostBuffer& operator=(HostBuffer&& other) noexcept;

  std::byte* data() { return data_; }
  const std::byte* data() const { return data_; }
  std::size_t size_bytes() const { return size_bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t size_bytes_ = 0;    ///< asked for
  std::byte* mapping_ = nullptr;  ///< what munmap needs
  std::size_t mapping_bytes_ = 0;
};

}  // namespace hybridgen
