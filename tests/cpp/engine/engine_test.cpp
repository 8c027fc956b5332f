// SPDX-License-Identifier: Apache-2.0
// Admission, bad input and accounting of the engine.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>

#include "device/resident_cache.h"
#include "hybridgen/core/error.h"
#include "memory/process_memory.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::generate;
using testing::prompt;
using testing::tiny_model;

template <typename Exception, typename Function>
void expect_error(const Function& function, const std::vector<std::string>& parts) {
  try {
    function();
    ADD_FAILURE() << "nothing was thrown";
  } catch (const Exception& error) {
    for (const std::string& part : parts) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos)
          << "'" << part << "' is not in: " << error.what();
    }
  }
}

SamplingOptions tokens(int count) {
  SamplingOptions sampling;
  sampling.max_tokens = count;
  return sampling;
}

TEST(EngineInput, IsRefusedWithTheWayOutAndTheEngineStaysUsable) {
  Engine engine(tiny_model(), testing::options("full"));
  const auto expected = generate(engine, {prompt(20)}, 5);
  expect_error<ConfigError>([&] { engine.add({}, tokens(4)); }, {"[add request]", "empty"});
  expect_error<ConfigError>([&] { engine.add({3, 61}, tokens(4)); },
                            {"[add request]", "61", "0 to 60"});
  expect_error<ConfigError>([&] { engine.add({-1}, tokens(4)); }, {"-1", "0 to 60"});
  expect_error<ConfigError>([&] { engine.add(prompt(257), tokens(4)); },
                            {"257", "at most 256", "max_model_len"});
  expect_error<ConfigError>([&] { engine.add(prompt(256), tokens(4)); },
                            {"256", "one more", "at most 256", "max_model_len"});
  expect_error<ConfigError>([&] { engine.add(prompt(4), tokens(4), {}, -1); },
                            {"decode_prompt_tokens", "-1"});
  expect_error<ConfigError>([&] { engine.finish(12345, FinishReason::kStop); }, {"12345"});
  EXPECT_FALSE(engine.has_work());
  EXPECT_EQ(generate(engine, {prompt(20)}, 5), expected);
}

TEST(EngineOptionsInput, UnknownNamesSuggestTheNearest) {
  const auto build = [](const auto& change) {
    EngineOptions options = testing::options("hybridgen");
    change(options);
    Engine engine(tiny_model(), options);
  };
  expect_error<ConfigError>([&] { build([](EngineOptions& o) { o.method = "hybridgne"; }); },
                            {"hybridgne", "did you mean 'hybridgen'", "full"});
  expect_error<ConfigError>([&] { build([](EngineOptions& o) { o.hybridgen.selector = "topq"; }); },
                            {"topq", "topk"});
  expect_error<ConfigError>(
      [&] { build([](EngineOptions& o) { o.hybridgen.selector = "sinks_recent"; }); },
      {"sinks_recent", "post", "topk"});
  expect_error<ConfigError>([&] { build([](EngineOptions& o) { o.device_tokens.count = -1; }); },
                            {"device_tokens", "-1"});
  expect_error<ConfigError>([&] { build([](EngineOptions& o) { o.isa = "mmx"; }); }, {"mmx"});
  expect_error<ConfigError>([&] { build([](EngineOptions& o) { o.max_model_len = 257; }); },
                            {"257", "1 to 256"});
}

TEST(TokenCountInput, RefusesCountsBelowOneAndSharesOutsideTheOpenInterval) {
  expect_error<ConfigError>([] { TokenCount::count(0); }, {"k is 0", "all"});
  expect_error<ConfigError>([] { TokenCount::share(1.0); }, {"k is 1"});
  expect_error<ConfigError>([] { TokenCount::share(-0.5); }, {"k is -0.5"});
}

