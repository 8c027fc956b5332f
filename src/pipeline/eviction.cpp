// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/pipeline/eviction.h"

#include <ATen/ATen.h>

namespace hybridgen {
namespace {

KvRowsView view_of(const at::Tensor& rows, std::int64_t first_row) {
  const auto offset = first_row * rows.stride(1) * static_cast<std::int64_t>(rows.element_size());
  return {static_cast<const std::byte*>(rows.const_data_ptr()) + offset,
          rows.stride(0),
          rows.stride(1)};
}

}  // namespace

std::int64_t evict_rows(HostKvStore& host,
                        std::int64_t layer,
                        TokenRange tokens,
                        const at::Tensor& keys,
                        const at::Tensor& values,
                        std::int64_t first_row) {
  if (keys.device().is_cpu()) {
    host.write(layer, tokens, view_of(keys, first_row), view_of(values, first_row));
  } else {
    const at::Tensor host_keys = keys.narrow(1, first_row, tokens.size()).cpu();
    const at::Tensor host_values = values.narrow(1, first_row, tokens.size()).cpu();
    host.write(layer, tokens, view_of(host_keys, 0), view_of(host_values, 0));
  }
  const auto element = static_cast<std::int64_t>(keys.element_size());
  return 2 * keys.size(0) * tokens.size() * keys.size(2) * element;
}

}  // namespace hybridgen
