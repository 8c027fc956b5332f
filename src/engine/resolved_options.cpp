// SPDX-License-Identifier: Apache-2.0
#include "engine/resolved_options.h"

#include <algorithm>
#include <string>

#include "memory/numa.h"

namespace hybridgen {
namespace {

constexpr double kShareOfFree = 0.45;  // of host memory, for each tier that nobody set

std::int64_t bytes_or(std::int64_t asked, int node = -1) {
  return asked > 0 ? asked
                   : std::max<std::int64_t>(
                         1,
                         static_cast<std::int64_t>(
                             kShareOfFree * static_cast<double>(available_node_bytes(node))));
}

}  // namespace

Budgets make_budgets(const EngineOptions& options) {
  Budgets budgets;
  budgets.add(TierKind::kDevice, bytes_or(options.device_bytes), "KVConfig(device_tokens=...)");
  budgets.add(
      TierKind::kDram, bytes_or(options.dram_bytes, options.numa_node), "KVConfig(dram=...)");
  return budgets;
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
