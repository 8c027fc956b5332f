// SPDX-License-Identifier: Apache-2.0
#include "pipeline/offloaded_blocks.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>
#include <optional>

#include "device/torch_types.h"
#include "kvcache/stored_head.h"

namespace hybridgen {

void OffloadedBlocks::for_each_block(
    const RequestState& request,
    std::int64_t layer,
    const std::function<void(const at::Tensor&, const at::Tensor&)>& visit) {
  const std::int64_t offloaded = request.tokens.num_offloaded();
  if (offloaded == 0) return;
  const std::int64_t row_bytes = model_.config().kv_row_bytes(model_.dtype());
  for (std::int64_t begin = 0; begin < offloaded; begin += kTokens) {
    const TokenRange tokens{begin, std::min(begin + kTokens, offloaded)};
    const at::Tensor keys = send(*request.host, KvSide::kKeys, layer, tokens);
    visit(keys, send(*request.host, KvSide::kValues, layer, tokens));
    link_.to_device(2 * tokens.size() * row_bytes);
  }
  // Rows and their pages may change once this returns.
  std::optional<c10::Event> sent;
  model_.device().record_compute(sent);
  DeviceContext::host_waits(sent);
}

at::Tensor OffloadedBlocks::send(const HostKvStore& store,
                                 KvSide side,
                                 std::int64_t layer,
                                 TokenRange tokens) {
  if (store.is_read_in_place(side, layer, tokens)) return send_in_place(store, side, layer, tokens);
  const ModelConfig& config = model_.config();
  const bool are_keys = side == KvSide::kKeys;
  at::Tensor& staging = are_keys ? keys_ : values_;
  if (!staging.defined()) {
    staging = model_.device().host_staging({config.num_kv_heads * kTokens * config.head_dim},
                                           to_scalar_type(model_.dtype()));
  }
  void* const rows = staging.mutable_data_ptr();
  read_tokens(kernels_, store, layer, tokens, are_keys ? rows : nullptr, are_keys ? nullptr : rows);
  return staging.narrow(0, 0, config.num_kv_heads * tokens.size() * config.head_dim)
      .view({config.num_kv_heads, tokens.size(), config.head_dim})
      .to(model_.device().device());
}

at::Tensor OffloadedBlocks::send_in_place(const HostKvStore& store,
                                          KvSide side,
                                          std::int64_t layer,
                                          TokenRange tokens) const {
  const ModelConfig& config = model_.config();
  const auto options = at::TensorOptions().dtype(to_scalar_type(model_.dtype()));
  const std::int64_t row_bytes =
      config.head_dim * static_cast<std::int64_t>(size_of(model_.dtype()));
  at::Tensor sent = at::empty({config.num_kv_heads, tokens.size(), config.head_dim},
                              options.device(model_.device().device()));
  for (std::int64_t g = 0; g < config.num_kv_heads; ++g) {
    const RowView rows = side == KvSide::kKeys ? store.key_rows(layer, g) : store.values(layer, g);
    const auto* const first = static_cast<const std::byte*>(rows.data) + tokens.begin * row_bytes;
    // Only read; LibTorch has no tensor of constant memory.
    const at::Tensor host =
        at::from_blob(const_cast<std::byte*>(first), {tokens.size(), config.head_dim}, options);
    sent.select(0, g).copy_(host, /*non_blocking=*/true);
  }
  return sent;
}

}  // namespace hybridgen
