// SPDX-License-Identifier: Apache-2.0
// Every method in its exact setting equals full attention; none depends on the batch, the chunks or
// the implementation of the mathematics.
#include <gtest/gtest.h>

#include "hybridgen/core/error.h"
#include "support/method_settings.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::approximate_settings;
using testing::exact_settings;
using testing::expect_same;
using testing::generate;
using testing::Generated;
using testing::ragged_prompts;
using testing::Setting;
using testing::tiny_model;

constexpr int kSteps = 12;
std::vector<Generated> run(const EngineOptions& options) {
  Engine engine(tiny_model(), options);
  return generate(engine, ragged_prompts(), kSteps);
}

const auto kName = [](const auto& info) { return info.param.name; };

class ExactMethods : public ::testing::TestWithParam<Setting> {};

TEST_P(ExactMethods, EqualFullAttention) {
  static const auto full = run(testing::options("full"));
  expect_same(run(GetParam().options), full);
}

TEST_P(ExactMethods, EqualFullAttentionThroughLibTorch) {
  EngineOptions options = GetParam().options;
  options.math = Math::kAten;
  static const auto full = run(testing::options("full"));
  expect_same(run(options), full);
}

INSTANTIATE_TEST_SUITE_P(Methods, ExactMethods, ::testing::ValuesIn(exact_settings()), kName);

class ApproximateMethods : public ::testing::TestWithParam<Setting> {};

TEST_P(ApproximateMethods, DifferFromFullAttention) {
  // The control of the identities above: these settings do leave something out.
  const auto outputs = run(GetParam().options);
  EXPECT_NE(outputs.front().logprobs, run(testing::options("full")).front().logprobs);
}

TEST_P(ApproximateMethods, DoNotDependOnTheBatch) {
  EngineOptions options = GetParam().options;
  const auto together = run(options);
  options.micro_batch = 2;
  EXPECT_EQ(run(options), together);
  const auto prompts = ragged_prompts();
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    Engine engine(tiny_model(), options);
    EXPECT_EQ(generate(engine, {prompts[i]}, kSteps).front(), together[i]) << "request " << i;
  }
}

TEST_P(ApproximateMethods, DoNotDependOnTheImplementationOrOnTiming) {
  EngineOptions options = GetParam().options;
  const auto kernels = run(options);
  options.test.synchronous = true;
  EXPECT_EQ(run(options), kernels);
  options.test.synchronous = false;
  options.test.random_delay_us = 50;
  EXPECT_EQ(run(options), kernels);
  options.test.random_delay_us = 0;
  options.math = Math::kAten;
  expect_same(run(options), kernels);
}

TEST_P(ApproximateMethods, LeaveTheEngineReadyForTheNextRequest) {
  Engine engine(tiny_model(), GetParam().options);
  const auto first = generate(engine, {testing::prompt(40, 8)}, kSteps);
  generate(engine, ragged_prompts(), kSteps);
  EXPECT_EQ(generate(engine, {testing::prompt(40, 8)}, kSteps), first);
  for (const TierUsage& tier : engine.memory()) {
    EXPECT_EQ(tier.used_bytes, 0) << tier.tier;
  }
}

INSTANTIATE_TEST_SUITE_P(Methods,
                         ApproximateMethods,
                         ::testing::ValuesIn(approximate_settings()),
                         kName);

// Chunks are part of what HGCA means by salience, and of the sample that partial keys are made
// from.
std::vector<Setting> settings_without_chunks() {
  std::vector<Setting> settings = approximate_settings();
  std::erase_if(settings, [](const Setting& each) {
    return each.options.method == "hgca" || each.options.method == "infinigen" ||
           (each.options.hybridgen.strategy == SelectionStrategy::kPreQkt &&
            each.options.hybridgen.pre_selector == "partial_keys");
  });
  return settings;
}

class ChunkedPrefill : public ::testing::TestWithParam<Setting> {};

TEST_P(ChunkedPrefill, ChangesNothing) {
  EngineOptions options = GetParam().options;
  const auto whole = run(options);
  options.prefill_chunk = 13;
  expect_same(run(options), whole);
}

INSTANTIATE_TEST_SUITE_P(Methods,
                         ChunkedPrefill,
                         ::testing::ValuesIn(settings_without_chunks()),
                         kName);

}  // namespace
}  // namespace hybridgen
