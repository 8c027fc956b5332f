// SPDX-License-Identifier: Apache-2.0
// Offloaded rows in 8 or 4 bits: whoever attends to all tokens attends to the same stored rows, no
// request sees its neighbours, and the plan counts what the store takes.
#include <gtest/gtest.h>

#include "hybridgen/core/error.h"
#include "kvcache/host_kv_store.h"
#include "support/method_settings.h"

namespace hybridgen {
namespace {

using testing::expect_same;
using testing::generate;
using testing::Generated;
using testing::hybrid;
using testing::kPost;
using testing::kPre;
using testing::ragged_prompts;
using testing::setting;
using testing::Setting;
using testing::tiny_model;

constexpr int kSteps = 12;

struct Pair {
  std::string name;
  KvPrecision keys;
  KvPrecision values;
};

void PrintTo(const Pair& pair, std::ostream* out) { *out << pair.name; }

std::vector<Pair> pairs() {
  constexpr auto kFull = KvPrecision::kFull;
  constexpr auto kInt8 = KvPrecision::kInt8;
  constexpr auto kInt4 = KvPrecision::kInt4;
  return {{"int8_keys", kInt8, kFull},
          {"int4_keys", kInt4, kFull},
          {"int8_values", kFull, kInt8},
          {"int4_values", kFull, kInt4},
          {"int8", kInt8, kInt8},
          {"int8_keys_int4_values", kInt8, kInt4},
          {"int4_keys_int8_values", kInt4, kInt8},
          {"int4", kInt4, kInt4}};
}

class SmallRows : public ::testing::TestWithParam<Pair> {
 protected:
  static EngineOptions stored(EngineOptions options) {
    options.key_precision = GetParam().keys;
    options.value_precision = GetParam().values;
    return options;
  }
  static std::vector<Generated> run(const EngineOptions& options) {
    Engine engine(tiny_model(), options);
    return generate(engine, ragged_prompts(), kSteps);
  }
};

// With the same window the same tokens leave at the same time, so that the same rows are stored.
std::vector<Setting> of_all_tokens() {
  const auto all = TokenCount::all();
  Setting flexgen = setting("flexgen", "flexgen");
  flexgen.options.device_tokens.count = 9;
  return {flexgen,
          hybrid("exact", QueryMode::kExact, kPost, "topk", all),
          hybrid("rescored", QueryMode::kRescore, kPost, "topk", all),
          hybrid("h2o", QueryMode::kExact, kPost, "h2o", all),
          hybrid("sinks", QueryMode::kExact, kPre, "sinks_recent", all),
          hybrid("digests", QueryMode::kRescore, kPre, "block_digests", all),
          hybrid("partial_keys", QueryMode::kExact, kPre, "partial_keys", all)};
}

TEST_P(SmallRows, AreWhatEveryMethodAttendsToThatLeavesNothingOut) {
  const std::vector<Setting> settings = of_all_tokens();
  const std::vector<Generated> streamed = run(stored(settings.front().options));
  for (const Setting& each : settings) {
    SCOPED_TRACE(each.name);
    expect_same(run(stored(each.options)), streamed);
  }
}

std::vector<Setting> with_rows_on_the_host() {
  std::vector<Setting> found;
  for (const auto& settings : {testing::exact_settings(), testing::approximate_settings()}) {
    for (const Setting& each : settings) {
      if (make_method(each.options).offloads()) found.push_back(each);
    }
  }
  return found;
}

TEST_P(SmallRows, OfARequestDoNotDependOnItsNeighbours) {
  const auto prompts = ragged_prompts();
  for (const Setting& each : with_rows_on_the_host()) {
    SCOPED_TRACE(each.name);
    const EngineOptions options = stored(each.options);
    const std::vector<Generated> together = run(options);
    for (const std::size_t i : {std::size_t{0}, std::size_t{3}}) {
      Engine alone(tiny_model(), options);
      EXPECT_EQ(generate(alone, {prompts[i]}, kSteps).front(), together[i]) << "request " << i;
    }
  }
}

TEST_P(SmallRows, DoNotDependOnTheNumberOfThreads) {
  for (const Setting& each : of_all_tokens()) {
    SCOPED_TRACE(each.name);
    EngineOptions options = stored(each.options);
    const std::vector<Generated> one = run(options);
    options.threads = 3;
    EXPECT_EQ(run(options), one);
  }
}

TEST_P(SmallRows, CountAsWhatTheStoreTakes) {
  EngineOptions options = setting("", "moe_lightning").options;
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
  const ModelConfig config = testing::tiny_config();
  HostKvShape shape{.num_layers = config.num_layers,
                    .num_kv_heads = config.num_kv_heads,
                    .head_dim = config.head_dim,
                    .capacity = 105};
  const std::int64_t beside = used() - HostKvStore::required_bytes(shape);
  options = stored(options);
  shape.key_precision = GetParam().keys;
  shape.value_precision = GetParam().values;
  EXPECT_EQ(used(), HostKvStore::required_bytes(shape) + beside);
}

const auto kName = [](const auto& pair) { return pair.param.name; };

INSTANTIATE_TEST_SUITE_P(Formats, SmallRows, ::testing::ValuesIn(pairs()), kName);

TEST(SmallRowsAtRest, OfInt8KeysAndInt4ValuesTakeTwoFifthsOfBfloat16) {
  HostKvShape shape{.num_layers = 16, .num_kv_heads = 8, .dtype = DType::kBFloat16};
  shape.capacity = 6016;
  for (const std::int64_t head_dim : {64, 80, 128, 256}) {
    shape.head_dim = head_dim;
    shape.key_precision = shape.value_precision = KvPrecision::kFull;
    const auto full = static_cast<double>(HostKvStore::required_bytes(shape));
    shape.key_precision = KvPrecision::kInt8;
    shape.value_precision = KvPrecision::kInt4;
    EXPECT_LE(static_cast<double>(HostKvStore::required_bytes(shape)), 0.42 * full) << head_dim;
  }
}

TEST(SmallRowsAreRefused, BesideAShadowOfTheirOwnKeys) {
  EngineOptions options = hybrid("", QueryMode::kExact, kPost, "topk", TokenCount::all()).options;
  options.hybridgen.scoring = Scoring::kInt8;
  options.value_precision = KvPrecision::kInt4;
  EXPECT_NO_THROW(Engine(tiny_model(), options));
  options.key_precision = KvPrecision::kInt8;
  try {
    const Engine engine(tiny_model(), options);
    FAIL() << "nothing was refused";
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("scoring is 'int8'; allowed: 'full'"),
              std::string::npos)
        << error.what();
  }
}

}  // namespace
}  // namespace hybridgen