TEST(TokenCountSetting, ResolvesToAtLeastOneAndAtMostWhatIsThere) {
  EXPECT_EQ(TokenCount::count(128).resolve(40), 40);
  EXPECT_EQ(TokenCount::count(128).resolve(0), 0);
  EXPECT_EQ(TokenCount::share(0.05).resolve(100), 5);
  EXPECT_EQ(TokenCount::share(0.05).resolve(3), 1);
  EXPECT_EQ(TokenCount::all().resolve(77), 77);
}

TEST(EngineMemory, ARequestThatCanNeverFitNamesTierNeedAndNearestSetting) {
  EngineOptions options = testing::options("full");
  options.device_bytes = 64 << 10;
  Engine full(tiny_model(), options);
  expect_error<OutOfMemoryError>([&] { full.add(prompt(200), tokens(20)); },
                                 {"device", "64.0 KiB", "hybridgen", "device_tokens="});
  generate(full, {prompt(10)}, 4);  // what fits still runs

  options = testing::options("hybridgen");
  options.device_tokens.count = 4;
  options.dram_bytes = 40 << 10;
  Engine hybrid(tiny_model(), options);
  expect_error<OutOfMemoryError>([&] { hybrid.add(prompt(200), tokens(20)); },
                                 {"dram", "40.0 KiB", "KVConfig(dram="});
  generate(hybrid, {prompt(6)}, 2);
}

TEST(EngineMemory, RequestsWaitForRoomAndGiveItBack) {
  EngineOptions options = testing::options("full");
  const ModelConfig config = testing::tiny_config();
  const std::int64_t one =
      ResidentCache::required_bytes(config, DType::kFloat32, ResidentCache::capacity_for(30, 30));
  options.device_bytes = 2 * one;
  Engine engine(tiny_model(), options);
  const auto outputs = generate(
      engine, {prompt(20, 1), prompt(20, 2), prompt(20, 3), prompt(20, 4), prompt(20, 5)}, 10);
  for (const auto& output : outputs) {
    EXPECT_EQ(output.tokens.size(), 10U);
  }
  EXPECT_EQ(engine.memory().front().used_bytes, 0);
}

TEST(EngineMemory, EnginesOfAProcessShareWhatTheUserSaid) {
  EngineOptions options = testing::options("hybridgen");
  options.device_tokens.count = 4;
  const auto model = tiny_model();
  Engine first(model, options);
  const auto dram = [](const Engine& engine) { return engine.memory().back(); };
  first.add(prompt(100), tokens(20));
  first.step();
  const std::int64_t one = dram(first).used_bytes;
  EXPECT_GT(one, 0);

  options.dram_bytes = one * 3 / 2;
  auto second = std::make_unique<Engine>(model, options);
  EXPECT_EQ(dram(*second).used_bytes, 0);
  EXPECT_EQ(dram(*second).process_bytes, one);
  second->add(prompt(100), tokens(20));  // it fits when the other has ended
  expect_error<OutOfMemoryError>(
      [&] { std::rethrow_exception(second->step().at(0).error); },
      {"admit request", "dram", "of which other engines hold", "close other engines"});
  while (first.has_work()) {
    first.step();
  }
  generate(*second, {prompt(100)}, 20);
  second->add(prompt(100), tokens(20));
  second->step();
  EXPECT_EQ(dram(first).process_bytes, one);
  second.reset();
  EXPECT_EQ(dram(first).process_bytes, 0);
}

TEST(EngineMemory, WeightsInHostMemoryAreCountedAsLongAsTheModelLives) {
  const std::int64_t before = ProcessMemory::instance().weights();
  auto model = tiny_model();
  const std::int64_t bytes = model->weights().bytes();
  EXPECT_EQ(ProcessMemory::instance().weights(), before + bytes);
  auto engine = std::make_unique<Engine>(model, testing::options("full"));
  model.reset();
  EXPECT_EQ(ProcessMemory::instance().weights(), before + bytes);
  engine.reset();
  EXPECT_EQ(ProcessMemory::instance().weights(), before);
}

