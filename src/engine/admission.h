// SPDX-License-Identifier: Apache-2.0
// What a request needs of both tiers, and whether it can ever get it.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "hybridgen/core/engine_options.h"
#include "hybridgen/engine/engine.h"
#include "hybridgen/methods/method.h"
#include "memory/budgets.h"
#include "pipeline/request_state.h"

namespace hybridgen {

/// Bytes that requests may have of the host, were there no others.
struct HostRoom {
  std::int64_t dram = 0;
  std::int64_t cxl = 0;
  std::int64_t disk = 0;
  std::int64_t memory = 0;  ///< of all its memory, a CPU device's included
};

/// Refers to what the engine owns.
struct Admission {
  const ModelConfig& config;
  DType dtype;
  bool device_is_host;
  const EngineOptions& options;
  const Method& method;
  const AttendedTokens& attended;
  Budgets& budgets;
  std::int64_t engine_bytes;       ///< of the device, which no request gets
  const KvTiers* tiers = nullptr;  ///< null: nothing runs, so that the host tiers are empty
  bool reads_together = false;     ///< several prompts pass through a layer before the next layer
  std::int64_t coming_bytes = 0;   ///< of host memory, of weights that are yet to be loaded

  /// Sizes of a request. An automatic window takes what fits into the device's whole budget: what
  /// other requests hold at that moment decides when a request runs, never what it says.
  RequestPlan plan(const RequestShape& shape, const RequestHome& home = {}) const;

  /// OutOfMemoryError, with the nearest setting that fits, if the tiers are too small even when
  /// they are empty.
  void check_fits(const RequestShape& shape, const RequestHome& home = {}) const;
  /// ConfigError for a home that this method, or these tiers, cannot give.
  void check_home(const RequestHome& home) const;

  /// The largest window with which `count` requests of this shape fit into an empty device
  /// together; 0 if none does.
  std::int64_t largest_window(const RequestShape& shape, std::int64_t count = 1) const;
  RequestPlan plan_with(const RequestShape& shape, std::int64_t window) const;
  /// Tokens that a request keeps on the device when its window of so many shrinks: all unless
  /// windows may.
  std::int64_t least_window(std::int64_t window) const;

  /// Bytes of the device for requests.
  std::int64_t room() const { return device().capacity_bytes() - engine_bytes; }
  /// Bytes of the device that `count` requests of this plan take.
  static std::int64_t on_device(const RequestPlan& plan, std::int64_t count) {
    return count * plan.device_bytes + plan.prompt_device_bytes + plan.momentary_device_bytes;
  }

  /// The tiers of the host without this engine's requests, beside what other engines have.
  HostRoom host_room() const;
  /// Whether `count` requests of this plan fit beside one another into an empty device and `room`.
  bool holds(const RequestPlan& plan, std::int64_t count, const HostRoom& room) const;
  /// The least DRAM, of at least `room.dram`, with which they do; nothing if none is enough.
  std::optional<std::int64_t> least_dram(const RequestPlan& plan,
                                         std::int64_t count,
                                         const HostRoom& room) const;

  /// Whether the tiers have room for a plan now, beside requests whose operations take
  /// `momentary_bytes` of the device at most.
  bool fits_now(const RequestPlan& plan, std::int64_t momentary_bytes) const;

  /// Whether requests of these plans have room in place of those that hold `held_bytes` of the
  /// device: the same ones with smaller windows, and the last, which is new.
  bool fit_instead(const std::vector<RequestPlan>& plans, std::int64_t held_bytes) const;

  /// ConfigError unless the model knows all positions that a request meets: those of its
  /// `prefill_tokens` first tokens, and of the others those that the method gives them.
  void check_positions(const RequestShape& shape,
                       std::int64_t prefill_tokens,
                       const RequestHome& home = {}) const;

 private:
  // The parts of check_fits().
  void check_device(const RequestPlan& needed) const;
  void check_tiers(const RequestPlan& needed) const;
  void check_machine(const RequestPlan& needed) const;
  /// Whether DRAM has room for a plan, and all host memory for it beside so many more bytes of a
  /// CPU device.
  bool has_dram(const RequestPlan& plan, std::int64_t device_bytes) const;
  const MemoryBudget& device() const { return budgets[TierKind::kDevice]; }
};

}  // namespace hybridgen
