// SPDX-License-Identifier: Apache-2.0
#include "memory/host_tiers.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <utility>

#include "hybridgen/core/error.h"
#include "memory/node_read_rate.h"
#include "memory/numa.h"

namespace hybridgen {

namespace {

// Figures closer than these are the same: firmware rounds, and a measurement varies.
constexpr double kSlowerRate = 0.9;
constexpr double kFasterRate = 1.1;
constexpr double kSlowerLatency = 1.2;

bool contains(const std::vector<int>& numbers, int number) {
  return std::ranges::find(numbers, number) != numbers.end();
}

/// Whether threads of this process may run on the node.
bool runs_threads(const HostFacts& facts, const NodeFacts& node) {
  return std::ranges::any_of(node.node.cpus,
                             [&](int cpu) { return contains(facts.usable_cpus, cpu); });
}

struct Verdict {
  NodeUse use = NodeUse::kIgnored;
  std::string why;  ///< empty: undecided
};

/// Why the node's memory cannot serve as host memory, whoever asks; empty: it can.
std::string obstacle(const NodeFacts& node) {
  if (!node.device.empty()) {
    return "the own memory of " + node.device + ", never used as host memory";
  }
  if (node.node.total_bytes == 0) return "has no memory";
  if (!node.allowed) return "this process's cpuset does not permit its memory";
  return "";
}

/// Firmware's figures, if they are those that this process's CPUs see; else nothing.
const NodePerformance* told_to_us(const HostFacts& facts, const NodeFacts& node) {
  const bool ours = std::ranges::any_of(node.told.initiators, [&](int id) {
    const NodeFacts* initiator = facts.find(id);
    return initiator != nullptr && runs_threads(facts, *initiator);
  });
  return ours ? &node.told : nullptr;
}

/// The nearest node with memory and CPUs of this process; null if there is none.
const NodeFacts* nearest_own(const HostFacts& facts, const NodeFacts& node) {
  const NodeFacts* nearest = nullptr;
  int shortest = 0;
  for (const NodeFacts& own : facts.nodes) {
    if (!runs_threads(facts, own) || own.node.total_bytes == 0 || !own.allowed) continue;
    const auto distance = own.distances.find(node.node.id);
    const int steps = distance == own.distances.end() ? 0 : distance->second;
    if (nearest == nullptr || steps < shortest) {
      nearest = &own;
      shortest = steps;
    }
  }
  return nearest;
}

/// "reads 10.0 GiB/s, node 0 20.0 GiB/s (what says so)".
std::string compared_rates(double rate, double own_rate, const NodeFacts& own, const char* source) {
  return message("reads ",
                 human_bytes(rate),
                 "/s, node ",
                 own.node.id,
                 " ",
                 human_bytes(own_rate),
                 "/s (",
                 source,
                 ")");
}

Verdict judge_rate(double rate, double own_rate, const NodeFacts& own, const char* source) {
  const std::string figures = compared_rates(rate, own_rate, own, source);
  if (rate < kSlowerRate * own_rate) {
    return {NodeUse::kCxl, "slower than the CPUs' own memory: " + figures};
  }
  if (rate > kFasterRate * own_rate) {
    return {NodeUse::kFaster, "faster than the CPUs' own memory, left to the system: " + figures};
  }
  return {NodeUse::kDram, "as fast as the CPUs' own memory: " + figures};
}

Verdict judge_told(const NodePerformance& told,
                   const NodePerformance& own_told,
                   const NodeFacts& own) {
  Verdict verdict;
  if (told.read_bytes_per_second > 0 && own_told.read_bytes_per_second > 0) {
    verdict = judge_rate(static_cast<double>(told.read_bytes_per_second),
                         static_cast<double>(own_told.read_bytes_per_second),
                         own,
                         "HMAT");
    if (verdict.use != NodeUse::kDram) return verdict;
  }
  if (told.read_latency_ns > 0 && own_told.read_latency_ns > 0) {
    const std::string figures = message("answers in ",
                                        told.read_latency_ns,
                                        " ns, node ",
                                        own.node.id,
                                        " in ",
                                        own_told.read_latency_ns,
                                        " ns (HMAT)");
    const bool slower = static_cast<double>(told.read_latency_ns) >
                        kSlowerLatency * static_cast<double>(own_told.read_latency_ns);
    if (slower) return {NodeUse::kCxl, "slower than the CPUs' own memory: " + figures};
    if (verdict.why.empty()) return {NodeUse::kDram, "as fast as the CPUs' own memory: " + figures};
  }
  return verdict;
}

/// By figures of firmware; an empty sentence: there are none of both.
Verdict judge_by_firmware(const HostFacts& facts, const NodeFacts& node, const NodeFacts& own) {
  const NodePerformance* told = told_to_us(facts, node);
  const NodePerformance* own_told = told_to_us(facts, own);
  return told == nullptr || own_told == nullptr ? Verdict{} : judge_told(*told, *own_told, own);
}

Verdict judge(const HostFacts& facts, const NodeFacts& node) {
  const std::string against = obstacle(node);
  if (!against.empty()) return {NodeUse::kIgnored, against};
  if (runs_threads(facts, node)) return {NodeUse::kDram, "has CPUs that this process uses"};
  const NodeFacts* own = nearest_own(facts, node);
  if (own == nullptr) return {NodeUse::kDram, "this process's CPUs have no memory of their own"};
  if (!facts.can_place) {
    return {NodeUse::kIgnored,
            "no memory can be placed there: this build has no libnuma, or the kernel forbids it"};
  }
  Verdict verdict = judge_by_firmware(facts, node, *own);
  if (!verdict.why.empty()) return verdict;
  if (node.measured_bytes_per_second > 0 && own->measured_bytes_per_second > 0) {
    return judge_rate(
        node.measured_bytes_per_second, own->measured_bytes_per_second, *own, "measured");
  }
  return {NodeUse::kIgnored,
          "how fast it is could not be learnt: firmware gives no figures (HMAT), and measuring "
          "found no room; KVConfig(cxl_node=...) uses it all the same"};
}

/// Whether nodes of that use make up the tier.
bool serves(NodeUse use, TierKind tier) {
  return (use == NodeUse::kDram && tier == TierKind::kDram) ||
         (use == NodeUse::kCxl && tier == TierKind::kCxl);
}

std::string list_nodes(const HostTiers& tiers) {
  std::string list;
  for (const ClassifiedNode& node : tiers.nodes) {
    list += message(list.empty() ? "" : "; ",
                    "node ",
                    node.id,
                    " (",
                    name_of(node.use),
                    ", ",
                    human_bytes(static_cast<double>(node.available_bytes)),
                    " of ",
                    human_bytes(static_cast<double>(node.total_bytes)),
                    " available: ",
                    node.why,
                    ")");
  }
  return list;
}

/// Why the node cannot be the cxl tier; empty: it can.
std::string objection(const HostTiers& tiers, const ClassifiedNode* node) {
  if (node == nullptr) return "which is no memory node of this machine";
  if (!node->usable) return "of which is known: " + node->why;
  if (tiers.nodes_of(TierKind::kDram) == std::vector<int>{node->id}) return "the only DRAM";
  return "";
}

}  // namespace

std::string_view name_of(NodeUse use) {
  switch (use) {
    case NodeUse::kDram:
      return "dram";
    case NodeUse::kCxl:
      return "cxl";
    case NodeUse::kFaster:
      return "faster";
    case NodeUse::kIgnored:
      break;
  }
  return "ignored";
}

std::vector<int> HostTiers::nodes_of(TierKind tier) const {
  std::vector<int> numbers;
  for (const ClassifiedNode& node : nodes) {
    if (serves(node.use, tier)) numbers.push_back(node.id);
  }
  return numbers;
}

std::int64_t HostTiers::available_bytes_of(TierKind tier) const {
  std::int64_t bytes = 0;
  for (const ClassifiedNode& node : nodes) {
    if (serves(node.use, tier)) bytes += node.available_bytes;
  }
  return std::min(bytes, available_bytes);
}

HostTiers classify(const HostFacts& facts) {
  HostTiers tiers;
  for (const NodeFacts& node : facts.nodes) {
    Verdict verdict = judge(facts, node);
    tiers.nodes.push_back({.id = node.node.id,
                           .use = verdict.use,
                           .why = std::move(verdict.why),
                           .usable = obstacle(node).empty() && facts.can_place,
                           .reachable = node.allowed && node.node.total_bytes > 0,
                           .total_bytes = node.node.total_bytes,
                           .available_bytes = node.available_bytes()});
    if (node.is_ours()) tiers.available_bytes += node.available_bytes();
  }
  tiers.available_bytes =
      std::min(tiers.available_bytes, facts.limit_bytes.value_or(tiers.available_bytes));
  return tiers;
}

std::vector<RateQuestion> rates_wanted(const HostFacts& facts) {
  std::vector<RateQuestion> questions;
  if (!facts.can_place) return questions;
  for (const NodeFacts& node : facts.nodes) {
    if (!obstacle(node).empty() || runs_threads(facts, node)) continue;
    const NodeFacts* own = nearest_own(facts, node);
    if (own != nullptr && judge_by_firmware(facts, node, *own).why.empty()) {
      questions.push_back({node.node.id, own->node.id});
    }
  }
  return questions;
}

HostTiers choose_tiers(HostTiers found, const LowerTierOptions& options) {
  if (options.cxl_node >= 0 && options.cxl_bytes != 0) {
    const auto named = std::ranges::find(found.nodes, options.cxl_node, &ClassifiedNode::id);
    const std::string against = objection(found, named == found.nodes.end() ? nullptr : &*named);
    if (!against.empty()) {
      throw ConfigError(
          message("[KVConfig] cxl_node is ",
                  options.cxl_node,
                  ", ",
                  against,
                  "; allowed: None, or a node with memory beside DRAM that is no device's, of ",
                  list_nodes(found),
                  "; choose one of these, or leave the option out"));
    }
    for (ClassifiedNode& node : found.nodes) {
      if (node.id != options.cxl_node && node.use == NodeUse::kCxl) {
        node.use = NodeUse::kIgnored;
        node.why += "; KVConfig(cxl_node=...) names another";
      }
    }
    named->use = NodeUse::kCxl;
    named->why = "KVConfig(cxl_node=...) names it; by itself: " + named->why;
  }
  if (options.cxl_bytes == 0) {
    for (ClassifiedNode& node : found.nodes) {
      if (node.use != NodeUse::kCxl) continue;
      node.use = NodeUse::kIgnored;
      node.why += "; KVConfig(cxl=0) leaves it out";
    }
  }
  if (options.cxl_bytes > 0 && found.nodes_of(TierKind::kCxl).empty()) {
    throw ConfigError(message("[KVConfig] cxl is ",
                              human_bytes(static_cast<double>(options.cxl_bytes)),
                              "; allowed: \"auto\" or 0, because no memory node is slower than the "
                              "CPUs' own: ",
                              list_nodes(found),
                              "; leave the option out, or name a node by cxl_node"));
  }
  return found;
}

HostTiers host_tiers(const std::vector<int>& cpus) {
  static std::mutex mutex;
  static std::map<std::pair<int, int>, double> measured;  // by node and the CPUs' node
  HostFacts facts = read_host_facts("/", cpus, has_numa());
  const std::vector<RateQuestion> questions = rates_wanted(facts);
  if (questions.empty()) return classify(facts);

  const std::lock_guard<std::mutex> lock(mutex);
  const auto rate = [&](int node, int own_node) {
    const auto [known, is_new] = measured.try_emplace({node, own_node}, 0.0);
    if (known->second == 0.0) {
      known->second = node_read_rate(node, cpus_of_node(facts.find(own_node)->node, cpus));
    }
    return known->second;
  };
  for (NodeFacts& node : facts.nodes) {
    for (const RateQuestion& question : questions) {
      if (question.node == node.node.id || question.own_node == node.node.id) {
        node.measured_bytes_per_second = rate(node.node.id, question.own_node);
      }
    }
  }
  return classify(facts);
}

}  // namespace hybridgen
