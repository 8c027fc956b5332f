// SPDX-License-Identifier: Apache-2.0
// What a plan says before anything is loaded, and what engines then take.
#include "engine/run_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "engine/resolved_options.h"
#include "hybridgen/core/error.h"
#include "memory/host_tiers.h"
#include "memory/process_memory.h"
#include "models/decoder_model.h"
#include "support/emulated_cuda.h"
#include "support/method_settings.h"

namespace hybridgen {
namespace {

using testing::all_settings;
using testing::options;
using testing::prompt;
using testing::Setting;
using testing::tiny_config;
using testing::tiny_model;

ModelConfig long_config(std::int64_t positions = 4096) {
  ModelConfig config = tiny_config();
  config.max_positions = positions;
  return config;
}

RunPlan plan(const EngineOptions& asked,
             const RunShape& shape,
             const std::string& device = "cpu",
             const ModelConfig& config = tiny_config()) {
  return plan_run(config,
                  DType::kFloat32,
                  DeviceContext(device),
                  /*are_loaded=*/false,
                  asked,
                  std::nullopt,
                  shape);
}

struct Peak {
  std::map<std::string, std::int64_t> used;  ///< by tier
  std::int64_t running = 0;
};

/// The most that a run of this shape takes, and how many requests make tokens in one step.
Peak run(const EngineOptions& asked,
         const RunShape& shape,
         const std::string& device = "cpu",
         const ModelConfig& config = tiny_config()) {
  Engine engine(tiny_model(device, config), asked);
  SamplingOptions sampling;
  sampling.max_tokens = static_cast<int>(shape.new_tokens);
  for (std::int64_t i = 0; i < shape.batch_size; ++i) {
    engine.add(prompt(shape.prompt_tokens, static_cast<std::uint64_t>(i)), sampling);
  }
  Peak peak;
  while (engine.has_work()) {
    const std::vector<TokenEvent> events = engine.step();
    for (const TokenEvent& event : events) {
      if (event.error != nullptr) std::rethrow_exception(event.error);
    }
    peak.running = std::max(peak.running, static_cast<std::int64_t>(events.size()));
    for (const TierUsage& tier : engine.memory()) {
      peak.used[tier.tier] = std::max(peak.used[tier.tier], tier.used_bytes);
    }
  }
  return peak;
}

class PlanOfAMethod : public ::testing::TestWithParam<Setting> {};

INSTANTIATE_TEST_SUITE_P(Methods,
                         PlanOfAMethod,
                         ::testing::ValuesIn(all_settings()),
                         [](const auto& each) { return each.param.name; });

TEST_P(PlanOfAMethod, SaysWhatARunTakesOfEveryTier) {
  const RunShape shape{.batch_size = 3, .prompt_tokens = 90, .new_tokens = 8};
  const RunPlan planned = plan(GetParam().options, shape);
  EXPECT_EQ(planned.problem, "");
  EXPECT_EQ(planned.together, 3);
  Peak taken = run(GetParam().options, shape);
  EXPECT_EQ(taken.running, 3);
  for (const TierPlan& tier : planned.tiers) {
    // A retention policy's prompt is there until the policy has chosen.
    const std::int64_t prompt = tier.tier == TierKind::kDevice ? tier.engine : 0;
    const std::int64_t used = taken.used.at(std::string(name_of(tier.tier)));
    EXPECT_GE(used, tier.of_requests()) << name_of(tier.tier);
    EXPECT_LE(used, tier.of_requests() + prompt) << name_of(tier.tier);
  }
}

TEST(RunPlan, LoadsNothingAndKnowsTheWeights) {
  const std::int64_t before = ProcessMemory::instance().used();
  const RunPlan planned = plan(options("full"), {});
  EXPECT_EQ(ProcessMemory::instance().used(), before);
  EXPECT_EQ(planned.tiers.at(0).weights, tiny_model()->weights().bytes());
  EXPECT_EQ(planned.tiers.at(1).weights, 0);
}

TEST(RunPlan, LeavesRoomForWeightsThatAreYetToComeToTheHost) {
  const DeviceContext host("cpu");
  const auto dram = [&](std::int64_t coming) {
    return make_budgets(
               {}, host, lower_tiers({}, host_tiers({0})), {.host = coming})[TierKind::kDram]
        .capacity_bytes();
  };
  const std::int64_t gib = std::int64_t{1} << 30;
  EXPECT_NEAR(static_cast<double>(dram(0) - dram(gib)), 0.45 * gib, 0.1 * gib);
}

TEST(RunPlan, OfADeviceOfItsOwnCountsWhatOperationsTakeToo) {
  testing::EmulatedCuda cuda;
  EngineOptions asked = options("hybridgen");
  asked.device_tokens.count = 20;
  const RunShape shape{.batch_size = 3, .prompt_tokens = 90, .new_tokens = 8};
  const RunPlan planned = plan(asked, shape, cuda.name());
  Peak taken = run(asked, shape, cuda.name());
  EXPECT_EQ(planned.together, 3);
  EXPECT_EQ(taken.used.at("dram"), planned.tiers.at(1).of_requests());
  EXPECT_GE(taken.used.at("device"), planned.tiers.at(0).of_requests());
  EXPECT_LE(taken.used.at("device"),
            planned.tiers.at(0).of_requests() + planned.tiers.at(0).engine);
}

TEST(RunPlan, SaysHowManyRunAtTheSameTimeAndWhatLetsAllOfThem) {
  EngineOptions asked = options("hybridgen");
  asked.hybridgen.query.mode = QueryMode::kExact;
  const RunShape shape{.batch_size = 5, .prompt_tokens = 200, .new_tokens = 10};
  const RunPlan roomy = plan(asked, shape);
  EXPECT_EQ(roomy.together, 5);
  EXPECT_FALSE(roomy.nearest);
  asked.device_bytes = roomy.tiers.at(0).of_requests() / 2;
  const RunPlan planned = plan(asked, shape);
  EXPECT_EQ(planned.problem, "");
  EXPECT_EQ(planned.window, 210);  // an automatic window takes what one request can have
  EXPECT_EQ(planned.together, 2);
  EXPECT_EQ(run(asked, shape).running, 2);

  ASSERT_TRUE(planned.nearest);
  EXPECT_EQ(planned.nearest->batch_size, 5);
  EXPECT_EQ(planned.nearest->prompt_tokens, 200);
  EXPECT_FALSE(planned.nearest->dram_bytes);
  asked.device_tokens.count = planned.nearest->device_tokens.value();
  EXPECT_EQ(plan(asked, shape).together, 5);
  EXPECT_EQ(run(asked, shape).running, 5);
  *asked.device_tokens.count += 1;
  EXPECT_LT(plan(asked, shape).together, 5);
}

TEST(RunPlan, SaysWhichDramWouldDo) {
  EngineOptions asked = options("hybridgen");
  asked.device_tokens.count = 10;
  const RunShape shape{.batch_size = 4, .prompt_tokens = 100, .new_tokens = 10};
  asked.dram_bytes = plan(asked, shape).tiers.at(1).of_requests() - 1;
  const RunPlan planned = plan(asked, shape);
  EXPECT_EQ(planned.together, 3);
  ASSERT_TRUE(planned.nearest);
  EXPECT_EQ(planned.nearest->dram_bytes.value(), asked.dram_bytes + 1);
  asked.dram_bytes = *planned.nearest->dram_bytes;
  EXPECT_EQ(plan(asked, shape).together, 4);
}

TEST(RunPlan, ABudgetBeyondTheMachineMakesNoRoom) {
  EngineOptions asked = options("hybridgen");
  asked.device_tokens.count = 10;
  asked.dram_bytes = std::int64_t{1} << 50;
  const ModelConfig config = long_config(std::int64_t{1} << 30);
  const auto planned_for = [&](std::int64_t tokens, std::int64_t batch) {
    return plan(asked, {.batch_size = batch, .prompt_tokens = tokens}, "cpu", config);
  };
  const std::int64_t each = planned_for(100'000, 1).tiers.at(1).of_requests() / 100'000;
  const std::int64_t most = ProcessMemory::instance().measure_free() / each;
  const RunPlan too_long = planned_for(most * 2, 1);
  EXPECT_EQ(too_long.together, 0);
  EXPECT_NE(too_long.problem.find("of this machine's memory; its capacity is"), std::string::npos)
      << too_long.problem;
  ASSERT_TRUE(too_long.nearest);
  EXPECT_LT(too_long.nearest->prompt_tokens, most * 2);
  const RunPlan several = planned_for(most / 3, 9);
  EXPECT_GE(several.together, 1);
  EXPECT_LE(several.together, 3);
  EXPECT_FALSE(several.nearest && several.nearest->dram_bytes) << "more of it is not there";
}

class PlanWithADisk : public ::testing::TestWithParam<std::int64_t> {
 protected:
  PlanWithADisk() {
    asked_.device_tokens.count = 10;
    asked_.dram_bytes = GetParam() << 10;
    asked_.prefill_chunk = 256;
    asked_.tiers.disk_path = ::testing::TempDir();
    asked_.tiers.disk_bytes = 64 << 20;
  }
  RunPlan planned() const { return plan(asked_, shape_, "cpu", long_config()); }
  Peak taken() const { return run(asked_, shape_, "cpu", long_config()); }
  EngineOptions asked_ = options("hybridgen");
  RunShape shape_{.batch_size = 4, .prompt_tokens = 2000, .new_tokens = 4};
};

INSTANTIATE_TEST_SUITE_P(KiBOfDram, PlanWithADisk, ::testing::Values(2400, 3200, 4000, 5000, 9000));

TEST_P(PlanWithADisk, SaysHowManyTheEngineRunsAndTheLeastDramForAll) {
  const RunPlan first = planned();
  ASSERT_GE(first.together, 1) << first.problem;
  EXPECT_EQ(taken().running, first.together);
  if (first.together == shape_.batch_size) {
    EXPECT_FALSE(first.nearest);
    return;
  }
  ASSERT_TRUE(first.nearest && first.nearest->dram_bytes);
  EXPECT_EQ(first.nearest->batch_size, shape_.batch_size);
  asked_.dram_bytes = *first.nearest->dram_bytes;
  EXPECT_EQ(planned().together, shape_.batch_size);
  EXPECT_EQ(taken().running, shape_.batch_size);
  asked_.dram_bytes -= 1;
  EXPECT_LT(planned().together, shape_.batch_size);
}

TEST(RunPlan, ARefusalNamesTheDramThatIsEnough) {
  for (const bool has_cxl : {false, true}) {
    EngineOptions asked = options("hybridgen");
    asked.device_tokens.count = 10;
    asked.prefill_chunk = 256;
    asked.tiers.disk_path = ::testing::TempDir();
    asked.tiers.disk_bytes = 64 << 20;
    asked.dram_bytes = 64 << 10;
    if (has_cxl) {
      asked.test.invented_cxl_node = 0;
      asked.tiers.cxl_bytes = 256 << 10;
    }
    const RunShape shape{.batch_size = 1, .prompt_tokens = 2000, .new_tokens = 4};
    const std::string problem = plan(asked, shape, "cpu", long_config()).problem;
    const std::size_t named = problem.find("KVConfig(dram=");
    ASSERT_NE(named, std::string::npos) << problem;
    asked.dram_bytes = std::stoll(problem.substr(named + std::string("KVConfig(dram=").size()));
    EXPECT_EQ(plan(asked, shape, "cpu", long_config()).problem, "");
    asked.dram_bytes -= 1;
    EXPECT_NE(plan(asked, shape, "cpu", long_config()).problem, "");
  }
}

TEST(RunPlan, RefusesADiskThatTheFileSystemHasNoRoomForAsTheEngineDoes) {
  EngineOptions asked = options("hybridgen");
  asked.tiers.disk_path = ::testing::TempDir();
  asked.tiers.disk_bytes = std::int64_t{1} << 60;
  EXPECT_THROW(plan(asked, {}), ConfigError);
  EXPECT_THROW(Engine(tiny_model(), asked), ConfigError);
}

TEST(RunPlan, WhereWindowsShrinkCountsThoseThatRunOnceTheyHave) {
  EngineOptions asked = options("hybridgen");
  asked.tiers.shrink_windows = true;
  const RunShape shape{.batch_size = 3, .prompt_tokens = 700, .new_tokens = 4};
  const RunPlan roomy = plan(asked, shape, "cpu", long_config());
  EXPECT_EQ(roomy.together, 3);
  asked.device_bytes = roomy.tiers.at(0).of_requests() / 2;
  const RunPlan planned = plan(asked, shape, "cpu", long_config());
  EXPECT_EQ(planned.together, 3);
  EXPECT_LT(planned.window, roomy.window);
  EXPECT_LE(planned.tiers.at(0).of_requests(), asked.device_bytes);
  EXPECT_EQ(run(asked, shape, "cpu", long_config()).running, 3);
}

TEST(RunPlan, OfWhatDoesNotFitSaysWhyAndTheNearestThatDoes) {
  EngineOptions asked = options("full");
  asked.device_bytes = 64 << 10;
  const RunShape shape{.batch_size = 2, .prompt_tokens = 200, .new_tokens = 20};
  const RunPlan planned = plan(asked, shape);
  EXPECT_EQ(planned.together, 0);
  EXPECT_NE(planned.problem.find("nearest that fits"), std::string::npos) << planned.problem;
  Engine engine(tiny_model(), asked);
  SamplingOptions sampling;
  sampling.max_tokens = 20;
  EXPECT_THROW(engine.add(prompt(200), sampling), OutOfMemoryError);

  ASSERT_TRUE(planned.nearest);
  EXPECT_EQ(planned.nearest->batch_size, 1);
  const std::int64_t most = planned.nearest->prompt_tokens;
  EXPECT_NO_THROW(engine.add(prompt(most), sampling));
  EXPECT_THROW(engine.add(prompt(most + 1), sampling), OutOfMemoryError);
}

TEST(RunPlan, KeepsTheEnginesLimits) {
  EngineOptions asked = options("full");
  asked.max_batch = 2;
  asked.max_model_len = 50;
  const RunPlan planned = plan(asked, {.batch_size = 9, .prompt_tokens = 40, .new_tokens = 99});
  EXPECT_EQ(planned.together, 2);
  EXPECT_EQ(planned.window, 50);
  EXPECT_FALSE(planned.nearest);
  EXPECT_THROW(plan(asked, {.batch_size = 1, .prompt_tokens = 50, .new_tokens = 1}), ConfigError);
}

}  // namespace
}  // namespace hybridgen
