// SPDX-License-Identifier: Apache-2.0
// Running requests that give up window tokens for one that waits: who waits, and what is said.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <vector>

#include "device/resident_cache.h"
#include "engine/run_plan.h"
#include "hybridgen/core/error.h"
#include "support/emulated_cuda.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::expect_same;
using testing::Generated;
using testing::prompt;
using testing::tiny_config;
using testing::tiny_model;

constexpr std::int64_t kPrompt = 600;
constexpr int kNew = 24;

std::shared_ptr<DecoderModel> long_model(const std::string& device = "cpu") {
  ModelConfig config = tiny_config();
  config.max_positions = 2048;
  return tiny_model(device, config);
}

/// Exact, whatever lies where; room for `rows` resident tokens.
EngineOptions exact(std::int64_t rows, bool shrinks) {
  EngineOptions options = testing::options("hybridgen");
  options.hybridgen.query.mode = QueryMode::kExact;
  options.hybridgen.k = TokenCount::all();
  options.device_bytes = ResidentCache::required_bytes(tiny_config(), DType::kFloat32, rows);
  options.tiers.shrink_windows = shrinks;
  return options;
}

struct Ran {
  std::vector<Generated> outputs;
  std::size_t most_together = 0;
  std::vector<std::int64_t> fewest_resident;  ///< per request, once it makes tokens
  std::vector<std::int64_t> order;            ///< requests by their first token
};

Ran run(Engine& engine, const std::vector<std::int64_t>& lengths) {
  SamplingOptions sampling;
  sampling.max_tokens = kNew;
  std::map<std::int64_t, std::size_t> index;
  Ran ran;
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    index[engine.add(prompt(lengths[i], i + 1), sampling)] = i;
  }
  ran.outputs.resize(lengths.size());
  ran.fewest_resident.assign(lengths.size(), 1 << 30);
  while (engine.has_work()) {
    const std::vector<TokenEvent> events = engine.step();
    ran.most_together = std::max(ran.most_together, events.size());
    for (const TokenEvent& event : events) {
      if (event.error != nullptr) std::rethrow_exception(event.error);
      const std::size_t i = index.at(event.request_id);
      if (ran.outputs[i].tokens.empty()) ran.order.push_back(static_cast<std::int64_t>(i));
      ran.outputs[i].tokens.push_back(event.token_id);
      ran.outputs[i].logprobs.push_back(event.logprob);
      ran.fewest_resident[i] = std::min(
          ran.fewest_resident[i], engine.request_statistics(event.request_id).resident_tokens);
    }
    for (const TierUsage& tier : engine.memory()) {
      EXPECT_LE(tier.used_bytes, tier.capacity_bytes) << tier.tier;
    }
  }
  return ran;
}

TEST(Shrinking, ByDefaultARequestThatDoesNotFitWaitsAndNoWindowChanges) {
  Engine engine(long_model(), exact(1000, false));
  const Ran alone = run(engine, {kPrompt, kPrompt});
  EXPECT_EQ(alone.most_together, 1U);
  EXPECT_GE(alone.fewest_resident[0], kPrompt);
  EXPECT_GE(alone.fewest_resident[1], kPrompt);
}

/// `room`: bytes of the device with which all three run only if they shrink.
void expect_shrunk(const std::shared_ptr<DecoderModel>& model, std::int64_t room) {
  EngineOptions options = exact(0, false);
  options.device_bytes = std::int64_t{1} << 30;
  Engine whole(model, options);
  const Ran expected = run(whole, {kPrompt, kPrompt, kPrompt});
  EXPECT_EQ(expected.most_together, 3U);

  options.device_bytes = room;
  Engine waiting(model, options);
  EXPECT_EQ(run(waiting, {kPrompt, kPrompt, kPrompt}).most_together, 2U);

  options.tiers.shrink_windows = true;
  Engine engine(model, options);
  const std::int64_t idle = engine.memory().front().used_bytes;
  const Ran shrunk = run(engine, {kPrompt, kPrompt, kPrompt});
  EXPECT_EQ(shrunk.most_together, 3U);
  expect_same(shrunk.outputs, expected.outputs);
  for (const std::int64_t resident : shrunk.fewest_resident) {
    EXPECT_LT(resident, kPrompt);
    EXPECT_GE(resident, 255);  // the newest token is on its way
  }
  EXPECT_EQ(engine.memory().front().used_bytes, idle);
  EXPECT_EQ(engine.memory().back().used_bytes, 0);
}

TEST(Shrinking, LetsAWaitingRequestRunAndLosesNoToken) {
  expect_shrunk(long_model(), exact(1300, true).device_bytes);
}

TEST(Shrinking, DoesSoOnADeviceOfItsOwn) {
  testing::EmulatedCuda cuda;
  const auto model = long_model(cuda.name());
  EngineOptions options = exact(0, false);
  options.device_bytes = std::int64_t{1} << 30;
  const auto needed = [&] {
    const RunShape shape{.batch_size = 3, .prompt_tokens = kPrompt, .new_tokens = kNew};
    const RunPlan plan = plan_run(
        model->config(), model->dtype(), model->device(), true, options, std::nullopt, shape);
    return plan.tiers.front().engine + plan.tiers.front().of_requests();
  };
  const std::int64_t whole = needed();
  options.device_tokens.count = 256;
  const std::int64_t least = needed();
  ASSERT_LT(least, whole);
  expect_shrunk(model, (least + whole) / 2);
}

TEST(Shrinking, NeverGoesBelow256TokensOrTheUsersInteger) {
  Engine engine(long_model(), exact(700, true));  // less than 256 for each of three
  const Ran fewer = run(engine, {kPrompt, kPrompt, kPrompt});
  EXPECT_LT(fewer.most_together, 3U);
  EXPECT_GE(*std::ranges::min_element(fewer.fewest_resident), 255);

  EngineOptions options = exact(1000, true);
  options.device_tokens.count = 550;
  Engine counted(long_model(), options);
  const Ran kept = run(counted, {kPrompt, kPrompt});
  EXPECT_EQ(kept.most_together, 1U);
  EXPECT_GE(*std::ranges::min_element(kept.fewest_resident), 549);
}

TEST(Shrinking, WhoHasWaitedLongestIsAlwaysNext) {
  for (const bool shrinks : {false, true}) {
    Engine engine(long_model(), exact(900, shrinks));
    // Small ones that would fit beside the first come after a large one, which does not.
    const Ran found = run(engine, {500, 800, 20, 20, 20, 20});
    EXPECT_EQ(found.order, (std::vector<std::int64_t>{0, 1, 2, 3, 4, 5}));
    for (const Generated& output : found.outputs) EXPECT_EQ(output.tokens.size(), 24U);
  }
}

TEST(Shrinking, IsRefusedOfMethodsThatHaveNoWindowToShrink) {
  for (const char* method : {"full", "flexgen", "streaming_llm", "h2o", "moe_lightning"}) {
    EngineOptions options = testing::options(method);
    options.tiers.shrink_windows = true;
    EXPECT_THROW(Engine(tiny_model(), options), ConfigError) << method;
  }
}

}  // namespace
}  // namespace hybridgen
