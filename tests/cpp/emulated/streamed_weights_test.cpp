// SPDX-License-Identifier: Apache-2.0
// Weights that come to a device of its own memory and streams from pinned host memory and from a
// disk: the bits of those that are there all the time, whenever the device's operations run.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "emulated/backend.h"
#include "emulated/machine_profile.h"
#include "memory/process_memory.h"
#include "models/layer_ring.h"
#include "support/emulated_cuda.h"
#include "support/method_settings.h"
#include "support/order_checker.h"
#include "support/placed_model.h"
#include "support/still_clock.h"

namespace hybridgen {
namespace {

using emulated::Mode;
using testing::EmulatedCuda;
using testing::Generated;
using testing::OrderChecker;
using testing::placed_model;

EngineOptions guessing() {
  EngineOptions options =
      testing::hybrid("", QueryMode::kSpeculative, testing::kPost, "topk", TokenCount::count(7))
          .options;
  options.micro_batch = 2;  // layers overlap, and each is guessed for
  return options;
}

std::vector<Generated> run(const std::string& device,
                           PlaceShares shares,
                           const EngineOptions& options) {
  Engine engine(placed_model(device, shares), options);
  return testing::generate(engine, testing::ragged_prompts(), 6);
}

const std::vector<PlaceShares> kSplits = {{.device = 0.4, .host = 0.6},
                                          {.device = 0.0, .host = 1.0},
                                          {.device = 0.4, .host = 0.3},
                                          {.device = 0.0, .host = 0.0}};

class StreamedOnDevice : public ::testing::TestWithParam<Mode> {
 protected:
  static emulated::DeviceOptions device_options() {
    auto options = EmulatedCuda::options(GetParam());
    options.uploads_wait = false;
    return options;
  }
};

TEST_P(StreamedOnDevice, WeightsGiveTheBitsOfThoseThatAreThere) {
  EmulatedCuda device(device_options());
  for (const EngineOptions& options : {testing::options("full"), guessing()}) {
    const auto expected = run(device.name(), {}, options);
    for (const PlaceShares& split : kSplits) {
      EXPECT_EQ(run(device.name(), split, options), expected) << split.device << ' ' << split.host;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Modes,
                         StreamedOnDevice,
                         ::testing::Values(Mode::kEager, Mode::kLazy, Mode::kThreads));

TEST(StreamedWeightsOnDevice, ComeInTheOrderOfEvents) {
  auto options = EmulatedCuda::options(Mode::kEager);
  options.uploads_wait = false;
  EmulatedCuda device(options);
  const OrderChecker checker(device.device());
  run(device.name(), {.device = 0.4, .host = 0.3}, guessing());
  EXPECT_EQ(checker.races(), std::vector<std::string>{});
}

TEST(StreamedWeightsOnDevice, CountThePinnedMemoryThatADiskIsReadInto) {
  EmulatedCuda device(Mode::kEager);
  for (const PlaceShares& split : kSplits) {
    const auto model = placed_model(device.name(), split);
    const bool has_disk = split.device + split.host < 1.0;
    const std::int64_t before = ProcessMemory::instance().weights();
    const Engine engine(model, testing::options("full"));
    const std::int64_t held = ProcessMemory::instance().weights() - before;
    EXPECT_EQ(held, LayerRing::host_bytes(model->weights(), model->device(), 2));
    EXPECT_EQ(held > 0, has_disk) << split.device << ' ' << split.host;
  }
}

TEST(StreamedWeightsOnDevice, AreCountedAsTheyCome) {
  EmulatedCuda device(Mode::kEager);
  const auto model = placed_model(device.name(), {.device = 0.4, .host = 0.6});
  const Weights& weights = model->weights();
  EXPECT_EQ(weights.device_bytes() + weights.streamed().host_bytes, weights.bytes());
  EXPECT_GT(weights.streamed().host_bytes, 0);
  Engine engine(model, testing::options("full"));
  testing::generate(engine, {testing::prompt(30)}, 5);
  const WeightStatistics statistics = engine.run_statistics().weights;
  const std::int64_t pass = weights.streamed().host_bytes;
  EXPECT_GE(statistics.copied_bytes, 5 * pass);
  EXPECT_LE(statistics.copied_bytes, 5 * pass + 2 * pass / 4);
  EXPECT_EQ(statistics.read_bytes, 0);
  EXPECT_GT(statistics.copy_s, 0.0);
  EXPECT_GE(statistics.copy_wait_s, 0.0);
  engine.reset_statistics();
  EXPECT_EQ(engine.run_statistics().weights.copy_s, 0.0);
  EXPECT_EQ(engine.run_statistics().weights.copy_wait_s, 0.0);
}

/// What came to a machine of these rates, all layers from pinned host memory in every pass. The
/// host takes the profile's time, whatever it really takes.
WeightStatistics streamed_by(const std::string& name, double link_gbs, double memory_gbs) {
  emulated::MachineProfile profile;
  profile.name = name;
  profile.tflops = profile.tflops_fp32 = 1.0;
  profile.hbm_gbs = memory_gbs;
  profile.mem_gb = 4.0;
  profile.h2d_gbs = profile.d2h_gbs = link_gbs;
  profile.setup_us = profile.launch_us = profile.sync_us = 1.0;
  const std::string device = "emulated:" + std::to_string(emulated::register_machine(profile));
  const auto model = placed_model(device, {.device = 0.0, .host = 1.0});
  emulated::Device& timed = emulated::device_of(model->device().device());
  timed.host_wait_for_all();
  static std::atomic<std::int64_t> now = 0;  // the device, which the process keeps, refers to it
  now = std::max(now.load(), emulated::HostClock().now_ns());
  timed.timeline()->set_clock(std::make_unique<testing::StillClock>(now));
  Engine engine(model, testing::options("full"));
  testing::generate(engine, {testing::prompt(30)}, 5);
  return engine.run_statistics().weights;
}

TEST(StreamedWeightsOnDevice, AreWaitedForWhereTheLinkIsSlowerThanTheDevice) {
  constexpr double kLinkGbs = 0.02;
  const WeightStatistics slow = streamed_by("slow link", kLinkGbs, 100.0);
  // Two of the four layers may be on their way when the last step ends.
  const double came =
      static_cast<double>(slow.copied_bytes) - 0.5 * static_cast<double>(slow.host_bytes);
  EXPECT_GE(slow.copy_s, came / (kLinkGbs * 1e9));
  EXPECT_GT(slow.copy_wait_s, 0.5 * slow.copy_s);
  EXPECT_LT(slow.hidden_share(), 0.5);
}

TEST(StreamedWeightsOnDevice, AreHiddenWhereTheDeviceIsSlowerThanTheLink) {
  const WeightStatistics fast = streamed_by("slow memory", 1.0, 0.02);
  EXPECT_GT(fast.copy_s, 0.0);
  EXPECT_GT(fast.hidden_share(), 0.5);
}

}  // namespace
}  // namespace hybridgen
