// SPDX-License-Identifier: Apache-2.0
// How many operations a decode step queues per layer where our kernels do its work: as many for one
// request as for many, and as many where a timed device only takes their time. docs/cuda.md has the
// table; HYBRIDGEN_COUNTS=1 prints it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "device/device_context.h"
#include "emulated/backend.h"
#include "support/emulated_cuda.h"
#include "support/kernels_on_device.h"
#include "support/method_settings.h"
#include "support/timed_device.h"
#include "support/tiny_model.h"

#if !HYBRIDGEN_TORCH_HAS_CUDA

namespace hybridgen {
namespace {

using emulated::Counters;
using emulated::Mode;
using testing::all_settings;
using testing::EmulatedCuda;
using testing::Setting;

struct PerLayer {
  std::int64_t launches = 0;
  std::int64_t copies_to_device = 0;
  std::int64_t copies_to_host = 0;
};

ModelConfig with_layers(std::int64_t layers, ModelConfig config = testing::tiny_config()) {
  config.num_layers = layers;
  return config;
}

/// What a device does in the fourth decode step of so many equal requests.
Counters counted_step(EngineOptions options,
                      std::size_t requests,
                      const ModelConfig& config,
                      const std::string& name,
                      emulated::Device& device) {
  options.micro_batch = 4;
  Engine engine(testing::tiny_model(name, config), options);
  SamplingOptions sampling;
  sampling.max_tokens = 6;
  for (std::size_t i = 0; i < requests; ++i) {
    engine.add(testing::prompt(60), sampling);
  }
  Counters counters;
  while (engine.run_statistics().pipeline.decode_steps < 4) {
    device.reset_counters();
    for (const TokenEvent& event : engine.step()) {
      EXPECT_EQ(event.error, nullptr);
    }
    counters = device.counters();
  }
  return counters;
}

Counters kernels_step(const Setting& setting, std::size_t requests, const ModelConfig& config) {
  EmulatedCuda cuda(Mode::kEager);
  const testing::KernelsOnDevice kernels(cuda.device());
  EngineOptions options = setting.options;
  options.math = Math::kKernels;
  return counted_step(options, requests, config, cuda.name(), cuda.device());
}

Counters timed_step(const Setting& setting, std::size_t requests, const ModelConfig& config) {
  const DeviceContext context(testing::timed_device());
  return counted_step(
      setting.options, requests, config, context.name(), emulated::device_of(context.device()));
}

using Step = Counters (*)(const Setting&, std::size_t, const ModelConfig&);

/// Two more layers do twice what one does.
PerLayer per_layer(Step step, const Setting& setting, std::size_t requests) {
  const Counters more = step(setting, requests, with_layers(6));
  const Counters less = step(setting, requests, with_layers(4));
  return {.launches = (more.launches - less.launches) / 2,
          .copies_to_device = (more.copies_to_device - less.copies_to_device) / 2,
          .copies_to_host = (more.copies_to_host - less.copies_to_host) / 2};
}

struct Expected {
  std::string name;  ///< of a setting
  std::int64_t launches;
};

void PrintTo(const Expected& expected, std::ostream* out) { *out << expected.name; }

class LaunchesPerLayer : public ::testing::TestWithParam<Expected> {};

// norm, q k v, heads and append, resident attention, merge, output, norm, up, gate, down; one that
// fetches payloads, on the copies' stream, one that turns keys by their places, and two more where
// the next layer's query is guessed; a device that plans turns that query, guesses logits, counts
// the near ones twice where it wants their number and ranks in five. Where values wait for weights
// the merge makes these alone, five launches rank them, one fetches values and one adds them up.
// Moves of rows, and what partial keys keep of a token that leaves or takes another's place, come
// once a step.
TEST_P(LaunchesPerLayer, AreAsManyForOneRequestAsForFour) {
  const auto settings = all_settings();
  const auto setting = std::ranges::find(settings, GetParam().name, &Setting::name);
  ASSERT_NE(setting, settings.end());
  for (const std::size_t requests : {std::size_t{1}, std::size_t{4}}) {
    std::vector<Step> steps{kernels_step};
    if (!testing::timed_settings({*setting}).empty()) {
      steps.push_back(timed_step);
    }
    for (const Step step : steps) {
      const PerLayer counts = per_layer(step, *setting, requests);
      EXPECT_EQ(counts.launches, GetParam().launches) << requests << " requests";
      EXPECT_EQ(counts.copies_to_device, 0) << requests << " requests";
    }
  }
}

const auto kName = [](const auto& expected) { return expected.param.name; };

INSTANTIATE_TEST_SUITE_P(Methods,
                         LaunchesPerLayer,
                         ::testing::Values(Expected{"full", 10},
                                           Expected{"exact_streaming_llm", 10},
                                           Expected{"exact_h2o", 10},
                                           Expected{"exact_keyformer", 10},
                                           Expected{"h2o", 10},
                                           Expected{"keyformer", 10},
                                           Expected{"streaming_llm", 10},
                                           Expected{"streaming_llm_shifted", 11},
                                           Expected{"exact_flexgen", 11},
                                           Expected{"exact_moe_lightning_one_batch", 10},
                                           Expected{"hgca", 11},
                                           Expected{"hybridgen_keyformer", 11},
                                           Expected{"hybridgen_mass_exact", 11},
                                           Expected{"hybridgen_mass", 13},
                                           Expected{"hybridgen_mass_rescored", 13},
                                           Expected{"hybridgen_digests", 13},
                                           Expected{"exact_hybridgen_partial_keys", 18},
                                           Expected{"hybridgen_partial_keys", 20},
                                           Expected{"infinigen", 22},
                                           Expected{"infinigen_small_pool", 22},
                                           Expected{"flexgen_sparse", 18},
                                           Expected{"flexgen_sparse_partly_resident", 18}),
                         kName);

class LaunchesInTime : public ::testing::TestWithParam<Setting> {};

void expect_as_many(const Setting& setting, std::size_t requests, const ModelConfig& config) {
  const Counters kernels = kernels_step(setting, requests, config);
  const Counters timed = timed_step(setting, requests, config);
  EXPECT_EQ(timed.launches, kernels.launches) << requests << " requests";
  EXPECT_EQ(timed.copies_to_device, kernels.copies_to_device) << requests << " requests";
  EXPECT_EQ(timed.copies_to_host, kernels.copies_to_host) << requests << " requests";
  EXPECT_EQ(timed.host_waits(), kernels.host_waits()) << requests << " requests";
  EXPECT_EQ(timed.worker_waits, kernels.worker_waits) << requests << " requests";
}

TEST_P(LaunchesInTime, AreThoseOfOurKernels) {
  expect_as_many(GetParam(), 1, testing::tiny_config());
  expect_as_many(GetParam(), 4, testing::tiny_config());
}

TEST(LaunchesOfModels, AreThoseOfOurKernelsInTime) {
  ModelConfig opt = testing::tiny_config();  // with a projection of its embedding
  opt.norm = NormKind::kLayer;
  opt.activation = Activation::kRelu;
  opt.position = PositionKind::kLearned;
  opt.position_offset = 2;
  opt.embedding_size = 16;
  ModelConfig normed_after = opt;
  normed_after.pre_norm = false;
  normed_after.final_norm = false;
  ModelConfig normed_heads = testing::tiny_config();
  normed_heads.qk_norm = true;
  for (const ModelConfig& config : {opt, normed_after, normed_heads}) {
    expect_as_many({"full", testing::options("full")}, 4, config);
    const auto speculative = QueryMode::kSpeculative;
    expect_as_many(
        testing::hybrid("hybridgen", speculative, testing::kPost, "h2o", TokenCount::count(6)),
        4,
        config);
  }
}

TEST(LaunchesOfLibTorch, AreThoseOfATimedDeviceThatIsAskedForThem) {
  Setting setting{"full", testing::options("full")};
  const Counters kernels = timed_step(setting, 1, testing::tiny_config());
  setting.options.math = Math::kAten;
  EXPECT_GT(timed_step(setting, 1, testing::tiny_config()).launches, 4 * kernels.launches);
}

INSTANTIATE_TEST_SUITE_P(Methods,
                         LaunchesInTime,
                         ::testing::ValuesIn(testing::timed_settings(all_settings())),
                         [](const auto& setting) { return setting.param.name; });

TEST(StepLaunches, ArePrintedForTheTable) {
  if (std::getenv("HYBRIDGEN_COUNTS") == nullptr) {
    GTEST_SKIP() << "set HYBRIDGEN_COUNTS=1";
  }
  for (const Setting& setting : all_settings()) {
    for (const std::size_t requests : {std::size_t{1}, std::size_t{4}}) {
      const PerLayer counts = per_layer(kernels_step, setting, requests);
      std::cout << "| " << setting.name << " | " << requests << " | " << counts.launches << " | "
                << counts.copies_to_device << " | " << counts.copies_to_host << " |\n";
    }
  }
}

}  // namespace
}  // namespace hybridgen

#endif  // !HYBRIDGEN_TORCH_HAS_CUDA