TEST(EngineMemory, AutomaticWindowsTakeWhatFits) {
  EngineOptions options = testing::options("hybridgen");
  const ModelConfig config = testing::tiny_config();
  options.device_bytes = ResidentCache::required_bytes(config, DType::kFloat32, 100);
  options.hybridgen.query.mode = QueryMode::kExact;
  options.hybridgen.k = TokenCount::all();
  Engine engine(tiny_model(), options);
  const std::int64_t id = engine.add(prompt(120), tokens(10));
  while (engine.has_work()) {
    engine.step();
  }
  const RequestStatistics statistics = engine.request_statistics(id);
  EXPECT_GT(statistics.offloaded_tokens, 0);
  EXPECT_GT(statistics.resident_tokens, 0);
  EXPECT_EQ(statistics.offloaded_tokens + statistics.resident_tokens, 129);
}

TEST(EngineStatistics, CountTheBytesOfEachLinkByTheFormulas) {
  EngineOptions options = testing::options("hybridgen");
  options.device_tokens.count = 10;
  options.hybridgen.k = TokenCount::count(5);
  options.hybridgen.strategy = SelectionStrategy::kPreQkt;
  options.hybridgen.pre_selector = "sinks_recent";  // all heads share positions: unions of 5 rows
  options.hybridgen.query.mode = QueryMode::kExact;
  Engine engine(tiny_model(), options);
  generate(engine, {prompt(50)}, 5);  // one token from prefill, four decode steps
  const PipelineStatistics statistics = engine.run_statistics().pipeline;
  const std::int64_t layers = 4, heads = 4, groups = 2, head_dim = 16, e = 4, k = 5;
  EXPECT_EQ(statistics.decode_steps, 4);
  EXPECT_EQ(statistics.d2h_bytes, 4 * layers * heads * head_dim * e);
  // Heads share the positions: no indices are sent.
  EXPECT_EQ(statistics.h2d_bytes, 4 * layers * (heads * k * 4 + groups * k * head_dim * e));
  EXPECT_EQ(statistics.host_key_bytes, 4 * layers * groups * k * head_dim * e);
  EXPECT_EQ(statistics.host_value_bytes, 4 * layers * groups * k * head_dim * e);
  // Prefill leaves 10 of 50 on the device, then one token leaves per step.
  EXPECT_EQ(statistics.evicted_bytes, (40 + 4) * layers * 2 * groups * head_dim * e);
}

TEST(EngineStatistics, PostQktReadsAllOffloadedKeys) {
  EngineOptions options = testing::options("hybridgen");
  options.device_tokens.count = 10;
  options.hybridgen.k = TokenCount::count(5);
  options.hybridgen.query.mode = QueryMode::kExact;
  Engine engine(tiny_model(), options);
  generate(engine, {prompt(50)}, 5);
  const std::int64_t scanned = 41 + 42 + 43 + 44;  // n_c of the four steps
  EXPECT_EQ(engine.run_statistics().pipeline.host_key_bytes, scanned * 4 * 2 * 16 * 4);
}

TEST(EngineRequests, EndAtStopTokensAtTheirLengthAndOnDemand) {
  Engine engine(tiny_model(), testing::options("full"));
  const auto expected = generate(engine, {prompt(20)}, 6).front().tokens;
  SamplingOptions sampling = tokens(6);
  sampling.stop_token_ids = {expected[2]};
  const std::int64_t id = engine.add(prompt(20), sampling);
  std::vector<TokenEvent> events;
  while (engine.has_work()) {
    for (auto& event : engine.step()) {
      events.push_back(event);
    }
  }
  const auto first = static_cast<std::size_t>(
      std::find(expected.begin(), expected.end(), expected[2]) - expected.begin());
  ASSERT_EQ(events.size(), first + 1);
  EXPECT_EQ(events.back().finish_reason, FinishReason::kStop);
  EXPECT_EQ(engine.request_statistics(id).finish_reason, FinishReason::kStop);

  const std::int64_t aborted = engine.add(prompt(20), tokens(50));
  engine.step();
  engine.finish(aborted, FinishReason::kAbort);
  EXPECT_FALSE(engine.has_work());
  EXPECT_EQ(engine.request_statistics(aborted).finish_reason, FinishReason::kAbort);
  engine.release(aborted);
  EXPECT_THROW(engine.request_statistics(aborted), ConfigError);
}

