// SPDX-License-Identifier: Apache-2.0
// A low-precision copy of the keys proposes tokens; exact logits decide among them.
#include <gtest/gtest.h>

#include "core/option_tables.h"
#include "hybridgen/core/error.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::expect_same;
using testing::generate;
using testing::Generated;
using testing::ragged_prompts;
using testing::tiny_config;
using testing::tiny_model;

constexpr int kSteps = 12;

EngineOptions scored(const std::string& scoring, double candidates_per_k) {
  EngineOptions options = testing::options("hybridgen");
  options.hybridgen.query.mode = QueryMode::kExact;
  options.device_tokens.count = 8;
  options.hybridgen.k = TokenCount::count(6);
  hybridgen_table().assign("test", options.hybridgen, {{"scoring", scoring}});
  options.hybridgen.candidates_per_k = candidates_per_k;
  return options;
}

std::vector<Generated> run(const EngineOptions& options) {
  Engine engine(tiny_model(), options);
  return generate(engine, ragged_prompts(), kSteps);
}

class Shadow : public ::testing::TestWithParam<const char*> {};

TEST_P(Shadow, WithAllTokensAsCandidatesEqualsTheScanOfTheKeys) {
  expect_same(run(scored(GetParam(), 1e6)), run(scored("full", 0.0)));
}

TEST_P(Shadow, WithAllTokensChosenEqualsFullAttention) {
  EngineOptions options = scored(GetParam(), 0.0);
  options.hybridgen.k = TokenCount::all();
  expect_same(run(options), run(testing::options("full")));
}

TEST_P(Shadow, GivesEveryQueryModeTheTokensOfTheScan) {
  for (const QueryMode query : {QueryMode::kExact, QueryMode::kSpeculative, QueryMode::kRescore}) {
    EngineOptions options = scored(GetParam(), 8.0);
    options.hybridgen.query.mode = query;
    EngineOptions full = scored("full", 0.0);
    full.hybridgen.query.mode = query;
    expect_same(run(options), run(full));
  }
}

TEST_P(Shadow, StartsWithTheFirstTokenThatLeavesInDecode) {
  EngineOptions options = scored(GetParam(), 8.0);
  options.device_tokens.count = 30;  // more than the prompt, less than the text
  EngineOptions full = options;
  full.hybridgen.scoring = Scoring::kFull;
  full.hybridgen.candidates_per_k = 0.0;
  Engine engine(tiny_model(), options);
  Engine expected(tiny_model(), full);
  expect_same(generate(engine, {testing::prompt(20)}, 150),
              generate(expected, {testing::prompt(20)}, 150));
}

TEST_P(Shadow, DoesNotDependOnWhatElseRuns) {
  const EngineOptions options = scored(GetParam(), 2.0);
  const auto together = run(options);
  const auto prompts = ragged_prompts();
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    Engine alone(tiny_model(), options);
    EXPECT_EQ(generate(alone, {prompts[i]}, kSteps).front(), together[i]) << "request " << i;
  }
}

TEST_P(Shadow, IsReadInsteadOfTheKeysThatAreNotCandidates) {
  ModelConfig config = tiny_config();
  config.num_heads = config.num_kv_heads;  // one query head each: a union is one head's choice
  Engine engine(tiny_model(config), scored(GetParam(), 2.0));
  generate(engine, {testing::prompt(50)}, 5);  // one token from prefill, four decode steps
  const PipelineStatistics statistics = engine.run_statistics().pipeline;
  const std::int64_t code_bits = std::string(GetParam()) == "int8" ? 8 : 4;
  const std::int64_t shadow_row = config.head_dim * code_bits / 8 + 2;  // codes and the step
  const std::int64_t key_row = config.head_dim * 4;
  const std::int64_t scanned = 43 + 44 + 45 + 46;  // each new token moves one out of the window
  const std::int64_t rescored = 4 * 2 * 6;
  EXPECT_EQ(statistics.host_key_bytes,
            config.num_layers * config.num_kv_heads * (scanned * shadow_row + rescored * key_row));
}

TEST_P(Shadow, CountsAsHostMemory) {
  EngineOptions options = scored(GetParam(), 2.0);
  const auto used = [&] {
    Engine engine(tiny_model(), options);
    SamplingOptions sampling;
    sampling.max_tokens = 5;
    engine.add(testing::prompt(100), sampling);
    engine.step();
    for (const TierUsage& tier : engine.memory()) {
      if (tier.tier == "dram") return tier.used_bytes;
    }
    return std::int64_t{0};
  };
  const std::int64_t with_shadow = used();
  options.hybridgen.scoring = Scoring::kFull;
  options.hybridgen.candidates_per_k = 0.0;
  EXPECT_GT(with_shadow, used());
}

const auto kName = [](const auto& setting) { return std::string(setting.param); };

INSTANTIATE_TEST_SUITE_P(Scoring, Shadow, ::testing::Values("int8", "int4"), kName);

void expect_refused(EngineOptions options, const std::vector<std::string>& words) {
  try {
    options.validate();
    static_cast<void>(make_method(options));
    FAIL() << "nothing was refused";
  } catch (const ConfigError& error) {
    for (const std::string& word : words) {
      EXPECT_NE(std::string(error.what()).find(word), std::string::npos) << error.what();
    }
  }
}

TEST(ShadowOptions, ThatMakeNoSenseAreRefusedWithAWayOut) {
  EngineOptions unknown = scored("full", 0.0);
  unknown.method_config = {{"scoring", "int2"}};
  expect_refused(unknown, {"scoring", "int2", "'int8' or 'int4'"});
  expect_refused(scored("int8", 0.5), {"candidates_per_k", "0.5", "[1, 1e+06]"});
  EngineOptions options = scored("int8", 0.0);
  options.hybridgen.selector = "h2o";
  expect_refused(options, {"selector", "h2o", "topk"});
  options = scored("int8", 0.0);
  options.hybridgen.strategy = SelectionStrategy::kPreQkt;
  options.hybridgen.pre_selector = "block_digests";
  expect_refused(options, {"pre_selector", "block_digests", "blocks"});
  options = testing::options("flexgen");
  options.hybridgen.scoring = Scoring::kInt4;
  expect_refused(options, {"flexgen", "scoring", "full"});
}

}  // namespace
}  // namespace hybridgen
