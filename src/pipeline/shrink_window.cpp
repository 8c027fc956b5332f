// SPDX-License-Identifier: Apache-2.0
#include "pipeline/shrink_window.h"

#include <utility>
#include <vector>

#include "pipeline/offload.h"

namespace hybridgen {
namespace {

/// The rows that stay, in a cache of the smaller size.
ResidentCache smaller_cache(RequestState& request,
                            const DecoderModel& model,
                            std::int64_t capacity) {
  const at::TensorOptions options = request.resident.all_keys().options();
  const std::int64_t rows = request.resident.size();
  std::vector<std::pair<at::Tensor, at::Tensor>> kept;
  for (std::int64_t layer = 0; layer < model.config().num_layers; ++layer) {
    kept.emplace_back(request.resident.resident_keys(layer).cpu(),
                      request.resident.resident_values(layer).cpu());
  }
  // A device has no room for both; on the CPU `kept` is where the rows lie.
  if (!model.device().is_cpu()) {
    request.resident = {};
  }
  ResidentCache cache(model.config(), options, capacity);
  for (std::int64_t layer = 0; layer < model.config().num_layers; ++layer) {
    const auto& [keys, values] = kept[static_cast<std::size_t>(layer)];
    cache.replace_layer(layer, keys.to(options.device()), values.to(options.device()), rows);
  }
  cache.set_rows(rows);
  return cache;
}

}  // namespace

void shrink_window(RequestState& request,
                   const DecoderModel& model,
                   const Method& method,
                   const RequestPlan& smaller,
                   LinkMeter& link) {
  EvictionEngine eviction(smaller.window, method.window.block);
  const TokenRange leaving = eviction.plan(request.tokens, 1).tokens;
  if (!leaving.empty()) {
    grow_host(request, leaving.end);  // first: where there is no memory, nothing has changed
  }
  for (std::int64_t layer = 0; layer < model.config().num_layers && !leaving.empty(); ++layer) {
    if (wants_channels(request, layer, leaving.size())) {
      fix_channels(request, layer, {request.resident.resident_keys(layer)});
    }
    offload_rows(request,
                 layer,
                 leaving,
                 request.resident.keys(layer),
                 request.resident.values(layer),
                 request.resident.first_slot(),
                 link);
  }
  request.resident.drop_front(leaving.size());
  request.tokens.offload(leaving);
  request.eviction = eviction;
  request.logits = {};
  request.resident = smaller_cache(request, model, resident_capacity(method, smaller));
  request.logits = logit_scratch(model, smaller);
  if (request.leaving) {
    request.leaving->forget();
  }
  request.device_reservation.give_back(request.plan.device_bytes - smaller.device_bytes);
  request.plan = smaller;
}

}  // namespace hybridgen
