// SPDX-License-Identifier: Apache-2.0
// Carries out what the eviction engine decided: K and V rows from the device into the host store,
// and word of it to everything that keeps track of offloaded tokens.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <vector>

#include "pipeline/request_state.h"
#include "runtime/link_meter.h"

namespace hybridgen {

/// Rows of one layer where the host can read them.
struct HostRows {
  KvRowsView keys;
  KvRowsView values;
};
/// Of tensors [G, rows, D] on the host, from `first_row` on.
HostRows host_rows(const at::Tensor& keys, const at::Tensor& values, std::int64_t first_row);

/// Of one layer's resident rows, from slot `first` on: where they lie, or, on a device that is not
/// the host, what `request.leaving` brought of them.
HostRows leaving_rows(RequestState& request, std::int64_t layer, std::int64_t first);
/// One row of a KV head; `element`: bytes of one.
inline const void* row_of(const KvRowsView& rows,
                          std::int64_t kv_head,
                          std::int64_t row,
                          std::int64_t element) {
  return static_cast<const std::byte*>(rows.data) +
         (kv_head * rows.head_stride + row * rows.token_stride) * element;
}

/// Memory for [0, tokens) on the host, before they are written there: on the driver thread. Host
/// jobs may read what is there meanwhile. Throws what HostKvStore::grow does.
void grow_host(RequestState& request, std::int64_t tokens);

/// Whether the `leaving` rows of a layer go to a host that keeps keys in 8 or 4 bits, does not know
/// yet what its channels look like, and could not tell from so few.
bool wants_channels(const RequestState& request, std::int64_t layer, std::int64_t leaving);

/// Lets all keys on the device, tensors [G, rows, D], say so before they leave.
void fix_channels(RequestState& request, std::int64_t layer, const std::vector<at::Tensor>& keys);

/// Copies `tokens` of one layer; tokens.begin is row `first_row` of keys and values [G, rows, D]
/// (any device, last dimension contiguous). Waits for a device that is not the host.
void offload_rows(RequestState& request,
                  std::int64_t layer,
                  TokenRange tokens,
                  const at::Tensor& keys,
                  const at::Tensor& values,
                  std::int64_t first_row,
                  LinkMeter& link);

/// The same of `rows`, which are on the host already and begin with that row.
void offload_rows(RequestState& request,
                  std::int64_t layer,
                  TokenRange tokens,
                  const HostRows& rows,
                  const at::Tensor& keys,
                  std::int64_t first_row,
                  LinkMeter& link);

/// The host is full: row `row` of `rows`, which lies in `resident_slot` on the device, takes the
/// place of the tokens that the request's placement decides to drop, one per KV head. Of a token
/// layer after layer.
void replace_on_host(RequestState& request,
                     std::int64_t layer,
                     const HostRows& rows,
                     std::int64_t row,
                     std::int64_t resident_slot,
                     LinkMeter& link);

}  // namespace hybridgen
