// SPDX-License-Identifier: Apache-2.0
#include "engine/admission.h"

#include <algorithm>
#include <limits>
#include <string>
#include <utility>

#include "device/resident_cache.h"
#include "engine/largest.h"
#include "hybridgen/core/error.h"
#include "kvcache/kv_room.h"
#include "pipeline/working_memory.h"

namespace hybridgen {
namespace {

/// What makes rows on the host smaller, as far as they are not and may be: a copy of the keys for
/// scoring is refused beside keys in fewer bits.
const char* fewer_bits(const Method& method) {
  if (method.value_precision != KvPrecision::kFull) return "";
  const bool has_full_keys = method.key_precision == KvPrecision::kFull;
  return has_full_keys && !method.has(PartRole::kKeyProxy)
             ? ", or KVConfig(keys='int8', values='int4')"
             : ", or KVConfig(values='int4')";
}

/// What a request that asked for the disk grows in, beside its own bytes: held for one at a time.
std::int64_t growing_bytes(const RequestPlan& plan) {
  return plan.open.to_disk > 0 ? plan.open.growing : 0;
}

/// OutOfMemoryError if a request wants more of a tier than all that there is.
void require_room(const RequestShape& shape,
                  std::int64_t bytes,
                  std::string_view tier,
                  std::int64_t capacity,
                  const std::string& way_out) {
  if (bytes <= capacity) return;
  const auto tokens =
      static_cast<std::int64_t>(static_cast<double>(shape.max_tokens) *
                                static_cast<double>(capacity) / static_cast<double>(bytes));
  throw OutOfMemoryError(message("[add request] ",
                                 shape.prompt_tokens,
                                 " prompt + ",
                                 shape.max_tokens - shape.prompt_tokens,
                                 " generated tokens need ",
                                 human_bytes(static_cast<double>(bytes)),
                                 " of ",
                                 tier,
                                 "; its capacity is ",
                                 human_bytes(static_cast<double>(capacity)),
                                 "; nearest that fits: about ",
                                 tokens,
                                 " tokens in all, or ",
                                 way_out));
}

}  // namespace

RequestPlan Admission::plan(const RequestShape& shape, const RequestHome& home) const {
  std::optional<std::int64_t> window = home.device_tokens;
  if (!window) {
    window = options.device_tokens.resolve(shape.prompt_tokens);
  }
  if (!window && method.window.tokens) {
    window = method.window.tokens(shape);
  }
  if (!window && method.residency == Residency::kWindow) {
    window = largest_window(shape);
  }
  RequestPlan plan = plan_with(shape, window.value_or(shape.max_tokens));
  if (home.on_disk && plan.max_offloaded > 0) {
    // Each block has a place on the disk, and what is still written to one in memory beside it.
    const std::int64_t slack = slack_bytes(budgets, plan.largest_block_bytes);
    plan.open.to_disk = plan.placed_bytes - slack;
    plan.placed_bytes += plan.open.resting - slack;
    plan.dram_bytes += plan.open.resting - slack;
  }
  return plan;
}

void Admission::check_home(const RequestHome& home) const {
  if (home.device_tokens && method.residency != Residency::kWindow) {
    throw ConfigError(message("[add request] device_tokens is ",
                              *home.device_tokens,
                              " for one request; allowed: none, as ",
                              method.name,
                              " has no window"));
  }
  if (home.device_tokens && *home.device_tokens < 0) {
    throw ConfigError(
        message("[add request] device_tokens is ", *home.device_tokens, "; allowed: >= 0"));
  }
  if (home.device_tokens && options.tiers.shrink_windows) {
    throw ConfigError(
        message("[add request] device_tokens is ",
                *home.device_tokens,
                " for one request; allowed: none, as windows shrink; set shrink_windows=False"));
  }
  if (home.on_disk && !budgets.has(TierKind::kDisk)) {
    throw ConfigError(
        "[add request] on_disk is True for one request; allowed: False without a disk; set "
        "KVConfig(disk=...)");
  }
}

std::int64_t Admission::least_window(std::int64_t window) const {
  const bool may_shrink = options.tiers.shrink_windows && !options.device_tokens.count;
  return may_shrink ? std::min(window, WindowSetting::kFewestOfAShare) : window;
}

RequestPlan Admission::plan_with(const RequestShape& shape, std::int64_t window) const {
  RequestPlan plan = plan_request(config,
                                  dtype,
                                  device_is_host,
                                  method,
                                  attended,
                                  shape,
                                  std::max<std::int64_t>(window, 1),
                                  least_window(window));
  if (budgets.has(TierKind::kDisk) && plan.max_offloaded > 0) {
    plan.dram_bytes += KvDisk::reading_bytes(plan.placed_bytes, config.num_layers);
    plan.open = open_bytes(host_shape(config, dtype, method, plan), options.prefill_chunk);
    // What is open is never more than all.
    plan.open.growing = std::min(plan.open.growing, plan.placed_bytes - plan.open.resting);
    if (reads_together) {
      plan.open.resting += std::exchange(plan.open.growing, 0);
    }
  }
  const std::int64_t slack = slack_bytes(budgets, plan.largest_block_bytes);
  plan.placed_bytes += slack;
  plan.dram_bytes += slack;
  if (!device_is_host) {
    plan.device_bytes += decode_row_bytes(config, dtype);
    plan.momentary_device_bytes =
        momentary_device_bytes(config, dtype, method, plan, options.prefill_chunk);
  }
  return plan;
}

std::int64_t Admission::largest_window(const RequestShape& shape, std::int64_t count) const {
  const auto fits = [&](std::int64_t window) {
    const RequestPlan plan = plan_with(shape, window);
    return count * plan.device_bytes + plan.momentary_device_bytes <= room();
  };
  if (fits(shape.max_tokens)) {
    return shape.max_tokens;
  }
  return largest(shape.max_tokens - 1, fits);
}

void Admission::check_fits(const RequestShape& shape, const RequestHome& home) const {
  const RequestPlan needed = plan(shape, home);
  check_device(needed);
  check_tiers(needed);
  check_machine(needed);
}

void Admission::check_device(const RequestPlan& needed) const {
  const std::int64_t bytes = on_device(needed, 1);
  std::string smaller;
  if (method.residency == Residency::kWindow && bytes > room()) {
    smaller = message("KVConfig(device_tokens=", largest_window(needed.shape), ")");
  } else {
    const std::int64_t row = ResidentCache::required_bytes(config, dtype, 1);
    const std::int64_t rows =
        room() / row - ResidentCache::capacity_for(0, needed.shape.max_tokens);
    smaller = message(
        "method='hybridgen' with KVConfig(device_tokens=", std::max<std::int64_t>(0, rows), ")");
  }
  require_room(needed.shape, bytes, name_of(TierKind::kDevice), room(), smaller);
}

void Admission::check_tiers(const RequestPlan& needed) const {
  HostRoom room = host_room();
  room.memory = std::numeric_limits<std::int64_t>::max();  // check_machine() looks at that
  if (holds(needed, 1, room)) return;
  const std::int64_t dram_only = needed.dram_bytes - needed.placed_bytes;
  const std::int64_t all = needed.dram_bytes + growing_bytes(needed);
  const std::string dram =
      message("KVConfig(dram=", least_dram(needed, 1, room).value_or(room.dram + all), ")");
  const std::string larger = dram + " or a larger device_tokens" + fewer_bits(method);
  require_room(needed.shape, dram_only, name_of(TierKind::kDram), room.dram, larger);
  std::string names;
  for (const TierKind tier : kHostTiers) {
    if (budgets.has(tier)) names += message(names.empty() ? "" : " and ", name_of(tier));
  }
  require_room(needed.shape, all, names, host_capacity(budgets), larger);
  require_room(needed.shape,
               dram_only + needed.open.resting + needed.open.growing,
               "memory above the disk",
               room.dram + room.cxl,
               dram + " or a smaller max_num_batched_tokens");
}

// Budgets that a user sets may be larger than the machine.
void Admission::check_machine(const RequestPlan& needed) const {
  std::int64_t bytes = needed.dram_bytes + (device_is_host ? on_device(needed, 1) : 0);
  if (budgets.has(TierKind::kDisk)) {
    const std::int64_t open = needed.open.resting + needed.open.growing;
    bytes -= std::min(needed.placed_bytes - open, budgets[TierKind::kDisk].capacity_bytes());
  }
  if (bytes <= ProcessMemory::instance().free() - coming_bytes) return;
  const std::int64_t all = ProcessMemory::instance().measure_all_for_requests() - coming_bytes;
  require_room(needed.shape,
               bytes,
               "this machine's memory",
               std::max<std::int64_t>(0, all),
               message("KVConfig(disk=hg.Disk(path, size))",
                       budgets.has(TierKind::kDisk) ? " with a larger size" : "",
                       fewer_bits(method)));
}

HostRoom Admission::host_room() const {
  const auto capacity = [&](TierKind tier) {
    return budgets.has(tier) ? budgets[tier].capacity_bytes() : 0;
  };
  HostRoom room{.dram = capacity(TierKind::kDram),
                .cxl = capacity(TierKind::kCxl),
                .disk = capacity(TierKind::kDisk)};
  room.memory = ProcessMemory::instance().free() - coming_bytes;
  for (const auto& [tier, budget] : budgets) {
    const bool is_of_host =
        tier != TierKind::kDisk && (tier != TierKind::kDevice || device_is_host);
    if (is_of_host) room.memory += budget.used_bytes();
  }
  return room;
}

bool Admission::holds(const RequestPlan& plan, std::int64_t count, const HostRoom& room) const {
  const std::int64_t of_device = on_device(plan, count);
  if (of_device > this->room()) return false;
  const std::int64_t memory = room.memory - (device_is_host ? of_device : 0);
  const std::int64_t dram_only = count * (plan.dram_bytes - plan.placed_bytes);
  if (dram_only > std::min(room.dram, memory)) return false;
  const std::int64_t placed = count * plan.placed_bytes;
  const std::int64_t above_disk = std::min(room.dram + room.cxl, memory) - dram_only;
  const std::int64_t open = count * plan.open.resting + plan.open.growing;
  return open <= above_disk && placed + growing_bytes(plan) <= above_disk + room.disk;
}

std::optional<std::int64_t> Admission::least_dram(const RequestPlan& plan,
                                                  std::int64_t count,
                                                  const HostRoom& room) const {
  const auto holds_with = [&](std::int64_t dram) {
    HostRoom larger = room;
    larger.dram = dram;
    return holds(plan, count, larger);
  };
  const std::int64_t most = room.dram + count * plan.dram_bytes + growing_bytes(plan);
  if (!holds_with(most)) return {};
  return smallest(room.dram, most, holds_with);
}

bool Admission::fits_now(const RequestPlan& plan, std::int64_t momentary_bytes) const {
  const std::int64_t momentary = std::max(plan.momentary_device_bytes, momentary_bytes);
  const std::int64_t device_bytes = plan.device_bytes + plan.prompt_device_bytes + momentary;
  return device_bytes <= device().free_bytes() && has_dram(plan, device_bytes);
}

bool Admission::has_dram(const RequestPlan& plan, std::int64_t device_bytes) const {
  if (!tiers->fits_now(plan.dram_bytes - plan.placed_bytes, plan.placed_bytes, plan.open)) {
    return false;
  }
  // A disk's bytes are no memory: what the others have no room for goes there.
  std::int64_t on_disk = 0;
  if (budgets.has(TierKind::kDisk)) {
    on_disk = std::min(plan.placed_bytes, budgets[TierKind::kDisk].free_bytes());
  }
  return plan.dram_bytes - on_disk + (device_is_host ? device_bytes : 0) <=
         ProcessMemory::instance().free();
}

bool Admission::fit_instead(const std::vector<RequestPlan>& plans, std::int64_t held_bytes) const {
  const RequestPlan& fresh = plans.back();
  std::int64_t device_bytes = fresh.prompt_device_bytes - held_bytes;
  std::int64_t momentary = 0;
  for (const RequestPlan& plan : plans) {
    device_bytes += plan.device_bytes;
    momentary = std::max(momentary, plan.momentary_device_bytes);
  }
  device_bytes += momentary;
  return device_bytes <= device().free_bytes() && has_dram(fresh, device_bytes);
}

void Admission::check_positions(const RequestShape& shape,
                                std::int64_t prefill_tokens,
                                const RequestHome& home) const {
  const std::int64_t known = config.max_positions;
  if (shape.max_tokens <= known + 1) {
    return;  // the last token is never fed back
  }
  if (prefill_tokens > known) {
    throw ConfigError(message("[add request] the prompt has ",
                              prefill_tokens,
                              " tokens, which the model reads at their own positions; allowed: at "
                              "most ",
                              known,
                              " (the model's positions); shorten it, or pass decode_prompt_tokens=",
                              prefill_tokens - known,
                              " or more"));
  }
  const RequestPlan needed = plan(shape, home);
  const std::int64_t cached = std::max(needed.window, needed.max_offloaded + 1);
  if (cached > known) {
    throw ConfigError(message("[add request] ",
                              shape.max_tokens,
                              " tokens of which ",
                              cached,
                              " may be cached have positions up to ",
                              cached - 1,
                              "; allowed: less than ",
                              known,
                              " (the model's positions); keep fewer tokens, or set max_model_len "
                              "to ",
                              known));
  }
}

}  // namespace hybridgen
