// SPDX-License-Identifier: Apache-2.0
// How often a decode step's driver waits for a device that is not the host: once, and once per
// layer and micro-batch where the device's softmax says whose values the host must fetch.
#include <gtest/gtest.h>

#include <cstdlib>
#include <iostream>
#include <string>
#include <vector>

#include "support/emulated_cuda.h"
#include "support/method_settings.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using emulated::Counters;
using emulated::Mode;
using testing::all_settings;
using testing::EmulatedCuda;
using testing::Setting;

constexpr int kSteps = 6;

/// What the device did in each decode step of `prompts` run together.
std::vector<Counters> counted_steps(EmulatedCuda& cuda,
                                    EngineOptions options,
                                    const std::vector<std::vector<std::int64_t>>& prompts,
                                    std::int64_t decode_prompt_tokens = 0) {
  options.math = Math::kAten;
  Engine engine(testing::tiny_model(cuda.name()), options);
  SamplingOptions sampling;
  sampling.max_tokens = kSteps + 1;
  for (const auto& prompt : prompts) {
    engine.add(prompt, sampling, {}, decode_prompt_tokens);
  }
  std::vector<Counters> steps;
  while (engine.has_work()) {
    const std::int64_t before = engine.run_statistics().pipeline.decode_steps;
    cuda.reset_counters();
    for (const TokenEvent& event : engine.step()) {
      EXPECT_EQ(event.error, nullptr);
    }
    if (engine.run_statistics().pipeline.decode_steps > before) {
      steps.push_back(cuda.counters());
    }
  }
  return steps;
}

/// Layers in whose middle the driver waits for what the device's softmax says.
std::int64_t layers_with_a_wait(const std::string& setting) {
  return setting.find("flexgen_sparse") != std::string::npos ? testing::tiny_config().num_layers
                                                             : 0;
}

/// Chooses by a shadow, which calibrates itself once by the keys on the device where the prompt
/// left none behind.
Setting scored_by_shadow() {
  Setting shadow = testing::hybrid(
      "hybridgen_int8", QueryMode::kRescore, testing::kPost, "topk", TokenCount::count(6));
  shadow.options.hybridgen.scoring = Scoring::kInt8;
  return shadow;
}

class DriverWaits : public ::testing::TestWithParam<Setting> {};

TEST_P(DriverWaits, OncePerStepAndOncePerLayerThatFetchesWeighedValues) {
  EmulatedCuda cuda(Mode::kLazy);
  const std::vector<Counters> steps =
      counted_steps(cuda, GetParam().options, testing::ragged_prompts());
  ASSERT_FALSE(steps.empty());
  // Requests of one micro-batch wait together.
  const auto batches = static_cast<std::int64_t>(testing::ragged_prompts().size());
  const std::int64_t waits = layers_with_a_wait(GetParam().name);
  for (std::size_t step = 0; step < steps.size(); ++step) {
    if (waits == 0) {
      EXPECT_EQ(steps[step].host_waits(), 1) << "step " << step;
    } else {
      EXPECT_GE(steps[step].host_waits(), 1) << "step " << step;
      EXPECT_LE(steps[step].host_waits(), 1 + waits * batches) << "step " << step;
    }
    EXPECT_EQ(steps[step].blocking_copies, 0) << "step " << step;
    EXPECT_EQ(steps[step].value_reads, 0) << "step " << step;
  }
}

TEST_P(DriverWaits, OfAMicroBatchDoNotGrowWithItsRequests) {
  EngineOptions options = GetParam().options;
  const std::int64_t waits = layers_with_a_wait(GetParam().name);
  if (options.method == "moe_lightning") {
    GTEST_SKIP() << "cuts its requests into micro-batches";
  }
  for (const std::size_t requests : {std::size_t{1}, std::size_t{4}}) {
    EmulatedCuda cuda(Mode::kLazy);
    const std::vector<std::vector<std::int64_t>> prompts(requests, testing::prompt(60));
    options.micro_batch = 4;
    for (const Counters& step : counted_steps(cuda, options, prompts)) {
      EXPECT_EQ(step.host_waits(), 1 + waits);
    }
  }
}

TEST_P(DriverWaits, LeaveOneWaitPerBatchOfHostJobsToTheGate) {
  EmulatedCuda cuda(Mode::kThreads);
  EngineOptions options = GetParam().options;
  options.micro_batch = 8;
  const std::int64_t layers = testing::tiny_config().num_layers;
  const std::int64_t batches = options.method == "moe_lightning" ? 5 : 1;
  for (const Counters& step : counted_steps(cuda, options, testing::ragged_prompts())) {
    EXPECT_LE(step.worker_waits, layers * batches);
  }
}

const auto kName = [](const auto& info) { return info.param.name; };

INSTANTIATE_TEST_SUITE_P(Methods, DriverWaits, ::testing::ValuesIn(all_settings()), kName);

TEST(DriverWaitsOnceMore, InTheFirstStepAfterAPromptThatGaveNoLogits) {
  EmulatedCuda cuda(Mode::kLazy);
  EngineOptions options = testing::options("hybridgen");
  options.device_tokens.count = 9;
  const std::vector<Counters> steps =
      counted_steps(cuda, options, {testing::prompt(40)}, /*decode_prompt_tokens=*/3);
  ASSERT_GT(steps.size(), 2U);
  EXPECT_EQ(steps[0].host_waits(), 2);
  for (std::size_t step = 1; step < steps.size(); ++step) {
    EXPECT_EQ(steps[step].host_waits(), 1) << "step " << step;
  }
}

TEST(DriverWaitsOncePerLayerMore, WhereTheFirstTokenOfAllLeavesWhileAShadowIsKept) {
  EmulatedCuda cuda(Mode::kLazy);
  const EngineOptions options = scored_by_shadow().options;  // nine tokens on the device
  for (const Counters& step : counted_steps(cuda, options, {testing::prompt(40)})) {
    EXPECT_EQ(step.host_waits(), 1);
  }
  const std::vector<Counters> steps = counted_steps(cuda, options, {testing::prompt(5)});
  for (std::size_t step = 0; step < steps.size(); ++step) {
    EXPECT_EQ(steps[step].host_waits(), step == 4 ? 1 + testing::tiny_config().num_layers : 1)
        << "step " << step;
  }
}

// docs/cuda.md: HYBRIDGEN_COUNTS=1 pipeline_tests --gtest_filter='StepCounts*'
TEST(StepCounts, ArePrintedForTheTable) {
  if (std::getenv("HYBRIDGEN_COUNTS") == nullptr) {
    GTEST_SKIP() << "set HYBRIDGEN_COUNTS=1";
  }
  const std::int64_t layers = testing::tiny_config().num_layers;
  for (const Setting& setting : all_settings()) {
    for (const std::size_t requests : {std::size_t{1}, std::size_t{4}}) {
      EmulatedCuda cuda(Mode::kEager);
      EngineOptions options = setting.options;
      options.micro_batch = 4;
      const std::vector<std::vector<std::int64_t>> prompts(requests, testing::prompt(60));
      const Counters step = counted_steps(cuda, options, prompts).at(3);
      std::cout << "| " << setting.name << " | " << requests << " | "
                << static_cast<double>(step.launches) / static_cast<double>(layers) << " | "
                << step.copies_to_device << " | " << step.copies_to_host << " | "
                << step.host_waits() << " | " << step.worker_waits << " |\n";
    }
  }
}

}  // namespace
}  // namespace hybridgen
