// SPDX-License-Identifier: Apache-2.0
#include "pipeline/feedback.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <array>
#include <numeric>

namespace hybridgen {
namespace {

// The weights that merge() left, [H, stride], on the host; `bytes` of them left the device.
struct AttentionWeights {
  at::Tensor tensor;
  const float* data = nullptr;
  std::int64_t stride = 0;
  std::int64_t bytes = 0;
};

AttentionWeights weights_of(const ModelConfig& config, const AttentionItem& item) {
  AttentionWeights weights;
  weights.stride = item.merged_stride();
  const std::int64_t count = config.num_heads * weights.stride;
  weights.tensor = *item.merged_logits;
  if (!weights.tensor.device().is_cpu()) {
    weights.tensor = weights.tensor.narrow(0, 0, count).cpu();
  }
  weights.data = weights.tensor.const_data_ptr<float>();
  weights.bytes = count * static_cast<std::int64_t>(sizeof(float));
  return weights;
}

// Fewer weights per KV head are scored in less time than another thread takes to answer.
constexpr std::int64_t kLeastSharedWeights = 1024;

// The place of the new token per KV head, into request.new_slots. Nothing is moved yet.
void choose_slots(const ModelConfig& config,
                  WorkerPool* pool,
                  std::int64_t layer,
                  RequestState& request,
                  const AttentionWeights& weights) {
  const std::int64_t per_group = config.query_heads_per_kv_head();
  const std::int64_t position = request.tokens.num_tokens() - 1;
  request.new_slots.resize(static_cast<std::size_t>(config.num_kv_heads));
  const auto choose = [&](std::int64_t g) {
    const float* rows =
        weights.data == nullptr ? nullptr : weights.data + g * per_group * weights.stride;
    request.new_slots[static_cast<std::size_t>(g)] =
        request.retention->replace(layer, g, position, rows, weights.stride);
  };
  if (pool == nullptr || config.num_kv_heads == 1 || weights.data == nullptr ||
      per_group * weights.stride < kLeastSharedWeights) {
    for (std::int64_t g = 0; g < config.num_kv_heads; ++g) {
      choose(g);
    }
    return;
  }
  pool->for_each(config.num_kv_heads, choose);
}

}  // namespace

FeedbackBytes give_weights_to_selectors(const ModelConfig& config,
                                        std::int64_t layer,
                                        RequestState& request,
                                        const AttentionItem& item,
                                        const HostJob* job) {
  const std::array<TokenSelector*, 2> selectors = {request.selector.get(),
                                                   request.pre_selector.get()};
  const auto wants = [](const TokenSelector* selector) {
    return selector != nullptr && selector->wants_decode_weights();
  };
  if (std::ranges::none_of(selectors, wants)) {
    return {};
  }
  const AttentionWeights weights = weights_of(config, item);
  const std::int64_t per_group = config.query_heads_per_kv_head();
  const HostPayload* payload = item.payload;
  DecodeAttention seen;
  seen.num_queries = per_group;
  seen.resident = request.tokens.resident();
  seen.stride = weights.stride;
  for (std::int64_t g = 0; g < config.num_kv_heads; ++g) {
    if (payload != nullptr && !payload->is_partial()) {
      seen.num_chosen = payload->tokens_of(g);
      const bool is_shared = job->is_shared();
      seen.positions = is_shared ? job->buffers.merged + g * job->buffers.union_capacity
                                 : job->buffers.positions + g * per_group * job->num_chosen;
      seen.positions_stride = is_shared ? 0 : job->num_chosen;
    }
    seen.weights = weights.data + g * per_group * weights.stride;
    for (TokenSelector* selector : selectors) {
      if (wants(selector)) {
        selector->on_decode(layer, g, seen);
      }
    }
  }
  return {.weights = weights.bytes};
}

FeedbackBytes retain_new_token(const ModelConfig& config,
                               WorkerPool* pool,
                               std::int64_t layer,
                               RequestState& request,
                               const AttentionItem& item) {
  FeedbackBytes bytes;
  AttentionWeights weights;
  if (request.retention->wants_weights()) {
    weights = weights_of(config, item);
    bytes.weights = weights.bytes;
  }
  choose_slots(config, pool, layer, request, weights);
  const std::int64_t newest = item.first_slot + item.num_resident - 1;
  const at::Tensor& keys = request.resident.keys(layer);
  const at::Tensor& values = request.resident.values(layer);
  for (std::int64_t g = 0; g < config.num_kv_heads; ++g) {
    const std::int64_t slot = request.new_slots[static_cast<std::size_t>(g)];
    if (request.host == nullptr) {
      if (slot != newest) {
        request.resident.copy_row(layer, g, newest, slot);
      }
      continue;
    }
    const at::Tensor key = keys.select(0, g).select(0, newest).cpu();
    const at::Tensor value = values.select(0, g).select(0, newest).cpu();
    request.host->write_row(layer, g, slot, key.const_data_ptr(), value.const_data_ptr());
    bytes.rows += static_cast<std::int64_t>(key.nbytes() + value.nbytes());
  }
  return bytes;
}

void end_retention_step(RequestState& request) {
  if (request.retention == nullptr) {
    return;
  }
  const auto kept = static_cast<std::int64_t>(request.retention->positions(0, 0).size());
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

void shift_to_cache_places(const DecoderModel& model,
                           const DeviceOps& ops,
                           std::int64_t layer,
                           RequestState& request) {
  const std::int64_t count = request.resident.size();
  auto* ranks = request.ranks.mutable_data_ptr<std::int64_t>();
  const at::Tensor& keys = request.resident.keys(layer);
  for (std::int64_t g = 0; g < keys.size(0); ++g) {
    const std::span<const std::int32_t> positions = request.retention->positions(layer, g);
    if (!std::ranges::equal(positions, request.ranked_positions)) {
      request.ranked_positions.assign(positions.begin(), positions.end());
      std::vector<std::int64_t> order(positions.size());
      std::iota(order.begin(), order.end(), 0);
      std::ranges::sort(
          order, {}, [&](std::int64_t slot) { return positions[static_cast<std::size_t>(slot)]; });
      for (std::size_t rank = 0; rank < order.size(); ++rank) {
        ranks[order[rank]] = static_cast<std::int64_t>(rank);
      }
    }
    ranks[count - 1] = count - 1;  // the new token
    at::Tensor shifted = request.shifted_keys.narrow(0, g, 1);
    shifted.narrow(1, 0, count).copy_(keys.narrow(0, g, 1).narrow(1, 0, count));
    model.rotate_keys(ops, shifted, request.ranks.narrow(0, 0, count));
  }
}

}  // namespace hybridgen
