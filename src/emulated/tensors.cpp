// SPDX-License-Identifier: Apache-2.0
#include "emulated/tensors.h"

#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>

#include "emulated/backend.h"
#include "emulated/byte_ranges.h"

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_read_range(void* address, std::size_t bytes);
extern "C" void __tsan_write_range(void* address, std::size_t bytes);
#endif

namespace hybridgen::emulated {

bool is_emulated(const at::Tensor& tensor) {
  return tensor.defined() && (tensor.is_cuda() || tensor.is_privateuseone());
}

at::Tensor alias_of(const at::Tensor& tensor) {
  const auto options = tensor.options().device(c10::kCPU);
  if (tensor.numel() == 0) {
    return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  }
  return at::from_blob(device_of(tensor.device()).memory().alias(tensor.const_data_ptr()),
                       tensor.sizes(),
                       tensor.strides(),
                       options);
}

void note_host_access([[maybe_unused]] const at::Tensor& host, [[maybe_unused]] bool writes) {
#if defined(__SANITIZE_THREAD__)
  std::vector<ByteRange> ranges;
  add_ranges(host, ranges);
  for (const ByteRange& range : ranges) {
    auto* const begin = const_cast<std::byte*>(range.begin);
    writes ? __tsan_write_range(begin, range.bytes) : __tsan_read_range(begin, range.bytes);
  }
#endif
}

}  // namespace hybridgen::emulated
