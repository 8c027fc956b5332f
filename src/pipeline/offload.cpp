// SPDX-License-Identifier: Apache-2.0
#include "pipeline/offload.h"

#include <ATen/core/Tensor.h>
#include <ATen/ops/cat.h>

#include <algorithm>

namespace hybridgen {
namespace {

KvRowsView view_of(const at::Tensor& rows, std::int64_t first_row) {
  const auto offset = first_row * rows.stride(1) * static_cast<std::int64_t>(rows.element_size());
  return {static_cast<const std::byte*>(rows.const_data_ptr()) + offset,
          rows.stride(0),
          rows.stride(1)};
}

}  // namespace

HostRows host_rows(const at::Tensor& keys, const at::Tensor& values, std::int64_t first_row) {
  return {view_of(keys, first_row), view_of(values, first_row)};
}

HostRows leaving_rows(RequestState& request, std::int64_t layer, std::int64_t first) {
  if (!request.leaving) {
    return host_rows(request.resident.keys(layer), request.resident.values(layer), first);
  }
  return {request.leaving->keys(layer), request.leaving->values(layer)};
}

void grow_host(RequestState& request, std::int64_t tokens) {
  HostKvStore& host = *request.host;
  if (tokens <= host.grown_tokens()) {
    return;
  }
  // What the prompt will need in any case comes at once, mostly in huge pages of its own.
  const RequestPlan& plan = request.plan;
  const std::int64_t sure =
      std::clamp<std::int64_t>(plan.shape.prompt_tokens - plan.window, 0, plan.max_offloaded);
  // But of what is not written yet nothing can go to a disk.
  const bool at_once = host.shape().place.nodes.empty() && request.on_disk() == nullptr;
  const std::int64_t coming = at_once ? std::max(tokens, sure) : tokens;
  request.holding.grow(coming);
  host.grow(coming);  // what lies beside them
}

bool wants_channels(const RequestState& request, std::int64_t layer, std::int64_t leaving) {
  return leaving < ScoringShadow::kFewestRows && request.host->wants_channels(layer);
}

void fix_channels(RequestState& request, std::int64_t layer, const std::vector<at::Tensor>& keys) {
  const at::Tensor rows = (keys.size() == 1 ? keys.front() : at::cat(keys, 1)).cpu();
  request.host->fix_channels(
      layer, rows.size(1), {rows.const_data_ptr(), rows.stride(0), rows.stride(1)});
}

void offload_rows(RequestState& request,
                  std::int64_t layer,
                  TokenRange tokens,
                  const at::Tensor& keys,
                  const at::Tensor& values,
                  std::int64_t first_row,
                  LinkMeter& link) {
  if (keys.device().is_cpu()) {
    offload_rows(request, layer, tokens, host_rows(keys, values, first_row), keys, first_row, link);
    return;
  }
  const at::Tensor host_keys = keys.narrow(1, first_row, tokens.size()).cpu();
  const at::Tensor host_values = values.narrow(1, first_row, tokens.size()).cpu();
  offload_rows(request, layer, tokens, host_rows(host_keys, host_values, 0), keys, first_row, link);
}

void offload_rows(RequestState& request,
                  std::int64_t layer,
                  TokenRange tokens,
                  const HostRows& rows,
                  const at::Tensor& keys,
                  std::int64_t first_row,
                  LinkMeter& link) {
  HostKvStore& host = *request.host;
  host.write(layer, tokens, rows.keys, rows.values);
  const OffloadedRows moved{.layer = layer,
                            .tokens = tokens,
                            .host = host,
                            .keys = keys,
                            .first_row = first_row,
                            .resident = request.resident};
  request.parts.tell([&](KvPart& part) { part.on_offload(moved); });
  const auto element = static_cast<std::int64_t>(keys.element_size());
  link.leaving(2 * keys.size(0) * tokens.size() * keys.size(2) * element);
}

void replace_on_host(RequestState& request,
                     std::int64_t layer,
                     const HostRows& rows,
                     std::int64_t row,
                     std::int64_t resident_slot,
                     LinkMeter& link) {
  const HostKvShape& shape = request.host->shape();
  const auto element = static_cast<std::int64_t>(size_of(shape.dtype));
  for (std::int64_t g = 0; g < shape.num_kv_heads; ++g) {
    const std::int64_t slot = request.parts.placement->replace(layer, g);
    const void* const host_key = row_of(rows.keys, g, row, element);
    request.host->write_row(layer, g, slot, host_key, row_of(rows.values, g, row, element));
    const ReplacedRow replaced{.layer = layer,
                               .kv_head = g,
                               .slot = slot,
                               .host_key = host_key,
                               .resident = request.resident,
                               .resident_slot = resident_slot};
    request.parts.tell([&](KvPart& part) { part.on_replace(replaced); });
    link.leaving(2 * shape.head_dim * element);
  }
}

}  // namespace hybridgen
