// SPDX-License-Identifier: Apache-2.0
// Results do not depend on when the two stages run; steady state allocates nothing; errors of host
// jobs reach the caller and leave the engine usable.
#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <limits>
#include <new>
#include <string_view>

#include "hybridgen/core/error.h"
#include "support/method_settings.h"
#include "support/tiny_model.h"

namespace {

std::atomic<bool> counting{false};
std::atomic<std::int64_t> allocations{0};

void* counted(std::size_t size) noexcept {
  if (counting.load(std::memory_order_relaxed)) {
    allocations.fetch_add(1, std::memory_order_relaxed);
  }
  return std::malloc(size);
}

void* counted_or_throw(std::size_t size) {
  if (void* memory = counted(size)) {
    return memory;
  }
  throw std::bad_alloc();
}

}  // namespace

// Replaced for the whole program, so that the workers and the driver are counted too.
void* operator new(std::size_t size) { return counted_or_throw(size); }
void* operator new[](std::size_t size) { return counted_or_throw(size); }
void* operator new(std::size_t size, const std::nothrow_t& /*tag*/) noexcept {
  return counted(size);
}
void* operator new[](std::size_t size, const std::nothrow_t& /*tag*/) noexcept {
  return counted(size);
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete[](void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t /*size*/) noexcept { std::free(memory); }
void operator delete[](void* memory, std::size_t /*size*/) noexcept { std::free(memory); }

namespace hybridgen {
namespace {

using testing::generate;
using testing::ragged_prompts;
using testing::tiny_model;

EngineOptions speculative() {
  EngineOptions options = testing::options("hybridgen");
  options.hybridgen.query.mode = QueryMode::kSpeculative;
  options.device_tokens.count = 9;
  options.hybridgen.k = TokenCount::count(6);
  return options;
}

TEST(Timing, RandomDelaysInBothStagesChangeNoBit) {
  for (const QueryMode query : {QueryMode::kExact, QueryMode::kSpeculative, QueryMode::kRescore}) {
    EngineOptions options = speculative();
    options.hybridgen.query.mode = query;
    options.test.synchronous = true;
    Engine synchronous(tiny_model(), options);
    const auto expected = generate(synchronous, ragged_prompts(), 8);
    options.test.synchronous = false;
    options.test.random_delay_us = 200;
    options.threads = 3;
    options.micro_batch = 2;
    Engine delayed(tiny_model(), options);
    EXPECT_EQ(generate(delayed, ragged_prompts(), 8), expected);
  }
}

TEST(Timing, WaitingForEachHostJobChangesNoBit) {
  EngineOptions options = speculative();
  Engine overlapped(tiny_model(), options);
  options.test.synchronous = true;
  Engine synchronous(tiny_model(), options);
  EXPECT_EQ(generate(overlapped, ragged_prompts(), 8), generate(synchronous, ragged_prompts(), 8));
}

TEST(Timing, DividingHeadsOverMemoryNodesChangesNoBit) {
  struct Heads {
    std::int64_t query;
    std::int64_t key_value;
  };
  for (const auto& [query, key_value] : {Heads{4, 1}, Heads{4, 2}, Heads{6, 3}, Heads{4, 4}}) {
    ModelConfig config = testing::tiny_config();
    config.num_heads = query;
    config.num_kv_heads = key_value;
    const auto model = tiny_model(config);
    for (const Scoring scoring : {Scoring::kFull, Scoring::kInt8}) {
      EngineOptions options = speculative();
      options.hybridgen.scoring = scoring;
      options.threads = 3;
      options.divides_heads = false;
      Engine whole(model, options);
      EXPECT_TRUE(whole.numa_parts().empty());
      const auto expected = generate(whole, ragged_prompts(), 8);
      for (const std::int64_t nodes : {2, 3}) {
        options.divides_heads = true;
        options.test.invented_nodes = nodes;
        Engine divided(model, options);
        EXPECT_EQ(divided.numa_parts().size(), static_cast<std::size_t>(nodes));
        EXPECT_EQ(generate(divided, ragged_prompts(), 8), expected)
            << key_value << " heads on " << nodes << " nodes, scoring "
            << static_cast<int>(scoring);
      }
    }
  }
}

/// What 20 decode steps of two requests with such prompts allocate, apart from the vector of events
/// that each step() returns.
std::int64_t steady_allocations(Engine& engine, std::int64_t first, std::int64_t second) {
  constexpr int kSteps = 20;
  SamplingOptions sampling;
  sampling.max_tokens = 60;
  engine.add(testing::prompt(first), sampling);
  engine.add(testing::prompt(second), sampling);
  std::size_t warm = 0;
  while (warm < 20) {
    warm += engine.step().size();
  }
  allocations = 0;
  counting = true;
  std::size_t tokens = 0;
  for (int step = 0; step < kSteps; ++step) {
    tokens += engine.step().size();
  }
  counting = false;
  EXPECT_EQ(tokens, std::size_t{2 * kSteps});
  return allocations - kSteps;
}

TEST(SteadyState, ADecodeStepDoesNotAllocate) {
  struct Setting {
    const char* method;
    Scoring scoring = Scoring::kFull;
    KvPrecision precision = KvPrecision::kFull;
  };
  for (const auto& [method, scoring, precision] :
       {Setting{"full"},
        Setting{"hybridgen"},
        Setting{"hybridgen", Scoring::kInt8},
        Setting{"hybridgen", Scoring::kFull, KvPrecision::kInt8},
        Setting{"hybridgen", Scoring::kFull, KvPrecision::kInt4}}) {
    const bool is_full = std::string(method) == "full";
    EngineOptions options = is_full ? testing::options(method) : speculative();
    options.hybridgen.scoring = scoring;
    options.key_precision = precision;
    options.value_precision = precision;
    Engine engine(tiny_model(), options);
    EXPECT_EQ(steady_allocations(engine, 40, 70), 0)
        << method << ", scoring " << static_cast<int>(scoring) << ", precision "
        << static_cast<int>(precision);
  }
}

TEST(SteadyState, ADecodeStepWhoseHeadsAreCutIntoRangesDoesNotAllocate) {
  ModelConfig config = testing::tiny_config();
  config.max_positions = 5000;
  const auto model = tiny_model(config);
  for (const std::int64_t nodes : {0, 2}) {
    for (const Scoring scoring : {Scoring::kFull, Scoring::kInt8}) {
      EngineOptions options = speculative();
      options.hybridgen.scoring = scoring;
      options.threads = 2;
      options.test.invented_nodes = nodes;
      Engine engine(model, options);
      // The first request's ranges become more while the steps are counted: see kLeastRange.
      EXPECT_EQ(steady_allocations(engine, 2 * 2048 - 6, 2500), 0)
          << nodes << " nodes, scoring " << static_cast<int>(scoring);
      engine.trace().start(std::size_t{1} << 12);
      engine.step();
      engine.trace().stop();
      const std::vector<TraceSpan> spans = engine.trace().spans();
      const auto is_of_range = [](const TraceSpan& span) {
        return std::string_view(span.name) == "score";
      };
      // Three ranges of the first request and two of the second.
      EXPECT_EQ(std::ranges::count_if(spans, is_of_range),
                config.num_layers * config.num_kv_heads * (3 + 2));
    }
  }
}

class NaNLogits : public ::testing::TestWithParam<testing::Setting> {};

TEST_P(NaNLogits, NameTheLayerAndLeaveTheEngineUsable) {
  const auto model = tiny_model();
  Engine engine(model, GetParam().options);
  const auto expected = generate(engine, {testing::prompt(40)}, 8);
  at::Tensor weight = model->weights().layers[3].query.parts[0].dense;
  const at::Tensor saved = weight.clone();
  SamplingOptions sampling;
  sampling.max_tokens = 8;
  engine.add(testing::prompt(40), sampling, {}, 4);
  engine.step();  // prefill
  weight.fill_(std::numeric_limits<double>::quiet_NaN());
  std::vector<TokenEvent> events;
  while (engine.has_work()) {
    std::ranges::move(engine.step(), std::back_inserter(events));
  }
  ASSERT_EQ(events.size(), 1U) << "NaN logits went unnoticed";
  EXPECT_EQ(events.front().finish_reason, FinishReason::kError);
  try {
    std::rethrow_exception(events.front().error);
  } catch (const NumericError& error) {
    EXPECT_NE(std::string(error.what()).find("layer 3"), std::string::npos) << error.what();
    // What the device guesses for all heads at a time names none.
    EXPECT_NE(
        std::string(error.what())
            .find(GetParam().name == "post" || GetParam().name == "mass" ? "head" : "guessed"),
        std::string::npos)
        << error.what();
  }
  EXPECT_FALSE(engine.has_work());
  weight.copy_(saved);
  EXPECT_EQ(generate(engine, {testing::prompt(40)}, 8), expected);
}

std::vector<testing::Setting> scoring_settings() {
  EngineOptions pre = speculative();
  pre.hybridgen.strategy = SelectionStrategy::kPreQkt;
  EngineOptions mass = speculative();
  mass.hybridgen.k = TokenCount::usual();
  mass.hybridgen.mass = 0.5;
  return {
      {"post", speculative()},
      {"mass", mass},
      {"pre", pre},
      testing::setting(
          "infinigen", "infinigen", {{"alpha", 1.0}, {"max_fetch", 0.3}, {"column_share", 0.25}})};
}

INSTANTIATE_TEST_SUITE_P(Methods,
                         NaNLogits,
                         ::testing::ValuesIn(scoring_settings()),
                         [](const auto& setting) { return setting.param.name; });

}  // namespace
}  // namespace hybridgen
