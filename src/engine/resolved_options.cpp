// SPDX-License-Identifier: Apache-2.0
#include "engine/resolved_options.h"

#include <algorithm>
#include <string>

#include "device/device_memory.h"
#include "hybridgen/core/error.h"
#include "memory/numa.h"
#include "models/weight_store.h"
#include "pipeline/working_memory.h"

namespace hybridgen {
namespace {

constexpr double kShareOfHost = 0.45;  // of what is free, for each tier that nobody set
// The rest is for what libraries take by themselves and for gaps between LibTorch's blocks.
constexpr double kShareOfDevice = 0.9;

std::int64_t share_of(std::int64_t free, double share) {
  return std::max<std::int64_t>(1, static_cast<std::int64_t>(share * static_cast<double>(free)));
}

/// Of so much that the system has, without what engines of this process have promised of all
/// memory and what is yet to come there.
std::int64_t share_of_host(std::int64_t available, std::int64_t coming_bytes) {
  const std::int64_t unpromised = ProcessMemory::instance().measure_free();
  return share_of(std::min(unpromised, available) - coming_bytes, kShareOfHost);
}

}  // namespace

Budgets make_budgets(const EngineOptions& options,
                     const DeviceContext& device,
                     const LowerTiers& lower,
                     const ComingWeights& coming) {
  const std::string device_setting = "KVConfig(device_tokens=...)";
  const std::int64_t device_bytes = options.device_bytes;
  const std::int64_t of_dram =
      options.numa_node >= 0 ? available_node_bytes(options.numa_node) : lower.dram_bytes;
  Budgets budgets;
  if (device.is_cpu()) {
    budgets.add_shared(
        TierKind::kDevice,
        device_bytes > 0 ? device_bytes : share_of_host(lower.dram_bytes, coming.host),
        device_setting,
        /*is_everyones=*/false);
  } else {
    budgets.add(TierKind::kDevice,
                device_bytes > 0 ? device_bytes
                                 : share_of(available_device_bytes(device.device()) - coming.device,
                                            kShareOfDevice),
                device_setting);
  }
  budgets.add_shared(
      TierKind::kDram,
      options.dram_bytes > 0 ? options.dram_bytes : share_of_host(of_dram, coming.host),
      "KVConfig(dram=...)",
      options.dram_bytes > 0);
  const std::int64_t cxl_bytes = options.tiers.cxl_bytes;
  if (!lower.cxl_nodes.empty()) {
    budgets.add_shared(TierKind::kCxl,
                       cxl_bytes > 0 ? cxl_bytes : share_of(lower.cxl_bytes, kShareOfHost),
                       "KVConfig(cxl=...)",
                       cxl_bytes > 0);
  }
  if (!options.tiers.disk_path.empty()) {
    budgets.add_shared(
        TierKind::kDisk, options.tiers.disk_bytes, "KVConfig(disk=...)", /*is_everyones=*/true);
  }
  return budgets;
}

std::int64_t engine_bytes_of_device(const ModelConfig& config,
                                    DType dtype,
                                    bool device_is_host,
                                    const EngineOptions& resolved,
                                    const Budgets& budgets) {
  if (device_is_host) return 0;
  const MemoryBudget& device = budgets[TierKind::kDevice];
  const EngineRows rows{.prefill = std::min(resolved.prefill_chunk, resolved.max_model_len),
                        .scored = kScoredRows,
                        .decode = std::min(resolved.micro_batch, resolved.max_batch)};
  const std::int64_t bytes = engine_device_bytes(config, dtype, rows);
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
  return bytes;
}

std::int64_t layers_at_a_time(const Method& method) {
  return WeightStore::layers_at_a_time(query_of(method.work) == HostQuery::kGuessed);
}

std::int64_t bytes_of_coming_layers(const Weights& weights,
                                    const DeviceContext& device,
                                    const Method& method,
                                    const Budgets& budgets) {
  const std::int64_t layers = layers_at_a_time(method);
  const std::int64_t bytes = WeightStore::device_bytes(weights, device, layers);
  const std::int64_t capacity = budgets[TierKind::kDevice].capacity_bytes();
  if (bytes > capacity) {
    throw OutOfMemoryError(message("[engine] ",
                                   layers,
                                   " layers that come and go need ",
                                   human_bytes(static_cast<double>(bytes)),
                                   " of the device; allowed: ",
                                   human_bytes(static_cast<double>(capacity)),
                                   "; free memory, use a smaller model, or let more weights stay "
                                   "there, so that less of each layer comes: "
                                   "WeightConfig(device=...)"));
  }
  return bytes;
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
  options.tiers.cxl_bytes =
      budgets.has(TierKind::kCxl) ? budgets[TierKind::kCxl].capacity_bytes() : 0;
  return options;
}

}  // namespace hybridgen