TEST(EngineRequests, AllPositionsOfTheModelCanBeUsed) {
  Engine engine(tiny_model(), testing::options("full"));
  EXPECT_EQ(generate(engine, {prompt(250)}, 100).front().tokens.size(), 6U);
  EXPECT_EQ(generate(engine, {prompt(255)}, 100).front().tokens.size(), 1U);
}

TEST(EngineRequests, PromptAndNewTokensNeverExceedTheMaximum) {
  EngineOptions options = testing::options("hybridgen");
  options.device_tokens.count = 3;
  options.max_model_len = 20;
  Engine engine(tiny_model(), options);
  for (const int count : {1, 7, 8, 9, 1000}) {
    EXPECT_EQ(generate(engine, {prompt(12)}, count).front().tokens.size(), std::min(count, 8));
  }
  // A score's continuation counts as new tokens do.
  engine.add(prompt(12), tokens(1), prompt(8, 2));
  while (engine.has_work()) engine.step();
  expect_error<ConfigError>([&] { engine.add(prompt(12), tokens(1), prompt(9, 2)); },
                            {"21 tokens with its continuation", "at most 20", "max_model_len"});
}

using MethodOptions = OptionMap;

EngineOptions shifted(const std::string& method, MethodOptions budget, std::int64_t most) {
  EngineOptions options = testing::options(method);
  options.method_config = std::move(budget);
  options.method_config["positions"] = std::string("shift");
  options.max_model_len = most;
  return options;
}

TEST(EngineRequests, StreamPastTheModelsPositionsWhereTokensStandInTheCache) {
  ModelConfig longer = testing::tiny_config();
  longer.max_positions = 1024;
  for (const auto& [method, budget] : std::map<std::string, MethodOptions>{
           {"streaming_llm", {{"sinks", std::int64_t{4}}, {"window", std::int64_t{60}}}},
           {"h2o", {{"heavy", std::int64_t{30}}, {"recent", std::int64_t{30}}}}}) {
    Engine engine(tiny_model(), shifted(method, budget, 600));
    Engine with_positions(tiny_model(longer), shifted(method, budget, 600));
    const auto expected = generate(with_positions, {prompt(100), prompt(250)}, 350);
    EXPECT_EQ(generate(engine, {prompt(100), prompt(250)}, 350), expected) << method;
    EXPECT_EQ(expected[1].tokens.size(), 350U);
  }
}

TEST(EngineRequests, StreamPastTheModelsPositionsWhereTheNewTokensIsClamped) {
  ModelConfig config = testing::tiny_config();
  config.position = PositionKind::kLearned;
  EngineOptions options = testing::options("streaming_llm");
  options.method_config = {{"sinks", std::int64_t{4}},
                           {"window", std::int64_t{60}},
                           {"positions", std::string("clamp")}};
  options.max_model_len = 600;
  Engine engine(tiny_model(config), options);
  const auto output = generate(engine, {prompt(100)}, 400);
  EXPECT_EQ(output[0].tokens.size(), 400U);
  for (const float logprob : output[0].logprobs) ASSERT_TRUE(std::isfinite(logprob));
}

