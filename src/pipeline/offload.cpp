// SPDX-License-Identifier: Apache-2.0
#include "pipeline/offload.h"

#include <ATen/core/Tensor.h>

namespace hybridgen {
namespace {

KvRowsView view_of(const at::Tensor& rows, std::int64_t first_row) {
  const auto offset = first_row * rows.stride(1) * static_cast<std::int64_t>(rows.element_size());
  return {static_cast<const std::byte*>(rows.const_data_ptr()) + offset,
          rows.stride(0),
          rows.stride(1)};
}

}  // namespace

void offload_rows(RequestState& request,
                  std::int64_t layer,
                  TokenRange tokens,
                  const at::Tensor& keys,
                  const at::Tensor& values,
                  std::int64_t first_row,
                  LinkMeter& link) {
  HostKvStore& host = *request.host;
  if (keys.device().is_cpu()) {
    host.write(layer, tokens, view_of(keys, first_row), view_of(values, first_row));
  } else {
    const at::Tensor host_keys = keys.narrow(1, first_row, tokens.size()).cpu();
    const at::Tensor host_values = values.narrow(1, first_row, tokens.size()).cpu();
    host.write(layer, tokens, view_of(host_keys, 0), view_of(host_values, 0));
  }
  const OffloadedRows rows{.layer = layer,
                           .tokens = tokens,
                           .host = host,
                           .keys = keys,
                           .first_row = first_row,
                           .resident = request.resident};
  request.parts.tell([&](KvPart& part) { part.on_offload(rows); });
  const auto element = static_cast<std::int64_t>(keys.element_size());
  link.leaving(2 * keys.size(0) * tokens.size() * keys.size(2) * element);
}

void replace_on_host(RequestState& request,
                     std::int64_t layer,
                     const at::Tensor& keys,
                     const at::Tensor& values,
                     std::int64_t row,
                     LinkMeter& link) {
  for (std::int64_t g = 0; g < keys.size(0); ++g) {
    const std::int64_t slot = request.parts.placement->replace(layer, g);
    const at::Tensor key = keys.select(0, g).select(0, row);
    const at::Tensor host_key = key.cpu();
    const at::Tensor host_value = values.select(0, g).select(0, row).cpu();
    request.host->write_row(layer, g, slot, host_key.const_data_ptr(), host_value.const_data_ptr());
    request.parts.tell([&](KvPart& part) { part.on_replace(layer, g, slot, key); });
    link.leaving(static_cast<std::int64_t>(host_key.nbytes() + host_value.nbytes()));
  }
}

}  // namespace hybridgen
