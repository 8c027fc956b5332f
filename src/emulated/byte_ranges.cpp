// SPDX-License-Identifier: Apache-2.0
#include "emulated/byte_ranges.h"

#include <algorithm>
#include <cstdlib>
#include <utility>

namespace hybridgen::emulated {

void add_ranges(const at::Tensor& tensor, std::vector<ByteRange>& ranges) {
  if (!tensor.defined() || tensor.numel() == 0) {
    return;
  }
  // Dimensions by stride, the smallest first; those that repeat elements say nothing.
  std::vector<std::pair<std::int64_t, std::int64_t>> dimensions;  // stride, size
  for (std::int64_t i = 0; i < tensor.dim(); ++i) {
    if (tensor.size(i) > 1 && tensor.stride(i) != 0) {
      dimensions.emplace_back(std::abs(tensor.stride(i)), tensor.size(i));
    }
  }
  std::ranges::sort(dimensions);
  // The innermost dimensions without gaps are one run.
  std::int64_t run = 1;
  std::size_t first = 0;
  while (first < dimensions.size() && dimensions[first].first <= run) {
    run += dimensions[first].first * (dimensions[first].second - 1);
    ++first;
  }
  const auto element = static_cast<std::int64_t>(tensor.element_size());
  const auto* const begin = static_cast<const std::byte*>(tensor.const_data_ptr());
  std::vector<std::int64_t> offsets = {0};
  for (std::size_t i = first; i < dimensions.size(); ++i) {
    std::vector<std::int64_t> next;
    next.reserve(offsets.size() * static_cast<std::size_t>(dimensions[i].second));
    for (std::int64_t step = 0; step < dimensions[i].second; ++step) {
      for (const std::int64_t offset : offsets) {
        next.push_back(offset + step * dimensions[i].first);
      }
    }
    offsets = std::move(next);
  }
  for (const std::int64_t offset : offsets) {
    ranges.push_back({begin + offset * element, static_cast<std::size_t>(run * element)});
  }
}

}  // namespace hybridgen::emulated
