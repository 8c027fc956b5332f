// SPDX-License-Identifier: Apache-2.0
#include "pipeline/new_token.h"

#include <algorithm>

#include "hybridgen/core/error.h"
#include "pipeline/offload.h"

namespace hybridgen {
namespace {

// Who is too many for the window leaves for the host; where that is full, each takes the place of
// another there.
void make_room(LoopContext& loop, RequestState& request) {
  const EvictionPlan plan = request.eviction.plan(request.tokens, 1);
  if (plan.tokens.empty()) {
    return;
  }
  const std::int64_t room = request.plan.max_offloaded - request.tokens.num_offloaded();
  HYBRIDGEN_DCHECK(room >= plan.tokens.size() || request.parts.placement != nullptr, room);
  const TokenRange moving{plan.tokens.begin,
                          plan.tokens.begin + std::min(room, plan.tokens.size())};
  if (!moving.empty()) {
    grow_host(request, moving.end);
  }
  const std::int64_t first = request.resident.first_slot();
  for (std::int64_t layer = 0; layer < loop.config().num_layers; ++layer) {
    if (wants_channels(request, layer, plan.tokens.size())) {
      fix_channels(request, layer, {request.resident.resident_keys(layer)});
    }
    if (!moving.empty()) {
      const HostRows rows = leaving_rows(request, layer, first);
      offload_rows(request, layer, moving, rows, request.resident.keys(layer), first, loop.link);
    }
  }
  for (std::int64_t row = moving.size(); row < plan.tokens.size(); ++row) {
    for (std::int64_t layer = 0; layer < loop.config().num_layers; ++layer) {
      const HostRows rows = leaving_rows(request, layer, first);
      replace_on_host(request, layer, rows, row, first + row, loop.link);
    }
  }
  request.resident.drop_front(plan.tokens.size());
  request.tokens.drop(plan.tokens.size() - moving.size());
  request.tokens.offload(moving);
}

}  // namespace

void send_leaving(const Method& method, RequestState& request) {
  if (!request.leaving || request.failure != nullptr) {
    return;
  }
  if (method.residency == Residency::kRetained) {
    request.leaving->send(
        request.resident, request.resident.first_slot() + request.resident.size() - 1, 1);
    return;
  }
  // The last token of all is never fed.
  const bool is_over = request.tokens.num_tokens() + 1 >= request.plan.shape.max_tokens;
  const std::int64_t count = request.eviction.plan(request.tokens, 1).tokens.size();
  if (!is_over && count > 0) {
    request.leaving->send(request.resident, request.resident.first_slot(), count);
  }
}

bool misses_leaving(const Method& method, const RequestState& request) {
  if (!request.leaving || request.failure != nullptr || method.residency != Residency::kWindow) {
    return false;
  }
  const std::int64_t count = request.eviction.plan(request.tokens, 1).tokens.size();
  return count > 0 && !request.leaving->has(request.resident.first_slot(), count);
}

void add_token(LoopContext& loop, RequestState& request) {
  if (loop.method.residency == Residency::kWindow) {
    make_room(loop, request);  // elsewhere nobody leaves, or was chosen in the step before
  }
  request.tokens.append(1);
  if (loop.method.residency == Residency::kNone) {
    const std::int64_t newest = request.tokens.num_tokens() - 1;
    grow_host(request, newest + 1);
    request.tokens.offload({newest, newest + 1});
  } else {
    [[maybe_unused]] const std::int64_t slot = request.resident.append_slot();
    HYBRIDGEN_DCHECK(slot + 1 == request.resident.first_slot() + request.resident.size(), slot);
  }
  HYBRIDGEN_DCHECK(request.resident.size() == request.tokens.num_resident(),
                   request.resident.size());
  HYBRIDGEN_DCHECK(request.tokens.num_resident() <= std::max<std::int64_t>(request.plan.window, 1),
                   request.tokens.num_resident());
}

std::int64_t position_of_newest(PositionMode mode, const RequestState& request) {
  const std::int64_t position = request.tokens.num_tokens() - 1;
  switch (mode) {
    case PositionMode::kCacheIndex:
      return request.resident.size() - 1;
    case PositionMode::kClamped:
      return std::min(position, request.parts.retention->budget());
    case PositionMode::kOriginal:
      break;
  }
  return position;
}

}  // namespace hybridgen