TEST(EngineRequests, PastTheModelsPositionsNeedAPromptAndACacheWithinThem) {
  const MethodOptions budget = {{"sinks", std::int64_t{4}}, {"window", std::int64_t{60}}};
  Engine engine(tiny_model(), shifted("streaming_llm", budget, 600));
  expect_error<ConfigError>([&] { engine.add(prompt(300), tokens(4)); },
                            {"300", "at most 256", "decode_prompt_tokens=44"});
  const std::int64_t id = engine.add(prompt(300), tokens(4), {}, 44);
  while (engine.has_work()) engine.step();
  EXPECT_EQ(engine.request_statistics(id).generated_tokens, 4);
  EXPECT_EQ(engine.request_statistics(id).dropped_tokens, 303 - 64);

  const MethodOptions wide = {{"sinks", std::int64_t{4}}, {"window", std::int64_t{252}}};
  Engine other(tiny_model(), shifted("streaming_llm", wide, 600));
  expect_error<ConfigError>([&] { other.add(prompt(100), tokens(400)); },
                            {"500 tokens", "257 may be cached", "less than 256", "max_model_len"});
  EXPECT_EQ(generate(other, {prompt(100)}, 50)[0].tokens.size(), 50U);
  expect_error<ConfigError>(
      [&] {
        EngineOptions options = testing::options("streaming_llm");
        options.max_model_len = 600;
        Engine original(tiny_model(), options);
      },
      {"600", "1 to 256", "'shift'", "'clamp'"});
}

TEST(EngineScoring, ForcedTokensGetTheLogprobsOfSampledOnes) {
  Engine engine(tiny_model(), testing::options("full"));
  const auto generated = generate(engine, {prompt(20)}, 6).front();
  engine.add(prompt(20), tokens(1), generated.tokens, 1);
  std::vector<float> logprobs;
  while (engine.has_work()) {
    for (const TokenEvent& event : engine.step()) {
      EXPECT_TRUE(event.is_greedy);
      logprobs.push_back(event.logprob);
    }
  }
  ASSERT_EQ(logprobs.size(), 6U);
  for (std::size_t i = 0; i < 6; ++i) {
    EXPECT_NEAR(logprobs[i], generated.logprobs[i], 1e-4F);
  }
}

// The prompt's own log-probabilities are those of scoring it: in one chunk, in several, and in
// decode steps; they come with the first token.
TEST(EngineScoring, PromptTokensGetTheLogprobsOfForcedOnes) {
  const std::vector<std::int64_t> text = prompt(70);
  Engine scoring(tiny_model(), testing::options("full"));
  scoring.add({text.front()}, tokens(1), {text.begin() + 1, text.end()}, 1);
  std::vector<float> expected;
  while (scoring.has_work()) {
    for (const TokenEvent& event : scoring.step()) {
      EXPECT_TRUE(event.prompt_logprobs.empty());
      expected.push_back(event.logprob);
    }
  }
  ASSERT_EQ(expected.size(), text.size() - 1);
  for (const std::int64_t chunk : {1024, 33, 1}) {
    for (const std::int64_t decoded : {0, 5, 70}) {
      EngineOptions options = testing::options("full");
      options.prefill_chunk = chunk;
      Engine engine(tiny_model(), options);
      SamplingOptions sampling = tokens(2);
      sampling.num_prompt_logprobs = 1;
      engine.add(text, sampling, {}, decoded);
      std::vector<TokenEvent> events;
      while (engine.has_work()) {
        for (TokenEvent& event : engine.step()) {
          events.push_back(std::move(event));
        }
      }
      ASSERT_EQ(events.size(), 2U);
      EXPECT_TRUE(events[1].prompt_logprobs.empty());
      const auto& found = events[0].prompt_logprobs;
      ASSERT_EQ(found.size(), expected.size());
      for (std::size_t i = 0; i < found.size(); ++i) {
        ASSERT_EQ(found[i].size(), 2U);  // the token's own, and the most likely one's
        EXPECT_EQ(found[i][0].first, text[i + 1]);
        EXPECT_NEAR(found[i][0].second, expected[i], 1e-4F) << "token " << i + 1;
        EXPECT_GE(found[i][1].second, found[i][0].second);
      }
    }
  }
}

}  // namespace
}  // namespace hybridgen
