// SPDX-License-Identifier: Apache-2.0
#include "engine/resolved_options.h"

#include <algorithm>
#include <string>

#include "device/device_memory.h"
#include "hybridgen/core/error.h"
#include "memory/numa.h"
#include "pipeline/working_memory.h"

namespace hybridgen {
namespace {

constexpr double kShareOfHost = 0.45;  // of what is free, for each tier that nobody set
// The rest is for what libraries take by themselves and for gaps between LibTorch's blocks.
constexpr double kShareOfDevice = 0.9;

std::int64_t share_of(std::int64_t free, double share) {
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(share * static_cast<double>(free)));
}

std::int64_t device_bytes(const EngineOptions& options, const DeviceContext& device) {
  if (options.device_bytes > 0) {
    return options.device_bytes;
  }
  return device.is_cpu() ? share_of(available_node_bytes(-1), kShareOfHost)
                         : share_of(available_device_bytes(device.device()), kShareOfDevice);
}

}  // namespace

Budgets make_budgets(const EngineOptions& options, const DeviceContext& device) {
  Budgets budgets;
  budgets.add(TierKind::kDevice, device_bytes(options, device), "KVConfig(device_tokens=...)");
  budgets.add(TierKind::kDram,
              options.dram_bytes > 0
                  ? options.dram_bytes
                  : share_of(available_node_bytes(options.numa_node), kShareOfHost),
              "KVConfig(dram=...)");
  return budgets;
}

Reservation reserve_for_engine(const DecoderModel& model,
                               const EngineOptions& resolved,
                               std::int64_t scored_rows,
                               Budgets& budgets) {
  MemoryBudget& device = budgets[TierKind::kDevice];
  if (model.device().is_cpu()) {
    return device.reserve(0, "engine");
  }
  const EngineRows rows{.prefill = std::min(resolved.prefill_chunk, resolved.max_model_len),
                        .scored = scored_rows,
                        .decode = std::min(resolved.micro_batch, resolved.max_batch)};
  const std::int64_t bytes = engine_device_bytes(model.config(), model.dtype(), rows);
  if (bytes > device.capacity_bytes()) {
    throw OutOfMemoryError(message("[engine] the model's operations on ",
                                   rows.prefill,
                                   " rows need ",
                                   human_bytes(static_cast<double>(bytes)),
                                   " of the device beside its weights; allowed: ",
                                   human_bytes(static_cast<double>(device.capacity_bytes())),
                                   "; pass a smaller max_num_batched_tokens, or use a smaller "
                                   "model or another device"));
  }
  return device.reserve(bytes, "engine");
}

EngineOptions resolved_options(EngineOptions options,
                               const ModelConfig& config,
                               const Budgets& budgets,
                               const Machine& machine) {
  if (options.max_model_len == 0) {
    options.max_model_len = config.max_positions;
  }
  options.math = machine.math();
  options.isa = std::string(name_of(machine.isa()));
  options.threads = machine.threads().host;
  options.device_threads = machine.threads().device;
  options.device_bytes = budgets[TierKind::kDevice].capacity_bytes();
  options.dram_bytes = budgets[TierKind::kDram].capacity_bytes();
  return options;
}

}  // namespace hybridgen
