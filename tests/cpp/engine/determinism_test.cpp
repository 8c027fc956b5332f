// SPDX-License-Identifier: Apache-2.0
// What a request says depends on its prompt and options alone: not on who else is there, on what
// they hold, or on how many came before.
#include <gtest/gtest.h>

#include "device/resident_cache.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::generate;
using testing::Generated;
using testing::prompt;
using testing::tiny_model;

constexpr int kSteps = 12;

std::vector<std::vector<std::int64_t>> prompts() {
  return {prompt(120, 1), prompt(90, 2), prompt(120, 3), prompt(40, 4), prompt(110, 5)};
}

std::vector<Generated> each_alone(const EngineOptions& options) {
  std::vector<Generated> outputs;
  for (const auto& one : prompts()) {
    Engine engine(tiny_model(), options);
    outputs.push_back(generate(engine, {one}, kSteps).front());
  }
  return outputs;
}

// A window that is left to the engine, and so few chosen tokens that its size shows in the text.
EngineOptions automatic(std::int64_t rows) {
  EngineOptions options = testing::options("hybridgen");
  options.hybridgen.k = TokenCount::count(2);
  options.device_bytes =
      ResidentCache::required_bytes(testing::tiny_config(), DType::kFloat32, rows);
  return options;
}

/// What becomes of a prompt in an engine that is at work.
Generated beside_others(Engine& engine, const std::vector<std::int64_t>& one) {
  SamplingOptions sampling;
  sampling.max_tokens = kSteps;
  const std::int64_t id = engine.add(one, sampling);
  Generated output;
  while (output.tokens.size() < kSteps) {
    for (const TokenEvent& event : engine.step()) {
      if (event.request_id == id) {
        output.tokens.push_back(event.token_id);
        output.logprobs.push_back(event.logprob);
      }
    }
  }
  return output;
}

TEST(AutomaticWindow, IsTheSameAloneBesideOthersAndUnderPressure) {
  const EngineOptions options = automatic(/*rows=*/100);
  Engine engine(tiny_model(), options);
  EXPECT_EQ(generate(engine, prompts(), kSteps), each_alone(options));
  // Half of the device is taken when the others come.
  SamplingOptions sampling;
  sampling.max_tokens = 60;
  engine.add(prompt(30, 9), sampling);
  engine.step();
  EXPECT_GT(engine.memory().front().used_bytes, options.device_bytes / 2);
  EXPECT_EQ(beside_others(engine, prompts()[0]), each_alone(options).front());
}

TEST(AutomaticWindow, OfMoreTokensThanTheDeviceHoldsOffloadsTheRest) {
  Engine engine(tiny_model(), automatic(/*rows=*/100));
  SamplingOptions sampling;
  sampling.max_tokens = kSteps;
  const std::int64_t id = engine.add(prompt(120), sampling);
  engine.step();
  EXPECT_LE(engine.memory().front().used_bytes, engine.memory().front().capacity_bytes);
  while (engine.has_work()) engine.step();
  const RequestStatistics statistics = engine.request_statistics(id);
  EXPECT_GT(statistics.offloaded_tokens, 0);
  EXPECT_GT(statistics.resident_tokens, 0);
}

TEST(AutomaticWindow, OfLittleMemoryChangesTheText) {
  // The control: if the window did not show, the identities above would say nothing.
  EXPECT_NE(each_alone(automatic(/*rows=*/70)), each_alone(automatic(/*rows=*/400)));
}

TEST(DefaultOptions, GiveTheSameTextAloneAndBesideOthers) {
  EngineOptions options = testing::options("hybridgen");
  options.device_tokens.count = 5;
  Engine engine(tiny_model(), options);
  const auto together = generate(engine, prompts(), kSteps);
  EXPECT_EQ(together, each_alone(options));
  options.test.random_delay_us = 50;
  Engine delayed(tiny_model(), options);
  EXPECT_EQ(generate(delayed, prompts(), kSteps), together);
}

EngineOptions noisy(std::int64_t seed) {
  EngineOptions options = testing::options("keyformer");
  options.method_config = {{"kv_cache", std::int64_t{12}}, {"seed", seed}};
  return options;
}

TEST(NoiseOfAMethod, BelongsToTheSeedAndThePromptNotToTheRequestsNumber) {
  Engine engine(tiny_model(), noisy(0));
  const auto expected = each_alone(noisy(0));
  EXPECT_EQ(generate(engine, prompts(), kSteps), expected);
  // In another order, after all of these.
  auto turned = prompts();
  std::ranges::reverse(turned);
  auto outputs = generate(engine, turned, kSteps);
  std::ranges::reverse(outputs);
  EXPECT_EQ(outputs, expected);
  // The same prompt twice in one batch draws the same noise.
  const auto twice = generate(engine, {prompts()[0], prompts()[0]}, kSteps);
  EXPECT_EQ(twice[0], twice[1]);
  EXPECT_NE(each_alone(noisy(1)), expected);
}

TEST(ContentOfAPrompt, TellsPromptsApartAndDependsOnNothingElse) {
  const std::vector<std::int64_t> ids = {3, 1, 4, 1, 5};
  EXPECT_EQ(content_of(ids), content_of(std::vector(ids)));
  for (const auto& other : std::vector<std::vector<std::int64_t>>{
           {}, {3}, {3, 1, 4, 1}, {3, 1, 4, 1, 5, 0}, {1, 3, 4, 1, 5}, {3, 1, 4, 1, 6}}) {
    EXPECT_NE(content_of(ids), content_of(other));
  }
}

}  // namespace
}  // namespace hybridgen
