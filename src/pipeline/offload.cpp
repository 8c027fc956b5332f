// SPDX-License-Identifier: Apache-2.0
#include "pipeline/offload.h"

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>

namespace hybridgen {
namespace {

KvRowsView view_of(const at::Tensor& rows, std::int64_t first_row) {
  const auto offset = first_row * rows.stride(1) * static_cast<std::int64_t>(rows.element_size());
  return {static_cast<const std::byte*>(rows.const_data_ptr()) + offset,
          rows.stride(0),
          rows.stride(1)};
}

void add_to_shadow(RequestState& request, std::int64_t layer, TokenRange tokens) {
  if (!request.shadow->is_calibrated(layer)) {
    // The prompt left nothing: what is still on the device resembles what comes more than one key.
    const at::Tensor resident = request.resident.resident_keys(layer).cpu();
    request.shadow->calibrate(layer, resident.size(1), view_of(resident, 0));
  }
  request.shadow->write(layer, tokens, request.host->key_rows_from(layer, tokens.begin));
}

}  // namespace

void fill_shadow(RequestState& request) {
  const std::int64_t count = request.tokens.num_offloaded();
  constexpr std::int64_t kFewest = 256;  // more often is not worth it
  if (request.shadow == nullptr ||
      (request.shadow_tokens >= 0 && count < std::max(2 * request.shadow_tokens, kFewest))) {
    return;
  }
  request.shadow_tokens = count;
  if (count == 0) {
    return;
  }
  const std::int64_t layers = request.shadow->shape().num_layers;
  at::parallel_for(0, layers, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t layer = begin; layer < end; ++layer) {
      const KvRowsView keys = request.host->key_rows_from(layer, 0);
      request.shadow->calibrate(layer, count, keys);
      request.shadow->write(layer, {0, count}, keys);
    }
  });
}

std::int64_t offload_rows(RequestState& request,
                          std::int64_t layer,
                          TokenRange tokens,
                          const at::Tensor& keys,
                          const at::Tensor& values,
                          std::int64_t first_row) {
  HostKvStore& host = *request.host;
  if (request.pool != nullptr && layer == 0) {
    request.pool->append(tokens.size());
  }
  if (keys.device().is_cpu()) {
    host.write(layer, tokens, view_of(keys, first_row), view_of(values, first_row));
  } else {
    const at::Tensor host_keys = keys.narrow(1, first_row, tokens.size()).cpu();
    const at::Tensor host_values = values.narrow(1, first_row, tokens.size()).cpu();
    host.write(layer, tokens, view_of(host_keys, 0), view_of(host_values, 0));
  }
  if (request.shadow_tokens >= 0) {
    add_to_shadow(request, layer, tokens);
  }
  if (request.partial_keys != nullptr) {
    if (!request.partial_keys->has_columns(layer)) {
      // No prompt chunk came before: the keys stand in for sample queries.
      const std::int64_t per_group = request.partial_keys->query_heads_per_kv_head();
      request.partial_keys->choose_columns(layer,
                                           keys.narrow(1, first_row, tokens.size())
                                               .permute({1, 0, 2})
                                               .repeat_interleave(per_group, 1));
    }
    request.partial_keys->write(layer, tokens.begin, keys.narrow(1, first_row, tokens.size()));
  }
  const bool is_blocked = host.shape().key_layout == KeyLayout::kBlocked;
  for (TokenSelector* selector : {request.selector.get(), request.pre_selector.get()}) {
    for (std::int64_t g = 0; selector != nullptr && g < keys.size(0); ++g) {
      selector->on_offload(layer, g, tokens, is_blocked ? host.keys(layer, g) : BlockedKeyView{});
    }
  }
  const auto element = static_cast<std::int64_t>(keys.element_size());
  return 2 * keys.size(0) * tokens.size() * keys.size(2) * element;
}

std::int64_t replace_in_pool(RequestState& request,
                             std::int64_t layer,
                             const at::Tensor& keys,
                             const at::Tensor& values,
                             std::int64_t row) {
  std::int64_t bytes = 0;
  for (std::int64_t g = 0; g < keys.size(0); ++g) {
    const std::int64_t slot = request.pool->replace(layer, g);
    const at::Tensor key = keys.select(0, g).select(0, row);
    const at::Tensor host_key = key.cpu();
    const at::Tensor host_value = values.select(0, g).select(0, row).cpu();
    request.host->write_row(layer, g, slot, host_key.const_data_ptr(), host_value.const_data_ptr());
    if (request.partial_keys != nullptr) {
      request.partial_keys->write_row(layer, g, slot, key);
    }
    bytes += static_cast<std::int64_t>(host_key.nbytes() + host_value.nbytes());
  }
  return bytes;
}

}  // namespace hybridgen
