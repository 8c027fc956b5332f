// SPDX-License-Identifier: Apache-2.0
// What a batch of equal requests takes of every tier, before anything is loaded: the same rules
// that admission keeps (admission.h), asked beforehand.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "device/device_context.h"
#include "hybridgen/core/engine_options.h"
#include "hybridgen/core/model_config.h"
#include "hybridgen/methods/method.h"
#include "models/weight_coding.h"

namespace hybridgen {

struct RunShape {
  std::int64_t batch_size = 1;
  std::int64_t prompt_tokens = 1;
  std::int64_t new_tokens = 1;
};

/// Bytes of one tier when the requests that run together have all their tokens.
struct TierPlan {
  TierKind tier = TierKind::kDram;
  std::int64_t capacity = 0;  ///< for requests, and on a device of its own for `engine`
  std::int64_t weights = 0;   ///< beside `capacity`
  std::int64_t keys = 0;
  std::int64_t values = 0;
  std::int64_t staging = 0;     ///< what crosses the link, shadows, parts of the method
  std::int64_t workspaces = 0;  ///< of requests
  /// What the model's operations take, of which a CPU device's are beside `capacity`.
  std::int64_t engine = 0;

  /// What requests reserve: TierUsage::used_bytes of an engine that runs them.
  std::int64_t of_requests() const { return keys + values + staging + workspaces; }
  std::int64_t total() const { return weights + of_requests() + engine; }
};

/// Settings with which a run fits that does not, or with which all of a batch run together.
struct NearestSetting {
  std::int64_t batch_size = 0;
  std::int64_t prompt_tokens = 0;
  std::optional<std::int64_t> device_tokens{};  ///< absent: as it is
  std::optional<std::int64_t> dram_bytes{};     ///< absent: as it is
};

struct RunPlan {
  std::vector<TierPlan> tiers{};  ///< from the device downwards
  std::int64_t window = 0;        ///< tokens of a request that may stay on the device
  std::int64_t offloaded = 0;     ///< tokens of a request on the host at its end
  std::int64_t together = 0;      ///< requests of the batch that run at the same time; 0: none
  std::string problem{};          ///< why none does, with the way out; empty: some do
  std::optional<NearestSetting> nearest{};  ///< absent: all run together, or nothing does
};

/// `are_loaded`: the weights are there already. `formats`: how they are held. ConfigError for
/// options that are refused, also by this model; what does not fit is the plan's `problem`.
RunPlan plan_run(const ModelConfig& config,
                 DType dtype,
                 const DeviceContext& device,
                 bool are_loaded,
                 const EngineOptions& asked,
                 std::optional<Method> composition,
                 const RunShape& shape,
                 const WeightFormats& formats = {});

}  // namespace hybridgen
