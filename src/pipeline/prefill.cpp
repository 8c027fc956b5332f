// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/pipeline/prefill.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "hybridgen/models/torch_types.h"
#include "hybridgen/pipeline/eviction.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kStreamedBlock = 1024;  // tokens that come back from the host at a time

}  // namespace

Prefill::Prefill(const DecoderModel& model,
                 const DeviceOps& ops,
                 TraceRecorder& trace,
                 PipelineStatistics& statistics)
    : model_(model), ops_(ops), trace_(trace), statistics_(statistics) {}

at::Tensor Prefill::run_chunk(RequestState& request,
                              std::span<const std::int64_t> tokens,
                              bool want_logits) {
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  const auto compute = model_.device().use_compute();
  const ModelConfig& config = model_.config();
  const auto count = static_cast<std::int64_t>(tokens.size());
  if (ws_.rows != count) {
    ws_ = {};  // the old one's memory first
    ws_ = BlockWorkspace(config, model_.dtype(), model_.device().device(), count);
  }
  const std::int64_t first_position = request.tokens.num_tokens();
  at::Tensor ids = at::empty({count}, at::kLong);
  std::copy(tokens.begin(), tokens.end(), ids.mutable_data_ptr<std::int64_t>());
  auto* positions = ws_.positions.mutable_data_ptr<std::int64_t>();
  std::iota(positions, positions + count, first_position);
  model_.embed(ops_, ids, ws_);

  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    model_.attention_inputs(ops_, layer, ws_);
    const at::Tensor keys = ws_.key.permute({1, 0, 2});      // [G, T, D]
    const at::Tensor values = ws_.value.permute({1, 0, 2});  // [G, T, D]
    ws_.attended_heads.copy_(attend(request, layer, keys, values).permute({1, 0, 2}));
    place(request, layer, keys, values);
    model_.finish_block(ops_, layer, ws_);
  }
  // All layers hold the same rows now: record where the tokens are.
  const std::int64_t keep = std::min(request.plan.window, request.resident.size() + count);
  const std::int64_t leaving = request.resident.size() + count - keep;
  request.tokens.append(count);
  request.tokens.offload(
      {request.tokens.num_offloaded(), request.tokens.num_offloaded() + leaving});
  request.resident.set_rows(keep);

  at::Tensor logits;
  if (want_logits) {
    if (last_.rows == 0) {
      last_ = BlockWorkspace(config, model_.dtype(), model_.device().device(), 1);
    }
    last_.x.copy_(ws_.x.narrow(0, count - 1, 1));
    logits = at::empty({1, config.vocab_size},
                       at::TensorOptions().dtype(at::kFloat).device(model_.device().device()));
    model_.head(ops_, last_, logits);
    logits = logits.select(0, 0).cpu();
  }
  const std::int64_t end_ns = TraceRecorder::now_ns();
  statistics_.prefill_tokens += count;
  statistics_.prefill_s += static_cast<double>(end_ns - begin_ns) * 1e-9;
  if (trace_.enabled()) {
    trace_.record({.name = "prefill chunk",
                   .lane = TraceLane::kDevice,
                   .begin_ns = begin_ns,
                   .end_ns = end_ns});
  }
  return logits;
}

at::Tensor Prefill::attend(const RequestState& request,
                           std::int64_t layer,
                           const at::Tensor& keys,
                           const at::Tensor& values) {
  PartialAttention sum = ops_.partial_attention(ws_.query, keys, values, /*causal=*/true);
  if (request.resident.size() > 0) {
    merge_partial(sum,
                  ops_.partial_attention(ws_.query,
                                         request.resident.resident_keys(layer),
                                         request.resident.resident_values(layer),
                                         /*causal=*/false));
  }
  stream_offloaded(request, layer, sum);
  return sum.out;
}

void Prefill::stream_offloaded(const RequestState& request,
                               std::int64_t layer,
                               PartialAttention& sum) {
  const std::int64_t offloaded = request.tokens.num_offloaded();
  if (offloaded == 0) {
    return;
  }
  const ModelConfig& config = model_.config();
  if (!block_keys_.defined()) {
    const std::int64_t elements = config.num_kv_heads * kStreamedBlock * config.head_dim;
    block_keys_ = model_.device().host_staging({elements}, to_scalar_type(model_.dtype()));
    block_values_ = model_.device().host_staging({elements}, to_scalar_type(model_.dtype()));
  }
  for (std::int64_t begin = 0; begin < offloaded; begin += kStreamedBlock) {
    const TokenRange range{begin, std::min(begin + kStreamedBlock, offloaded)};
    const std::int64_t elements = config.num_kv_heads * range.size() * config.head_dim;
    request.host->read(
        layer, range, block_keys_.mutable_data_ptr(), block_values_.mutable_data_ptr());
    const auto on_device = [&](const at::Tensor& staging) {
      return staging.narrow(0, 0, elements)
          .view({config.num_kv_heads, range.size(), config.head_dim})
          .to(model_.device().device());
    };
    merge_partial(sum,
                  ops_.partial_attention(ws_.query,
                                         on_device(block_keys_),
                                         on_device(block_values_),
                                         /*causal=*/false));
    statistics_.prefill_h2d_bytes += 2 * range.size() * config.kv_row_bytes(model_.dtype());
  }
}

void Prefill::place(RequestState& request,
                    std::int64_t layer,
                    const at::Tensor& keys,
                    const at::Tensor& values) {
  const std::int64_t old_rows = request.resident.size();
  const std::int64_t new_rows = keys.size(1);
  const std::int64_t keep = std::min(request.plan.window, old_rows + new_rows);
  const std::int64_t leaving = old_rows + new_rows - keep;
  const std::int64_t first = request.tokens.num_offloaded();
  const std::int64_t from_old = std::min(leaving, old_rows);
  if (from_old > 0) {
    statistics_.evicted_bytes += evict_rows(*request.host,
                                            layer,
                                            {first, first + from_old},
                                            request.resident.keys(layer),
                                            request.resident.values(layer),
                                            request.resident.first_slot());
  }
  if (leaving > from_old) {
    statistics_.evicted_bytes += evict_rows(
        *request.host, layer, {first + from_old, first + leaving}, keys, values, /*first_row=*/0);
  }
  request.resident.replace_layer(layer, keys, values, keep);
}

}  // namespace hybridgen
