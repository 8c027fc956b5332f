// SPDX-License-Identifier: Apache-2.0
// Machines as they are in the world, made of the facts that a kernel gives of them.
#include "memory/host_tiers.h"

#include <gtest/gtest.h>

#include <numeric>
#include <string>

#include "hybridgen/core/error.h"
#include "memory/numa.h"
#include "runtime/cpus.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kGiB = std::int64_t{1} << 30;
constexpr std::int64_t kGigabyte = 1'000'000'000;

std::vector<int> range(int first, int count) {
  std::vector<int> numbers(static_cast<std::size_t>(count));
  std::iota(numbers.begin(), numbers.end(), first);
  return numbers;
}

NodeFacts node(int id, std::vector<int> cpus, std::int64_t gib) {
  NodeFacts facts;
  facts.node = {id, std::move(cpus), gib * kGiB, gib * kGiB / 2};
  return facts;
}

NodePerformance told(std::vector<int> initiators, std::int64_t gigabytes, std::int64_t latency_ns) {
  return {std::move(initiators), gigabytes * kGigabyte, 0, latency_ns, 0};
}

/// The process may use every CPU.
HostFacts machine(std::vector<NodeFacts> nodes) {
  HostFacts facts;
  for (const NodeFacts& one : nodes) {
    facts.usable_cpus.insert(facts.usable_cpus.end(), one.node.cpus.begin(), one.node.cpus.end());
  }
  facts.nodes = std::move(nodes);
  return facts;
}

HostFacts with_distances(HostFacts facts, const std::vector<std::vector<int>>& distances) {
  for (std::size_t i = 0; i < facts.nodes.size(); ++i) {
    for (std::size_t j = 0; j < facts.nodes.size(); ++j) {
      facts.nodes[i].distances[facts.nodes[j].node.id] = distances[i][j];
    }
  }
  return facts;
}

/// "dram cxl ignored ...", node by node.
std::string uses(const HostTiers& tiers) {
  std::string text;
  for (const ClassifiedNode& one : tiers.nodes) {
    text += text.empty() ? "" : " ";
    text += name_of(one.use);
  }
  return text;
}

std::string uses(const HostFacts& facts) { return uses(classify(facts)); }

std::string why(const HostFacts& facts, int id) {
  const HostTiers tiers = classify(facts);
  return tiers.nodes[static_cast<std::size_t>(id)].why;
}

testing::AssertionResult says(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << part << "' is not in: " << text;
}

