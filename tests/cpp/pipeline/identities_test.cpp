// SPDX-License-Identifier: Apache-2.0
// Settings in which hybrid attention must equal full attention, and changes that must change
// nothing.
#include <gtest/gtest.h>

#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::expect_same;
using testing::generate;
using testing::Generated;
using testing::ragged_prompts;
using testing::tiny_model;

constexpr int kSteps = 12;
EngineOptions hybrid(QueryMode query, std::int64_t window) {
  EngineOptions options = testing::options("hybridgen");
  options.hybridgen.query.mode = query;
  options.hybridgen.k = TokenCount::all();
  options.device_tokens.count = window;
  return options;
}

std::vector<Generated> run(const EngineOptions& options) {
  Engine engine(tiny_model(), options);
  return generate(engine, ragged_prompts(), kSteps);
}

class ExactSettings : public ::testing::TestWithParam<std::int64_t> {};

TEST_P(ExactSettings, ExactQueryWithAllTokensEqualsFullAttention) {
  expect_same(run(hybrid(QueryMode::kExact, GetParam())), run(testing::options("full")));
}

TEST_P(ExactSettings, RescoringAllTokensEqualsFullAttention) {
  expect_same(run(hybrid(QueryMode::kRescore, GetParam())), run(testing::options("full")));
}

TEST_P(ExactSettings, AnOracleGuessMakesSpeculationExact) {
  EngineOptions options = hybrid(QueryMode::kSpeculative, GetParam());
  options.test.oracle_proxy = true;
  expect_same(run(options), run(testing::options("full")));
}

TEST_P(ExactSettings, PlanningAllTokensBeforehandEqualsFullAttention) {
  EngineOptions options = hybrid(QueryMode::kExact, GetParam());
  options.hybridgen.strategy = SelectionStrategy::kPreQkt;
  expect_same(run(options), run(testing::options("full")));
}

INSTANTIATE_TEST_SUITE_P(Windows, ExactSettings, ::testing::Values(0, 1, 2, 17, 64, 300));

TEST(Speculation, DiffersFromFullAttentionWhereTheGuessIsWrong) {
  // The control of the identities above: without the oracle the guessed logits are not the true
  // ones.
  const auto guessed = run(hybrid(QueryMode::kSpeculative, 4));
  const auto full = run(testing::options("full"));
  EXPECT_NE(guessed.front().logprobs, full.front().logprobs);
}

TEST(Speculation, FromBeyondTheLastLayerIsExact) {
  EngineOptions options = hybrid(QueryMode::kSpeculative, 4);
  options.hybridgen.query.first_layer = 4;
  expect_same(run(options), run(testing::options("full")));
}

class PrefillChunks : public ::testing::TestWithParam<std::int64_t> {};

TEST_P(PrefillChunks, ChangeNothing) {
  const std::vector<std::vector<std::int64_t>> prompts = {testing::prompt(70, 1),
                                                          testing::prompt(5, 3)};
  Engine whole(tiny_model(), testing::options("full"));
  const auto expected = generate(whole, prompts, kSteps);
  for (EngineOptions options : {testing::options("full"), hybrid(QueryMode::kExact, 9)}) {
    options.prefill_chunk = GetParam();
    Engine engine(tiny_model(), options);
    expect_same(generate(engine, prompts, kSteps), expected);
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, PrefillChunks, ::testing::Values(1, 7, 32, 33, 69, 70, 1000));

TEST(Prefill, PromptTokensThatPassThroughDecodeStepsChangeNothing) {
  const auto expected = run(testing::options("full"));
  for (const std::int64_t decoded : {1, 4, 200}) {
    Engine engine(tiny_model(), hybrid(QueryMode::kExact, 9));
    SamplingOptions sampling;
    sampling.max_tokens = kSteps;
    engine.add(ragged_prompts().front(), sampling, {}, decoded);
    Generated output;
    while (engine.has_work()) {
      for (const TokenEvent& event : engine.step()) {
        output.tokens.push_back(event.token_id);
        output.logprobs.push_back(event.logprob);
      }
    }
    expect_same({output}, {expected.front()});
  }
}

TEST(Batch, CompositionAndMicroBatchesChangeNoBit) {
  EngineOptions options = hybrid(QueryMode::kSpeculative, 9);
  options.hybridgen.k = TokenCount::count(6);
  const auto together = run(options);
  for (const std::int64_t micro_batch : {1, 2, 3}) {
    options.micro_batch = micro_batch;
    EXPECT_EQ(run(options), together) << "micro-batch of " << micro_batch;
  }
  const auto prompts = ragged_prompts();
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    Engine engine(tiny_model(), options);
    EXPECT_EQ(generate(engine, {prompts[i]}, kSteps).front(), together[i]) << "request " << i;
  }
}

TEST(Batch, ARequestDoesNotInheritFromThoseBeforeIt) {
  EngineOptions options = hybrid(QueryMode::kSpeculative, 9);
  options.hybridgen.k = TokenCount::count(6);
  Engine engine(tiny_model(), options);
  const auto first = generate(engine, {testing::prompt(40, 8)}, kSteps);
  generate(engine, ragged_prompts(), kSteps);
  EXPECT_EQ(generate(engine, {testing::prompt(40, 8)}, kSteps), first);
}

TEST(Mathematics, AtenAndKernelsAgree) {
  for (const QueryMode query : {QueryMode::kExact, QueryMode::kSpeculative, QueryMode::kRescore}) {
    EngineOptions options = hybrid(query, 9);
    options.hybridgen.k = TokenCount::count(6);
    options.math = Math::kKernels;
    const auto kernels = run(options);
    options.math = Math::kAten;
    expect_same(run(options), kernels);
  }
}

}  // namespace
}  // namespace hybridgen
