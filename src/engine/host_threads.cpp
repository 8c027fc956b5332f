// SPDX-License-Identifier: Apache-2.0
#include "engine/host_threads.h"

#include <algorithm>
#include <iterator>
#include <map>
#include <numeric>
#include <utility>

#include "hybridgen/core/error.h"
#include "runtime/cpus.h"

namespace hybridgen {

ThreadCounts resolve_threads(ThreadCounts asked,
                             bool device_is_cpu,
                             bool offloads,
                             std::int64_t host_cores) {
  const std::int64_t cores = available_parallelism();
  const auto device_or = [&](std::int64_t chosen) {
    return asked.device > 0 ? asked.device : device_is_cpu ? chosen : std::int64_t{1};
  };
  if (!offloads) {
    return {0, device_or(cores)};
  }
  ThreadCounts counts = asked;
  if (counts.host == 0) {
    // A GPU engine scores with all cores but one; on a CPU device the stages share the machine.
    const std::int64_t taken = device_is_cpu ? device_or((cores + 1) / 2) : 1;
    counts.host = std::clamp<std::int64_t>(cores - taken, 1, host_cores);
  }
  counts.device = device_or(std::max<std::int64_t>(1, cores - counts.host));
  return counts;
}

std::vector<int> worker_cpus(const std::vector<int>& cpus,
                             const std::vector<int>& host_cpus,
                             std::int64_t threads,
                             std::int64_t helpers) {
  const auto most = static_cast<std::int64_t>(host_cpus.size());
  if (threads > most && host_cpus.size() < cpus.size()) {
    throw ConfigError(message("[engine] threads is ",
                              threads,
                              "; allowed: at most ",
                              most,
                              ", the CPUs of the chosen node that this process may use; lower "
                              "CpuConfig(threads=...) or leave CpuConfig(numa=...) out"));
  }
  std::vector<int> chosen(static_cast<std::size_t>(threads + helpers), -1);
  if (threads + helpers >= static_cast<std::int64_t>(cpus.size())) {
    return chosen;
  }
  const auto first_helper = std::copy(host_cpus.end() - threads, host_cpus.end(), chosen.begin());
  std::vector<int> others = cpus;
  std::erase_if(others, [&](int cpu) {
    return std::find(chosen.begin(), first_helper, cpu) != first_helper;
  });
  std::copy(others.end() - helpers, others.end(), first_helper);
  return chosen;
}

std::vector<int> spread_over_nodes(const std::vector<int>& cpus,
                                   const std::vector<NumaNode>& nodes) {
  std::vector<std::pair<std::int64_t, int>> ranked;  // place from the end among its node's, CPU
  std::map<int, std::int64_t> seen;                  // by node
  for (auto cpu = cpus.rbegin(); cpu != cpus.rend(); ++cpu) {
    const auto node = std::ranges::find_if(nodes, [&](const NumaNode& candidate) {
      return std::ranges::find(candidate.cpus, *cpu) != candidate.cpus.end();
    });
    ranked.emplace_back(seen[node == nodes.end() ? -1 : node->id]++, *cpu);
  }
  std::ranges::stable_sort(ranked, {}, &std::pair<std::int64_t, int>::first);
  std::vector<int> spread;
  std::ranges::transform(ranked.rbegin(),
                         ranked.rend(),
                         std::back_inserter(spread),
                         &std::pair<std::int64_t, int>::second);
  return spread;
}

NumaDivision divide_over_invented_nodes(std::int64_t num_nodes,
                                        std::int64_t num_workers,
                                        std::int64_t num_kv_heads) {
  std::vector<int> workers(static_cast<std::size_t>(num_workers));
  std::iota(workers.begin(), workers.end(), 0);
  std::vector<NumaNode> nodes(static_cast<std::size_t>(num_nodes));
  for (const int worker : workers) {
    NumaNode& node = nodes[static_cast<std::size_t>(worker % num_nodes)];
    node.id = static_cast<int>(worker % num_nodes);
    node.cpus.push_back(worker);
  }
  return divide_heads(nodes, workers, num_kv_heads);
}

}  // namespace hybridgen
