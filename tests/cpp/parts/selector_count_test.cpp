// SPDX-License-Identifier: Apache-2.0
// A selector of a user's own that says how many tokens it takes.
#include <gtest/gtest.h>

#include <memory>
#include <span>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "hybridgen/methods/method.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

/// The largest logits, as many as it was told when it was made; none asked: as many as it may.
class OwnCount final : public TokenSelector {
 public:
  OwnCount(const SelectorShape& shape, std::int64_t count)
      : count_(count), largest_(make_top_k_selector(shape)) {}

  std::string_view name() const override { return "own_count"; }
  SelectionStrategy strategy() const override { return SelectionStrategy::kPostQkt; }
  PartState state() const override { return {}; }
  bool says_how_many() const override { return true; }
  std::int64_t how_many(std::span<const float> weights,
                        std::int64_t most,
                        std::vector<float>& /*scratch*/) const override {
    EXPECT_LE(most, static_cast<std::int64_t>(weights.size()));
    return count_;  // more than `most` is cut, 0 is one
  }
  void select(std::int64_t layer,
              std::int64_t query_head,
              std::span<const float> logits,
              std::span<std::int32_t> positions,
              std::span<float> values,
              std::vector<float>& scratch) const override {
    largest_->select(layer, query_head, logits, positions, values, scratch);
  }

 private:
  std::int64_t count_;
  std::unique_ptr<TokenSelector> largest_;
};

Method method_of(std::int64_t count, bool says_how_many = true) {
  Method method = make_method(testing::options("hybridgen"));
  method.name = "own_count";
  method.work = Score{HostQuery::kExact, BySelectors{}};
  method.early_work = method.work;
  method.first_layer = 0;
  method.parts = {selector_part(
      SelectionStrategy::kPostQkt,
      [count](const SelectorShape& shape) { return std::make_unique<OwnCount>(shape, count); },
      /*wants_decode_weights=*/false,
      says_how_many)};
  return method;
}

EngineOptions options_of(TokenCount k) {
  EngineOptions options = testing::options("full");
  options.hybridgen.k = k;
  options.device_tokens.count = 9;
  return options;
}

RequestStatistics run(const Method& method, TokenCount k) {
  Engine engine(testing::tiny_model(), options_of(k), method);
  SamplingOptions sampling;
  sampling.max_tokens = 6;
  const std::int64_t id = engine.add(testing::prompt(60), sampling);
  for (int step = 0; step < 6; ++step) {
    for (const TokenEvent& event : engine.step()) {
      EXPECT_EQ(event.error, nullptr);
    }
  }
  return engine.request_statistics(id);
}

TEST(SelectorThatCounts, TakesAsManyAsItSaysFromOneToK) {
  const std::int64_t per_group = testing::tiny_config().query_heads_per_kv_head();
  const double all = run(method_of(kMaxTokens), TokenCount::all()).attended_offloaded_share;
  EXPECT_EQ(all, 1.0);
  double before = 0.0;
  for (const std::int64_t count : {0, 4, 12}) {
    const RequestStatistics found = run(method_of(count), TokenCount::all());
    EXPECT_GT(found.attended_offloaded_share, before) << count;
    EXPECT_LE(found.k, per_group * std::max<std::int64_t>(count, 1)) << count;
    before = found.attended_offloaded_share;
  }
  const RequestStatistics cut = run(method_of(12), TokenCount::count(4));
  EXPECT_EQ(cut.attended_offloaded_share,
            run(method_of(4), TokenCount::all()).attended_offloaded_share);
}

TEST(SelectorThatCounts, EqualsFullAttentionIfItTakesAll) {
  const auto model = testing::tiny_model();
  Engine full(model, testing::options("full"));
  Engine own(model, options_of(TokenCount::all()), method_of(kMaxTokens));
  testing::expect_same(testing::generate(own, testing::ragged_prompts(), 8),
                       testing::generate(full, testing::ragged_prompts(), 8));
}

// Memory is planned by what the part says.
TEST(SelectorThatCounts, EndsTheRequestIfItsPartDidNotSaySo) {
  Engine engine(testing::tiny_model(),
                options_of(TokenCount::count(6)),
                method_of(12, /*says_how_many=*/false));
  SamplingOptions sampling;
  sampling.max_tokens = 2;
  engine.add(testing::prompt(60), sampling);
  const std::vector<TokenEvent> events = engine.step();
  ASSERT_EQ(events.size(), 1U);
  ASSERT_NE(events.front().error, nullptr);
  try {
    std::rethrow_exception(events.front().error);
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("\"own_count\" says how many tokens it takes"),
              std::string::npos)
        << error.what();
  }
}

TEST(SelectorThatCounts, IsRefusedBesideACopyOfTheKeys) {
  Method method = method_of(12);
  method.parts.push_back(*find_part(
      [] {
        EngineOptions options = testing::options("hybridgen");
        options.hybridgen.scoring = Scoring::kInt8;
        return make_method(options);
      }()
          .parts,
      PartRole::kKeyProxy));
  EXPECT_THROW(check_composition(method), ConfigError);
}

}  // namespace
}  // namespace hybridgen
