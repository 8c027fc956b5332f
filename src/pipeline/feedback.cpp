// SPDX-License-Identifier: Apache-2.0
#include "pipeline/feedback.h"

#include <ATen/core/Tensor.h>

#include <algorithm>

namespace hybridgen {
namespace {

// The weights that merge() left, [H, stride], on the host.
struct AttentionWeights {
  at::Tensor tensor;
  const float* data = nullptr;
  std::int64_t stride = 0;
};

AttentionWeights weights_of(LoopContext& loop, const AttentionItem& item) {
  AttentionWeights weights;
  weights.stride = item.merged_stride();
  const std::int64_t count = loop.config().num_heads * weights.stride;
  weights.tensor = *item.merged_logits;
  if (!weights.tensor.device().is_cpu()) {
    weights.tensor = weights.tensor.narrow(0, 0, count).cpu();
  }
  weights.data = weights.tensor.const_data_ptr<float>();
  loop.link.to_host(count * static_cast<std::int64_t>(sizeof(float)));
  return weights;
}

// Fewer weights per KV head are scored in less time than another thread takes to answer.
constexpr std::int64_t kLeastSharedWeights = 1024;

// The place of the new token per KV head, into loop.new_slots. Nothing is moved yet.
void choose_slots(LoopContext& loop,
                  std::int64_t layer,
                  RequestState& request,
                  const AttentionWeights& weights) {
  const ModelConfig& config = loop.config();
  const std::int64_t per_group = config.query_heads_per_kv_head();
  const std::int64_t position = request.tokens.num_tokens() - 1;
  loop.new_slots.resize(static_cast<std::size_t>(config.num_kv_heads));
  const auto choose = [&](std::int64_t g) {
    const float* rows =
        weights.data == nullptr ? nullptr : weights.data + g * per_group * weights.stride;
    loop.new_slots[static_cast<std::size_t>(g)] =
        request.parts.retention->replace(layer, g, position, rows, weights.stride);
  };
  if (loop.pool == nullptr || config.num_kv_heads == 1 || weights.data == nullptr ||
      per_group * weights.stride < kLeastSharedWeights) {
    for (std::int64_t g = 0; g < config.num_kv_heads; ++g) {
      choose(g);
    }
    return;
  }
  loop.pool->for_each(config.num_kv_heads, choose);
}

// `job`: the host job whose payload was merged; null if there was none. Returns whether anybody
// wanted the weights.
bool give_weights(LoopContext& loop,
                  std::int64_t layer,
                  RequestState& request,
                  const AttentionItem& item,
                  const HostJob* job) {
  const auto wants = [](const std::unique_ptr<KvPart>& part) {
    return part->wants_decode_weights();
  };
  if (std::ranges::none_of(request.parts.all, wants)) {
    return false;
  }
  const AttentionWeights weights = weights_of(loop, item);
  const std::int64_t per_group = loop.config().query_heads_per_kv_head();
  const HostPayload* payload = item.payload;
  DecodeAttention seen;
  seen.num_queries = per_group;
  seen.resident = request.tokens.resident();
  seen.stride = weights.stride;
  for (std::int64_t g = 0; g < loop.config().num_kv_heads; ++g) {
    if (payload != nullptr && !payload->is_partial()) {
      seen.num_chosen = payload->tokens_of(g);
      const bool is_shared = job->is_shared();
      seen.positions = is_shared ? job->buffers.merged + g * job->buffers.union_capacity
                                 : job->buffers.positions + g * per_group * job->num_chosen;
      seen.positions_stride = is_shared ? 0 : job->num_chosen;
    }
    seen.weights = weights.data + g * per_group * weights.stride;
    request.parts.tell([&](KvPart& part) {
      if (part.wants_decode_weights()) {
        part.on_decode(layer, g, seen);
      }
    });
  }
  return true;
}

void retain_new_token(LoopContext& loop,
                      std::int64_t layer,
                      RequestState& request,
                      const AttentionItem& item) {
  choose_slots(
      loop,
      layer,
      request,
      request.parts.retention->wants_weights() ? weights_of(loop, item) : AttentionWeights{});
  const std::int64_t newest = item.first_slot + item.num_resident - 1;
  const at::Tensor& keys = request.resident.keys(layer);
  const at::Tensor& values = request.resident.values(layer);
  for (std::int64_t g = 0; g < loop.config().num_kv_heads; ++g) {
    const std::int64_t slot = loop.new_slots[static_cast<std::size_t>(g)];
    if (request.host == nullptr) {
      if (slot != newest) {
        request.resident.copy_row(layer, g, newest, slot);
      }
      continue;
    }
    const at::Tensor key = keys.select(0, g).select(0, newest).cpu();
    const at::Tensor value = values.select(0, g).select(0, newest).cpu();
    request.host->write_row(layer, g, slot, key.const_data_ptr(), value.const_data_ptr());
    loop.link.leaving(static_cast<std::int64_t>(key.nbytes() + value.nbytes()));
  }
}

}  // namespace

void give_feedback(LoopContext& loop, std::int64_t layer, MicroBatch& batch) {
  ScopedSpan span = loop.span("selection state", layer);
  bool has_state = false;
  const MicroBatch::HostSlot& slot = batch.slot(layer);
  std::size_t job = 0;
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    const AttentionItem& item = batch.items[row];
    const bool has_job = job < slot.rows.size() && slot.rows[job] == static_cast<std::int64_t>(row);
    const HostJob* own_job = has_job ? &slot.batch.jobs[job++] : nullptr;
    contain(request, [&] {
      has_state |=
          give_weights(loop, layer, request, item, item.payload == nullptr ? nullptr : own_job);
      if (request.parts.retention != nullptr) {
        has_state = true;
        retain_new_token(loop, layer, request, item);
      }
    });
  }
  if (!has_state) {
    span.discard();
  }
}

void end_retention_step(RequestState& request) {
  if (request.parts.retention == nullptr) {
    return;
  }
  const auto kept = static_cast<std::int64_t>(request.parts.retention->positions(0, 0).size());
  if (request.host == nullptr) {
    const std::int64_t dropped = request.resident.size() - kept;
    request.resident.drop_back(dropped);
    request.tokens.drop(dropped);
    return;
  }
  const std::int64_t before = request.tokens.num_offloaded();
  request.resident.drop_back(1);
  if (kept > before) {
    request.tokens.offload({before, kept});
  } else {
    request.tokens.drop(1);
  }
}

}  // namespace hybridgen
