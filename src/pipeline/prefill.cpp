// SPDX-License-Identifier: Apache-2.0
#include "pipeline/prefill.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>

#include <algorithm>

#include "pipeline/new_token.h"
#include "pipeline/offload.h"
#include "runtime/scoped_span.h"

namespace hybridgen {

Prefill::Prefill(const DecoderModel& model,
                 WeightStore& weights,
                 const DeviceOps& ops,
                 const kernels::CpuKernels& kernels,
                 const Method& method,
                 TraceRecorder& trace,
                 PipelineStatistics& statistics)
    : model_(model),
      weights_(weights),
      ops_(ops),
      method_(method),
      trace_(trace),
      statistics_(statistics),
      link_(statistics.prefill_h2d_bytes, statistics.d2h_bytes, statistics.evicted_bytes),
      offloaded_(model, kernels, link_) {}

void Prefill::run(std::span<PrefillChunk> chunks) {
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  const ScopedSpan span(trace_, "prefill chunk");
  const auto for_each = [&](const auto& work) {
    for (PrefillChunk& chunk : chunks) {
      if (chunk.failure != nullptr) continue;
      try {
        work(chunk);
      } catch (...) {
        chunk.failure = std::current_exception();
      }
    }
  };
  std::int64_t rows = 0;
  for (const PrefillChunk& chunk : chunks) {
    rows = std::max(rows, std::ssize(chunk.tokens));
  }
  if (ws_.rows != rows) {
    ws_ = {};  // the old one's memory first
    ws_ = BlockWorkspace(model_.config(), model_.dtype(), model_.device().device(), rows);
  }
  weights_.begin_pass();
  for_each([&](PrefillChunk& chunk) {
    chunk.ws = &chunk == chunks.data() ? ws_.first_rows(std::ssize(chunk.tokens))
                                       : ws_.beside(std::ssize(chunk.tokens));
    begin(chunk);
  });
  for (std::int64_t layer = 0; layer < model_.config().num_layers; ++layer) {
    if (std::ranges::all_of(chunks, [](const auto& chunk) { return chunk.failure != nullptr; })) {
      break;
    }
    const LayerLease lease = weights_.lease(layer);
    for_each([&](PrefillChunk& chunk) { run_layer(layer, *lease, chunk); });
  }
  for_each([&](PrefillChunk& chunk) { end(chunk); });
  weights_.check_pass();
  statistics_.prefill_s += static_cast<double>(TraceRecorder::now_ns() - begin_ns) * 1e-9;
}

void Prefill::begin(PrefillChunk& chunk) {
  RequestState& request = *chunk.request;
  const auto count = std::ssize(chunk.tokens);
  const std::int64_t first_position = request.tokens.num_tokens();
  at::Tensor ids = at::empty({count}, at::kLong);
  std::ranges::copy(chunk.tokens, ids.mutable_data_ptr<std::int64_t>());
  at::arange_out(chunk.ws.positions, first_position, first_position + count, 1);
  chunk.keep = rows_to_keep(request, request.resident.size() + count);
  chunk.leaving = request.resident.size() + count - chunk.keep;
  if (chunk.leaving > 0) {
    grow_host(request, request.tokens.num_offloaded() + chunk.leaving);
  }
  chunk.ws.rotation = model_.prompt_rotation(first_position, count, request.prefill_tokens);
  model_.embed(ops_, ids.to(model_.device().device()), chunk.ws);
}

void Prefill::run_layer(std::int64_t layer, const LayerWeights& weights, PrefillChunk& chunk) {
  RequestState& request = *chunk.request;
  BlockWorkspace& ws = chunk.ws;
  model_.attention_inputs(ops_, weights, ws);
  const at::Tensor keys = ws.key.permute({1, 0, 2});      // [G, T, D]
  const at::Tensor values = ws.value.permute({1, 0, 2});  // [G, T, D]
  read_ahead(request, layer);
  ws.attended_heads.copy_(attend(request, ws.query, layer, keys, values).permute({1, 0, 2}));
  if (KvDisk* disk = request.on_disk()) {
    disk->release(layer);
  }
  place(request, layer, keys, values);
  model_.attention_output(ops_, weights, ws);
  model_.feed_forward(ops_, weights, ws);
}

// All layers hold the same rows now: records where the tokens are.
void Prefill::end(PrefillChunk& chunk) {
  RequestState& request = *chunk.request;
  const auto count = std::ssize(chunk.tokens);
  request.tokens.append(count);
  request.tokens.offload(
      {request.tokens.num_offloaded(), request.tokens.num_offloaded() + chunk.leaving});
  request.resident.set_rows(chunk.keep);
  statistics_.prefill_tokens += count;
  if (!chunk.wants_logits) {
    return;
  }
  if (last_.rows == 0) {
    last_ = BlockWorkspace(model_.config(), model_.dtype(), model_.device().device(), 1);
  }
  if (method_.residency == Residency::kWindow) {
    send_leaving(method_, request);
  }
  last_.x.copy_(chunk.ws.x.narrow(0, count - 1, 1));
  at::Tensor logits =
      at::empty({1, model_.config().vocab_size},
                at::TensorOptions().dtype(at::kFloat).device(model_.device().device()));
  model_.head(ops_, last_, logits);
  chunk.logits = logits.select(0, 0).cpu();
  if (request.leaving) {
    request.leaving->arrive();
  }
}

at::Tensor Prefill::chunk_logits(const PrefillChunk& chunk,
                                 std::int64_t first,
                                 std::int64_t count) const {
  BlockWorkspace rows;  // views of what the head reads and writes
  rows.rows = count;
  rows.x = chunk.ws.x.narrow(0, first, count);
  rows.normed = ws_.normed.narrow(0, 0, count);
  if (ws_.embedding.defined()) {
    rows.embedding = ws_.embedding.narrow(0, 0, count);
  }
  at::Tensor logits =
      at::empty({count, model_.config().vocab_size},
                at::TensorOptions().dtype(at::kFloat).device(model_.device().device()));
  model_.head(ops_, rows, logits);
  weights_.check_pass();
  return logits.cpu();
}

// Starts to read what the disk has of this layer, if it was not yet, and of the next.
void Prefill::read_ahead(const RequestState& request, std::int64_t layer) const {
  KvDisk* const disk = request.on_disk();
  if (disk == nullptr) {
    return;
  }
  const std::int64_t end = std::min(layer + KvDisk::kLayersRead, model_.config().num_layers);
  for (std::int64_t next = layer; next < end; ++next) {
    disk->expect(next, KvSide::kKeys);
    disk->expect(next, KvSide::kValues);
  }
}

// Before a retention policy has chosen, the whole prompt stays.
std::int64_t Prefill::rows_to_keep(const RequestState& request, std::int64_t rows) const {
  return request.parts.retention != nullptr ? rows : std::min(request.plan.window, rows);
}

at::Tensor Prefill::attend(RequestState& request,
                           const at::Tensor& query,
                           std::int64_t layer,
                           const at::Tensor& keys,
                           const at::Tensor& values) {
  PartialAttention device = ops_.partial_attention(query, keys, values, /*causal=*/true);
  if (request.resident.size() > 0) {
    ops_.add_partial(device,
                     ops_.partial_attention(query,
                                            request.resident.resident_keys(layer),
                                            request.resident.resident_values(layer),
                                            /*causal=*/false));
  }
  PartialAttention offloaded;
  offloaded_.for_each_block(
      request, layer, [&](const at::Tensor& block_keys, const at::Tensor& block) {
        ops_.add_partial(offloaded,
                         ops_.partial_attention(query, block_keys, block, /*causal=*/false));
      });
  PartialAttention all = device;
  if (offloaded.out.defined()) {
    ops_.add_partial(all, offloaded);
  }
  tell_parts(request, query, layer, keys, device, offloaded, all);
  return all.out;
}

void Prefill::tell_parts(RequestState& request,
                         const at::Tensor& query,
                         std::int64_t layer,
                         const at::Tensor& keys,
                         const PartialAttention& device,
                         const PartialAttention& offloaded,
                         const PartialAttention& all) {
  if (request.parts.all.empty()) {
    return;
  }
  const at::Tensor resident =
      request.resident.size() > 0 ? request.resident.resident_keys(layer) : at::Tensor{};
  const PromptRows rows{.layer = layer,
                        .first_row = request.tokens.num_tokens(),
                        .query = query,
                        .keys = keys,
                        .resident_keys = resident,
                        .lse = all.lse};
  request.parts.tell([&](KvPart& part) {
    part.on_prompt_rows(rows);
    if (part.prefill_weights() == PrefillWeights::kLocal) {
      give_weights(request, part, rows, offloaded.lse, device.lse);
    } else if (part.prefill_weights() == PrefillWeights::kGlobal) {
      give_weights(request, part, rows, all.lse, all.lse);
    }
  });
}

void Prefill::give_weights(RequestState& request,
                           KvPart& part,
                           const PromptRows& rows,
                           const at::Tensor& offloaded_lse,
                           const at::Tensor& device_lse) {
  const std::int64_t per_group = model_.config().query_heads_per_kv_head();
  const auto give = [&](const at::Tensor& sums, std::int64_t begin, bool is_offloaded) {
    PrefillAttention seen;
    seen.tokens = {begin, begin + sums.size(1)};
    seen.is_offloaded = is_offloaded;
    seen.num_queries = per_group;
    seen.num_rows = rows.query.size(0);
    seen.stride = sums.size(1);
    for (std::int64_t g = 0; g < model_.config().num_kv_heads; ++g) {
      seen.sums = sums.const_data_ptr<float>() + g * per_group * seen.stride;
      part.on_prefill(rows.layer, g, seen);
    }
  };
  const std::int64_t first = request.tokens.num_offloaded();
  if (first > 0) {
    std::vector<at::Tensor> blocks;
    offloaded_.for_each_block(request, rows.layer, [&](const at::Tensor& keys, const at::Tensor&) {
      blocks.push_back(ops_.column_sums(rows.query, keys, offloaded_lse, /*causal=*/false));
    });
    give(at::cat(blocks, 1).contiguous(), 0, /*is_offloaded=*/true);
  }
  at::Tensor sums = ops_.column_sums(rows.query, rows.keys, device_lse, /*causal=*/true);
  if (rows.resident_keys.defined()) {
    const at::Tensor before =
        ops_.column_sums(rows.query, rows.resident_keys, device_lse, /*causal=*/false);
    sums = at::cat({before, sums}, 1).contiguous();
  }
  give(sums, first, /*is_offloaded=*/false);
}

void Prefill::finish(RequestState& request) {
  request.parts.tell(
      [&](KvPart& part) { part.before_step(request.tokens.num_offloaded(), request.host.get()); });
  if (request.parts.retention == nullptr) {
    return;
  }
  const ModelConfig& config = model_.config();
  ResidentCache kept(
      config, request.resident.keys(0).options(), std::max<std::int64_t>(request.plan.window, 1));
  RopeTable unrotation;
  if (method_.positions == PositionMode::kCacheIndex) {
    unrotation = inverse_of(config, model_.prompt_rope(request.tokens.num_tokens()));
  }
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    keep_layer(request, layer, unrotation, kept);
  }
  const std::int64_t total = request.tokens.num_tokens();
  const auto count = static_cast<std::int64_t>(request.parts.retention->positions(0, 0).size());
  if (request.host != nullptr) {
    request.tokens.offload({0, count});
  } else {
    kept.set_rows(count);
  }
  request.tokens.drop(total - count);
  request.resident = std::move(kept);
  if (request.parts.prompt_scores != nullptr) {
    request.parts.prompt_scores->forget();
  }
  request.prompt_reservation = {};
}

