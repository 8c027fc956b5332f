// SPDX-License-Identifier: Apache-2.0
#include "pipeline/feedback.h"

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "pipeline/offload.h"

namespace hybridgen {
namespace {

// Fewer weights per KV head are scored in less time than another thread takes to answer.
constexpr std::int64_t kLeastSharedWeights = 1024;

bool parts_want_weights(const RequestState& request) {
  return std::ranges::any_of(request.parts.all, [](const std::unique_ptr<KvPart>& part) {
    return part->wants_decode_weights();
  });
}

bool retention_wants_weights(const RequestState& request) {
  return request.parts.retention != nullptr && request.parts.retention->wants_weights();
}

// `job`: the host job whose payload was merged; null if there was none. `own_counts` [G]: memory
// for counts where they are all the same.
ChosenTokens chosen_tokens(const AttentionItem& item,
                           const HostJob* job,
                           std::int64_t per_group,
                           std::vector<std::int64_t>& own_counts) {
  const HostPayload* payload = item.payload;
  if (payload == nullptr || payload->is_partial() || job == nullptr) {
    return {};
  }
  if (job->is_shared()) {
    return {job->buffers.merged, job->buffers.union_capacity, 0, payload->union_sizes.data()};
  }
  std::ranges::fill(own_counts, payload->count);
  return {job->buffers.positions, per_group * job->num_chosen, job->num_chosen, own_counts.data()};
}

// The place of the new token per KV head, into loop.new_slots. Nothing is moved yet.
void choose_slots(LoopContext& loop,
                  std::int64_t layer,
                  RequestState& request,
                  const SoftmaxWeights& weights) {
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

void give_weights(LoopContext& loop,
                  std::int64_t layer,
                  RequestState& request,
                  const SoftmaxWeights& weights) {
  const std::int64_t per_group = loop.config().query_heads_per_kv_head();
  const ChosenTokens& chosen = weights.chosen;
  DecodeAttention seen;
  seen.num_queries = per_group;
  seen.resident = request.tokens.resident();
  seen.stride = weights.stride;
  seen.positions_stride = chosen.row_stride;
  for (std::int64_t g = 0; g < loop.config().num_kv_heads; ++g) {
    if (chosen.positions != nullptr) {
      seen.num_chosen = chosen.counts[g];
      seen.positions = chosen.positions + g * chosen.head_stride;
    }
    seen.weights = weights.data + g * per_group * weights.stride;
    request.parts.tell([&](KvPart& part) {
      if (part.wants_decode_weights()) {
        part.on_decode(layer, g, seen);
      }
    });
  }
}

// `moves` [L, G]: where slots are noted; empty: rows are moved at once.
void retain_new_token(LoopContext& loop,
                      std::int64_t layer,
                      RequestState& request,
                      const SoftmaxWeights& weights,
                      std::span<std::int32_t> moves) {
  choose_slots(loop, layer, request, weights);
  const std::int64_t newest = request.resident.first_slot() + request.resident.size() - 1;
  if (request.host == nullptr) {
    for (std::int64_t g = 0; g < loop.config().num_kv_heads; ++g) {
      const std::int64_t slot = loop.new_slots[static_cast<std::size_t>(g)];
      if (slot == newest) {
        continue;
      }
      if (moves.empty()) {
        request.resident.copy_row(layer, g, newest, slot);
      } else {
        moves[static_cast<std::size_t>(layer * loop.config().num_kv_heads + g)] =
            static_cast<std::int32_t>(slot);
      }
    }
    return;
  }
  grow_host(request, std::ranges::max(loop.new_slots) + 1);
  const HostRows rows = leaving_rows(request, layer, newest);
  const auto element = static_cast<std::int64_t>(size_of(request.host->shape().dtype));
  for (std::int64_t g = 0; g < loop.config().num_kv_heads; ++g) {
    request.host->write_row(layer,
                            g,
                            loop.new_slots[static_cast<std::size_t>(g)],
                            row_of(rows.keys, g, 0, element),
                            row_of(rows.values, g, 0, element));
    loop.link.leaving(2 * loop.config().head_dim * element);
  }
}

// All that a layer's weights are for. Weights that only some want cross the link once for each of
// both kinds.
void use_weights(LoopContext& loop,
                 std::int64_t layer,
                 RequestState& request,
                 const SoftmaxWeights& weights,
                 std::span<std::int32_t> moves = {}) {
  const std::int64_t bytes =
      loop.config().num_heads * weights.stride * static_cast<std::int64_t>(sizeof(float));
  if (weights.data != nullptr && parts_want_weights(request)) {
    loop.link.to_host(bytes);
    give_weights(loop, layer, request, weights);
  }
  if (request.parts.retention != nullptr) {
    const bool wants = retention_wants_weights(request);
    loop.link.to_host(wants ? bytes : 0);
    retain_new_token(loop, layer, request, wants ? weights : SoftmaxWeights{}, moves);
  }
}

void send_weights(const LoopContext& loop,
                  std::int64_t layer,
                  RequestState& request,
                  const AttentionItem& item,
                  const ChosenTokens& chosen) {
  if (!request.weights) {
    request.weights.emplace(
        loop.config(), loop.model.device(), request.plan.window, request.plan.staging.max_chosen);
  }
  request.weights->send(layer, *item.merged_logits, item.merged_stride(), chosen);
}

}  // namespace

bool wants_weights(const RequestState& request) {
  return parts_want_weights(request) || retention_wants_weights(request);
}

void give_feedback(LoopContext& loop, std::int64_t layer, MicroBatch& batch) {
  ScopedSpan span = loop.span("selection state", layer);
  bool has_state = false;
  const MicroBatch::HostSlot& slot = batch.slot(layer);
  const bool is_cpu = loop.model.device().is_cpu();
  loop.new_counts.resize(static_cast<std::size_t>(loop.config().num_kv_heads));
  std::size_t job = 0;
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    const AttentionItem& item = batch.items[row];
    const bool has_job = job < slot.rows.size() && slot.rows[job] == static_cast<std::int64_t>(row);
    const HostJob* own_job = has_job ? &slot.batch.jobs[job++] : nullptr;
    if (!wants_weights(request) && (request.parts.retention == nullptr || !is_cpu)) {
      continue;
    }
    has_state = true;
    contain(request, [&] {
      const ChosenTokens chosen =
          chosen_tokens(item, own_job, loop.config().query_heads_per_kv_head(), loop.new_counts);
      if (is_cpu) {
        use_weights(loop,
                    layer,
                    request,
                    {item.merged_logits->const_data_ptr<float>(), item.merged_stride(), chosen});
      } else {
        send_weights(loop, layer, request, item, chosen);
      }
    });
  }
  if (!has_state) {
    span.discard();
  }
}

void give_sent_feedback(LoopContext& loop, RequestState& request, std::span<std::int32_t> moves) {
  if (request.parts.retention == nullptr && !request.weights) {
    return;
  }
  for (std::int64_t layer = 0; layer < loop.config().num_layers; ++layer) {
    use_weights(loop,
                layer,
                request,
                request.weights ? request.weights->take(layer) : SoftmaxWeights{},
                moves);
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
