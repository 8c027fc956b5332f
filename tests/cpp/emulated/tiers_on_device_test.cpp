// SPDX-License-Identifier: Apache-2.0
// Keys and values in DRAM, in CXL memory (invented) and on a disk beside a device of its own memory
// and streams: copies to and from the host obey the order of events, whatever tier rows come from.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "cpp/memory/faulty_disk.h"
#include "hybridgen/core/error.h"
#include "support/emulated_cuda.h"
#include "support/invented_nodes.h"
#include "support/kernels_on_device.h"
#include "support/method_settings.h"
#include "support/order_checker.h"
#include "support/tier_use.h"

namespace hybridgen {
namespace {

using emulated::Fault;
using emulated::Mode;
using testing::EmulatedCuda;
using testing::Generated;
using testing::OrderChecker;
using testing::Setting;

constexpr std::int64_t kMiB = std::int64_t{1} << 20;
constexpr int kDramNode = 0;
constexpr int kCxlNode = 1;
constexpr int kSteps = 6;

std::shared_ptr<DecoderModel> model(const std::string& device) {
  ModelConfig config = testing::tiny_config();
  config.num_layers = 2;
  config.head_dim = 8;
  config.max_positions = 2048;
  return testing::tiny_model(device, config);
}

std::vector<std::vector<std::int64_t>> prompts() {
  return {testing::prompt(1400, 1), testing::prompt(40, 2)};
}

/// Whose offloaded rows are sent whole, attended to by the host, and chosen and gathered by it.
std::vector<Setting> settings() {
  std::vector<Setting> all{
      testing::setting("flexgen", "flexgen"),
      testing::setting("hgca", "hgca"),
      testing::hybrid(
          "hybridgen", QueryMode::kSpeculative, testing::kPost, "topk", TokenCount::count(200))};
  for (Setting& each : all) {
    each.options.prefill_chunk = 128;
    each.options.math = Math::kAten;
  }
  return all;
}

struct Outcome {
  std::vector<Generated> generated;
  std::int64_t on_dram_node = 0;
  std::int64_t on_cxl_node = 0;
  DiskStatistics disk;
};

Outcome run_in_every_tier(const std::string& device, EngineOptions options) {
  InventedNodes nodes({{kDramNode, 512 * kMiB}, {kCxlNode, 512 * kMiB}});
  const PageCallsForTest in_place(nodes);
  const TestFolder folder;
  const auto shared = model(device);
  options.test.invented_cxl_node = kCxlNode;
  options.tiers.cxl_bytes = 3 * 32 * 1024;  // three blocks of 256 tokens
  options.tiers.disk_path = folder.string();
  options.tiers.disk_bytes = 32 * kMiB;
  options.dram_bytes = testing::least_dram(shared, options, prompts().front(), kSteps);
  Engine engine(shared, options);
  Outcome outcome;
  outcome.generated = testing::generate(engine, prompts(), kSteps, [&](const auto& /*outputs*/) {
    outcome.on_dram_node = std::max(outcome.on_dram_node, nodes.used(kDramNode));
    outcome.on_cxl_node = std::max(outcome.on_cxl_node, nodes.used(kCxlNode));
    testing::wait_for_a_write(engine, std::chrono::milliseconds(100));
  });
  outcome.disk = engine.run_statistics().disk;
  return outcome;
}

std::vector<Generated> run_in_dram(const std::string& device, const EngineOptions& options) {
  Engine engine(model(device), options);
  return testing::generate(engine, prompts(), kSteps);
}

emulated::DeviceOptions device_with(Mode mode, Fault fault = Fault::kNone) {
  emulated::DeviceOptions options = EmulatedCuda::options(mode);
  options.uploads_wait = false;  // a wait for something else must not hide one that is missing
  options.fault = fault;
  return options;
}

class TiersOnDevice : public ::testing::TestWithParam<Setting> {
 protected:
  /// Whether the results with `fault` are other ones, or are refused.
  bool changes_results(Fault fault) const {
    const std::vector<Generated> right = run_in_dram("cpu", GetParam().options);
    const EmulatedCuda device(device_with(Mode::kLazy, fault));
    try {
      const Outcome found = run_in_every_tier(device.name(), GetParam().options);
      for (std::size_t i = 0; i < right.size(); ++i) {
        if (found.generated[i].tokens != right[i].tokens) return true;
        for (std::size_t t = 0; t < right[i].logprobs.size(); ++t) {
          if (!(std::abs(found.generated[i].logprobs[t] - right[i].logprobs[t]) <= 2e-4F)) {
            return true;
          }
        }
      }
      return false;
    } catch (const std::exception&) {
      return true;
    }
  }
  std::vector<std::string> races_with(Fault fault) const {
    EmulatedCuda device(device_with(Mode::kEager, fault));
    const OrderChecker checker(device.device());
    run_in_every_tier(device.name(), GetParam().options);
    return checker.races();
  }
};

INSTANTIATE_TEST_SUITE_P(Methods,
                         TiersOnDevice,
                         ::testing::ValuesIn(settings()),
                         [](const auto& each) { return each.param.name; });

TEST_P(TiersOnDevice, HaveNoRaceAndGiveWhatTheCpuGivesFromAllThree) {
  EmulatedCuda device(device_with(Mode::kEager));
  const OrderChecker checker(device.device());
  const Outcome found = run_in_every_tier(device.name(), GetParam().options);
  testing::expect_same(found.generated, run_in_dram("cpu", GetParam().options));
  EXPECT_EQ(checker.races(), std::vector<std::string>{});
  EXPECT_GT(found.on_dram_node, 0);
  EXPECT_GT(found.on_cxl_node, 0);
  EXPECT_GT(found.disk.written_bytes, 0);
  EXPECT_GT(found.disk.read_bytes, 0);
}

TEST_P(TiersOnDevice, GiveWhatTheCpuGivesWhenWorkRunsOnlyIfItIsWaitedFor) {
  EXPECT_FALSE(changes_results(Fault::kNone));
}

// What the device computes with, copies of host rows to it among them.
TEST_P(TiersOnDevice, ShowWhenAStreamGoesOnBeforeACopyToItIsDone) {
  EXPECT_TRUE(changes_results(Fault::kStreamIgnoresEvent));
  EXPECT_FALSE(races_with(Fault::kStreamIgnoresEvent).empty());
}

// What host threads read, evicted rows among it, and staging that they write to.
TEST_P(TiersOnDevice, ShowWhenTheHostGoesOnBeforeACopyIsDone) {
  EXPECT_TRUE(changes_results(Fault::kCopyToHostIsNotAwaited));
  for (const Fault fault : {Fault::kWorkerIgnoresEvent, Fault::kWorkerWaitsForOlder}) {
    EXPECT_TRUE(changes_results(fault) || !races_with(fault).empty()) << static_cast<int>(fault);
  }
}

#if !HYBRIDGEN_TORCH_HAS_CUDA
TEST_P(TiersOnDevice, GiveWhatTheCpuGivesByOurKernels) {
  EmulatedCuda device(device_with(Mode::kLazy));
  const testing::KernelsOnDevice kernels(device.device());
  EngineOptions options = GetParam().options;
  options.math = Math::kKernels;
  testing::expect_same(run_in_every_tier(device.name(), options).generated,
                       run_in_dram("cpu", GetParam().options));
}
#endif

}  // namespace
}  // namespace hybridgen