void Prefill::keep_layer(RequestState& request,
                         std::int64_t layer,
                         const RopeTable& unrotation,
                         ResidentCache& kept) {
  const std::int64_t total = request.tokens.num_tokens();
  for (std::int64_t g = 0; g < model_.config().num_kv_heads; ++g) {
    std::span<const float> sums;
    if (request.parts.prompt_scores != nullptr) {
      sums = request.parts.prompt_scores->sums(layer, g, total);
    }
    const auto positions = request.parts.retention->keep_after_prefill(layer, g, total, sums);
    const auto count = static_cast<std::int64_t>(positions.size());
    if (count == 0) {
      continue;
    }
    at::Tensor where = at::empty({count}, at::kLong);
    std::ranges::copy(positions, where.mutable_data_ptr<std::int64_t>());
    where = where.to(model_.device().device());
    const auto rows_of = [&](const at::Tensor& all) {
      return all.narrow(0, g, 1).index_select(1, where);
    };
    at::Tensor keys = rows_of(request.resident.resident_keys(layer));
    const at::Tensor values = rows_of(request.resident.resident_values(layer));
    if (unrotation.cosines.defined()) {
      rotate_keys(ops_, unrotation, where, keys);
    }
    if (request.host == nullptr) {
      kept.keys(layer).narrow(0, g, 1).narrow(1, 0, count).copy_(keys);
      kept.values(layer).narrow(0, g, 1).narrow(1, 0, count).copy_(values);
      continue;
    }
    const at::Tensor host_keys = keys.cpu().contiguous();
    const at::Tensor host_values = values.cpu().contiguous();
    grow_host(request, count);
    request.host->fix_channels(layer, g, count, host_keys.const_data_ptr());
    for (std::int64_t slot = 0; slot < count; ++slot) {
      request.host->write_row(layer,
                              g,
                              slot,
                              host_keys.select(1, slot).const_data_ptr(),
                              host_values.select(1, slot).const_data_ptr());
    }
    link_.leaving(static_cast<std::int64_t>(keys.nbytes() + values.nbytes()));
  }
}

void Prefill::place(RequestState& request,
                    std::int64_t layer,
                    const at::Tensor& keys,
                    const at::Tensor& values) {
  const std::int64_t old_rows = request.resident.size();
  const std::int64_t new_rows = keys.size(1);
  const std::int64_t keep = rows_to_keep(request, old_rows + new_rows);
  const std::int64_t leaving = old_rows + new_rows - keep;
  const std::int64_t first = request.tokens.num_offloaded();
  const std::int64_t from_old = std::min(leaving, old_rows);
  if (leaving > 0 && wants_channels(request, layer, leaving)) {
    std::vector<at::Tensor> on_device;
    if (old_rows > 0) {
      on_device.push_back(request.resident.resident_keys(layer));
    }
    on_device.push_back(keys);
    fix_channels(request, layer, on_device);
  }
  if (from_old > 0) {
    offload_rows(request,
                 layer,
                 {first, first + from_old},
                 request.resident.keys(layer),
                 request.resident.values(layer),
                 request.resident.first_slot(),
                 link_);
  }
  if (leaving > from_old) {
    offload_rows(request, layer, {first + from_old, first + leaving}, keys, values, 0, link_);
  }
  request.resident.replace_layer(layer, keys, values, keep);
}

}  // namespace hybridgen
