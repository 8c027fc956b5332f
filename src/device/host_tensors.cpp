// SPDX-License-Identifier: Apache-2.0
#include "device/host_tensors.h"

#include <ATen/ops/from_blob.h>
#include <c10/util/accumulate.h>

#include <algorithm>
#include <utility>

#include "hybridgen/core/error.h"
#include "memory/huge_pages.h"

namespace hybridgen {
namespace {

constexpr std::size_t kLineBytes = 64;
constexpr std::size_t kLeastBlockBytes = std::size_t{64} << 10;
constexpr std::size_t kMostBlockBytes = std::size_t{64} << 20;

std::size_t round_up(std::size_t bytes, std::size_t step) {
  return (bytes + step - 1) / step * step;
}

}  // namespace

at::Tensor HostTensors::allocate(at::IntArrayRef shape, at::TensorOptions options) {
  const auto elements = static_cast<std::size_t>(c10::multiply_integers(shape));
  const std::size_t bytes = round_up(elements * options.dtype().itemsize(), kLineBytes);
  if (block_ == nullptr || used_ + bytes > block_->size_bytes()) {
    // As large as all before: small models take little, large ones have few ends of blocks.
    std::size_t size = std::max(bytes, std::clamp(total_, kLeastBlockBytes, kMostBlockBytes));
    if (size >= kHugePageBytes) size = round_up(size, kHugePageBytes);
    try {
      block_ = std::make_shared<HostBuffer>(size);
    } catch (const OutOfMemoryError&) {  // of address space, which blocks reserve ahead
      size = bytes;
      block_ = std::make_shared<HostBuffer>(size);
    }
    used_ = 0;
    total_ += size;
  }
  void* data = block_->data() + used_;
  used_ += bytes;
  return at::from_blob(data, shape, [block = block_](void*) {}, options);
}

}  // namespace hybridgen