std::string refusal(const HostFacts& facts, const LowerTierOptions& options) {
  try {
    choose_tiers(classify(facts), options);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "";
}

LowerTierOptions named_node(int id) {
  LowerTierOptions options;
  options.cxl_node = id;
  return options;
}

LowerTierOptions with_bytes(std::int64_t bytes) {
  LowerTierOptions options;
  options.cxl_bytes = bytes;
  return options;
}

HostFacts expander() {
  HostFacts facts = machine({node(0, range(0, 4), 64), node(1, {}, 128)});
  facts.nodes[0].told = told({0}, 200, 100);
  facts.nodes[1].told = told({0}, 28, 250);
  return facts;
}

TEST(HostTiers, OneNodeIsDram) {
  const HostFacts facts = machine({node(0, {0, 1}, 16)});
  EXPECT_EQ(uses(facts), "dram");
  EXPECT_TRUE(says(why(facts, 0), "has CPUs"));
  EXPECT_TRUE(rates_wanted(facts).empty());
}

TEST(HostTiers, BothSocketsAreDram) {
  HostFacts facts = machine({node(0, range(0, 8), 64), node(1, range(8, 8), 64)});
  facts.nodes[0].told = told({0}, 200, 100);
  facts.nodes[1].told = told({1}, 180, 140);
  EXPECT_EQ(uses(facts), "dram dram");
  EXPECT_TRUE(rates_wanted(facts).empty());
}

TEST(HostTiers, EveryQuarterOfASocketInSnc4IsDram) {
  std::vector<NodeFacts> nodes;
  for (int id = 0; id < 8; ++id) nodes.push_back(node(id, range(id * 4, 4), 32));
  EXPECT_EQ(uses(machine(std::move(nodes))), "dram dram dram dram dram dram dram dram");
}

TEST(HostTiers, AnExpanderThatFirmwareCallsSlowerIsCxl) {
  const HostFacts facts = expander();
  EXPECT_EQ(uses(facts), "dram cxl");
  EXPECT_TRUE(says(why(facts, 1), "slower than the CPUs' own memory: reads 26.1 GiB/s"));
  EXPECT_TRUE(says(why(facts, 1), "node 0 186.3 GiB/s (HMAT)"));
  EXPECT_TRUE(rates_wanted(facts).empty());
  EXPECT_EQ(classify(facts).nodes_of(TierKind::kDram), (std::vector<int>{0}));
  EXPECT_EQ(classify(facts).nodes_of(TierKind::kCxl), (std::vector<int>{1}));
  EXPECT_TRUE(classify(facts).nodes_of(TierKind::kDisk).empty());
}

TEST(HostTiers, WhereRatesAreTheSameTheLatencyTells) {
  HostFacts facts = expander();
  facts.nodes[1].told = told({0}, 205, 250);
  EXPECT_EQ(uses(facts), "dram cxl");
  EXPECT_TRUE(says(why(facts, 1), "answers in 250 ns, node 0 in 100 ns (HMAT)"));
  facts.nodes[1].told = told({0}, 205, 110);
  EXPECT_EQ(uses(facts), "dram dram");
  facts.nodes[1].told = told({0}, 0, 250);
  EXPECT_EQ(uses(facts), "dram cxl");
}

TEST(HostTiers, AnExpanderIsComparedWithItsNearestSocket) {
  HostFacts facts = with_distances(machine({node(0, {0}, 64), node(1, {1}, 64), node(2, {}, 128)}),
                                   {{10, 21, 24}, {21, 10, 14}, {24, 14, 10}});
  facts.nodes[0].told = told({0}, 25, 100);
  facts.nodes[1].told = told({1}, 200, 100);
  facts.nodes[2].told = told({1}, 28, 100);
  EXPECT_EQ(uses(facts), "dram dram cxl");
  EXPECT_TRUE(says(why(facts, 2), "node 1 186.3 GiB/s"));
}

TEST(HostTiers, HbmInFlatModeIsFasterAndLeftToTheSystem) {
  // A Xeon Max in SNC4: DDR5 with the CPUs, HBM in nodes of its own, whose latency is higher.
  std::vector<NodeFacts> nodes;
  for (int id = 0; id < 4; ++id) {
    nodes.push_back(node(id, range(id * 4, 4), 32));
    nodes.back().told = told({id}, 61, 110);
  }
  for (int id = 4; id < 8; ++id) {
    nodes.push_back(node(id, {}, 16));
    nodes.back().told = told({id - 4}, 200, 140);
  }
  const HostFacts facts = machine(std::move(nodes));
  EXPECT_EQ(uses(facts), "dram dram dram dram faster faster faster faster");
  EXPECT_TRUE(says(why(facts, 4), "faster than the CPUs' own memory"));
  EXPECT_TRUE(classify(facts).nodes_of(TierKind::kCxl).empty());
}

TEST(HostTiers, AXeonMaxWithoutDdrHasItsHbmAsDram) {
  HostFacts facts = machine({node(0, range(0, 8), 64), node(1, range(8, 8), 64)});
  facts.nodes[0].told = told({0}, 800, 130);
  facts.nodes[1].told = told({1}, 800, 130);
  EXPECT_EQ(uses(facts), "dram dram");
}

TEST(HostTiers, HbmAndAnExpanderBesideDdrAreTold) {
  HostFacts facts = machine({node(0, {0}, 64), node(1, {}, 16), node(2, {}, 256)});
  facts.nodes[0].told = told({0}, 200, 100);
  facts.nodes[1].told = told({0}, 800, 130);
  facts.nodes[2].told = told({0}, 28, 300);
  EXPECT_EQ(uses(facts), "dram faster cxl");
}

TEST(HostTiers, AGpusOwnMemoryIsNeverUsed) {
  // A GH200: the GPU's memory is node 1, and nodes 2 to 8 are there for its partitions.
  HostFacts facts = machine({node(0, range(0, 72), 480), node(1, {}, 96)});
  facts.nodes[1].device = "GPU 0009:01:00.0";
  for (int id = 2; id < 9; ++id) facts.nodes.push_back(node(id, {}, 0));
  EXPECT_EQ(uses(facts), "dram ignored ignored ignored ignored ignored ignored ignored ignored");
  EXPECT_TRUE(says(why(facts, 1), "own memory of GPU 0009:01:00.0"));
  EXPECT_TRUE(says(why(facts, 2), "has no memory"));
  EXPECT_TRUE(rates_wanted(facts).empty()) << "and so it is not touched to be measured";
  EXPECT_EQ(classify(facts).available_bytes, 240 * kGiB) << "nor counted";
  facts.nodes[1].told = told({0}, 20, 900);
  EXPECT_EQ(uses(facts).substr(0, 12), "dram ignored") << "whatever firmware says of it";
  EXPECT_TRUE(says(refusal(facts, named_node(1)), "own memory of GPU 0009:01:00.0"));
}

TEST(HostTiers, WithoutFirmwaresFiguresTheRateIsMeasured) {
  HostFacts facts = machine({node(0, {0, 1}, 64), node(1, {}, 128)});
  const std::vector<RateQuestion> wanted = rates_wanted(facts);
  ASSERT_EQ(wanted.size(), 1U);
  EXPECT_EQ(wanted[0].node, 1);
  EXPECT_EQ(wanted[0].own_node, 0);
  EXPECT_EQ(uses(facts), "dram ignored");
  EXPECT_TRUE(says(why(facts, 1), "could not be learnt"));
  facts.nodes[0].measured_bytes_per_second = 40e9;
  facts.nodes[1].measured_bytes_per_second = 20e9;
  EXPECT_EQ(uses(facts), "dram cxl");
  EXPECT_TRUE(says(why(facts, 1), "node 0 37.3 GiB/s (measured)"));
  facts.nodes[1].measured_bytes_per_second = 39e9;
  EXPECT_EQ(uses(facts), "dram dram");
  facts.nodes[1].measured_bytes_per_second = 80e9;
  EXPECT_EQ(uses(facts), "dram faster");
}

TEST(HostTiers, FiguresOfOneNodeAloneSayNothing) {
  HostFacts facts = machine({node(0, {0, 1}, 64), node(1, {}, 128)});
  facts.nodes[1].told = told({0}, 28, 250);
  EXPECT_EQ(uses(facts), "dram ignored");
  EXPECT_EQ(rates_wanted(facts).size(), 1U);
}

TEST(HostTiers, ANodeThatTheCpusetExcludesIsIgnored) {
  HostFacts facts = expander();
  facts.nodes[1].allowed = false;
  EXPECT_EQ(uses(facts), "dram ignored");
  EXPECT_TRUE(says(why(facts, 1), "cpuset does not permit"));
  EXPECT_TRUE(rates_wanted(facts).empty());
}

TEST(HostTiers, AnotherSocketWithoutCpusOfThisProcessIsLikeANodeWithoutAny) {
  HostFacts facts = machine({node(0, {0, 1}, 64), node(1, {2, 3}, 64)});
  facts.usable_cpus = {0, 1};
  facts.nodes[0].told = told({0}, 200, 100);
  facts.nodes[1].told = told({1}, 200, 100);  // as its own CPUs see it, not as ours do
  EXPECT_EQ(rates_wanted(facts).size(), 1U);
  facts.nodes[0].measured_bytes_per_second = 80e9;
  facts.nodes[1].measured_bytes_per_second = 50e9;
  EXPECT_EQ(uses(facts), "dram cxl");
}

TEST(HostTiers, CpusWithoutMemoryOfTheirOwnUseWhatThereIs) {
  const HostFacts facts = machine({node(0, {0, 1}, 0), node(1, {}, 64)});
  EXPECT_EQ(uses(facts), "ignored dram");
  EXPECT_TRUE(rates_wanted(facts).empty());
}

TEST(HostTiers, WhereNoMemoryCanBePlacedOnlyTheCpusNodesCount) {
  HostFacts facts = expander();
  facts.can_place = false;
  EXPECT_EQ(uses(facts), "dram ignored");
  EXPECT_TRUE(says(why(facts, 1), "no libnuma"));
  EXPECT_TRUE(rates_wanted(facts).empty());
  EXPECT_TRUE(says(refusal(facts, named_node(1)), "no libnuma"));
}

TEST(HostTiers, BytesOfATierAreThoseOfItsNodesUpToTheLimit) {
  HostFacts facts = expander();
  facts.nodes[0].file_bytes = kGiB;
  HostTiers tiers = classify(facts);
  EXPECT_EQ(tiers.available_bytes_of(TierKind::kDram), 33 * kGiB);
  EXPECT_EQ(tiers.available_bytes_of(TierKind::kCxl), 64 * kGiB);
  EXPECT_EQ(tiers.available_bytes_of(TierKind::kDisk), 0);
  EXPECT_EQ(tiers.available_bytes, 97 * kGiB);
  facts.limit_bytes = 40 * kGiB;
  tiers = classify(facts);
  EXPECT_EQ(tiers.available_bytes, 40 * kGiB);
  EXPECT_EQ(tiers.available_bytes_of(TierKind::kDram), 33 * kGiB);
  EXPECT_EQ(tiers.available_bytes_of(TierKind::kCxl), 40 * kGiB);
}

TEST(ChosenTiers, AreThoseThatWereFoundUnlessTheUserSaysOtherwise) {
  EXPECT_EQ(uses(choose_tiers(classify(expander()), LowerTierOptions{})), "dram cxl");
  EXPECT_EQ(uses(choose_tiers(classify(expander()), with_bytes(kGiB))), "dram cxl");
  const HostTiers none = choose_tiers(classify(expander()), with_bytes(0));
  EXPECT_EQ(uses(none), "dram ignored");
  EXPECT_TRUE(says(none.nodes[1].why, "KVConfig(cxl=0)"));
}

TEST(ChosenTiers, ANamedNodeIsTheOnlyOneOfItsTier) {
  HostFacts facts = machine({node(0, {0}, 64), node(1, {1}, 64), node(2, {}, 128)});
  facts.nodes[0].told = told({0}, 200, 100);
  facts.nodes[1].told = told({1}, 200, 100);
  facts.nodes[2].told = told({0}, 28, 250);
  ASSERT_EQ(uses(facts), "dram dram cxl");
  const HostTiers chosen = choose_tiers(classify(facts), named_node(1));
  EXPECT_EQ(uses(chosen), "dram cxl ignored");
  EXPECT_TRUE(says(chosen.nodes[1].why, "names it"));
  EXPECT_TRUE(says(chosen.nodes[2].why, "names another"));
}

TEST(ChosenTiers, ANamedNodeMayBeOneThatCouldNotBeMeasured) {
  const HostFacts facts = machine({node(0, {0, 1}, 64), node(1, {}, 128)});
  ASSERT_EQ(uses(facts), "dram ignored");
  EXPECT_EQ(uses(choose_tiers(classify(facts), named_node(1))), "dram cxl");
}

TEST(ChosenTiers, ANodeThatCannotServeIsRefusedWithAListOfWhatThereIs) {
  HostFacts facts = expander();
  facts.nodes.push_back(node(2, {}, 0));
  facts.nodes.push_back(node(3, {}, 8));
  facts.nodes[3].allowed = false;
  for (const int id : {0, 2, 3, 4}) {
    const std::string text = refusal(facts, named_node(id));
    EXPECT_TRUE(says(text, message("[KVConfig] cxl_node is ", id, ", "))) << id;
    EXPECT_TRUE(says(text, "node 0 (dram, 32.0 GiB of 64.0 GiB available: has CPUs"));
    EXPECT_TRUE(says(text, "node 1 (cxl, 64.0 GiB of 128.0 GiB available: slower"));
  }
  EXPECT_TRUE(says(refusal(facts, named_node(0)), "the only DRAM"));
  EXPECT_TRUE(says(refusal(facts, named_node(2)), "has no memory"));
  EXPECT_TRUE(says(refusal(facts, named_node(3)), "cpuset does not permit"));
  EXPECT_TRUE(says(refusal(facts, named_node(4)), "no memory node of this machine"));
}

TEST(ChosenTiers, BytesOfATierThatIsNotThereAreRefused) {
  const HostFacts facts = machine({node(0, {0, 1}, 16)});
  const std::string text = refusal(facts, with_bytes(3 * kGiB));
  EXPECT_TRUE(says(text, "[KVConfig] cxl is 3.0 GiB; allowed: \"auto\" or 0"));
  EXPECT_TRUE(says(text, "node 0 (dram"));
  EXPECT_EQ(refusal(facts, with_bytes(-1)), "");
  EXPECT_EQ(refusal(facts, with_bytes(0)), "");
}

TEST(HostTiers, OfThisMachineHaveDramAndAReasonForEachNode) {
  const HostTiers tiers = host_tiers(available_cpus());
  EXPECT_FALSE(tiers.nodes_of(TierKind::kDram).empty());
  EXPECT_GT(tiers.available_bytes, 0);
  for (const ClassifiedNode& one : tiers.nodes) EXPECT_FALSE(one.why.empty()) << one.id;
}

}  // namespace
}  // namespace hybridgen
