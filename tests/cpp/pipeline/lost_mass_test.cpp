// SPDX-License-Identifier: Apache-2.0
// Softmax mass that was not attended to: against a softmax over all tokens in float64, its limits,
// where it is an estimate and where nothing is known of it, and what it must not depend on.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "pipeline/lost_mass.h"
#include "support/method_settings.h"
#include "support/run_to_end.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::kPost;
using testing::kPre;
using testing::ragged_prompts;
using testing::Setting;
using testing::tiny_config;
using testing::tiny_model;

constexpr int kSteps = 12;
constexpr std::int64_t kWindow = 9;

EngineOptions hybrid(QueryMode query, TokenCount k, SelectionStrategy strategy = kPost) {
  return testing::hybrid("", query, strategy, strategy == kPost ? "topk" : "sinks_recent", k)
      .options;
}

struct Measured {
  testing::Generated generated;
  RequestStatistics statistics;
};

// NaN, which is near nothing, where it is not known.
double mass_of(const RequestStatistics& statistics) {
  return statistics.lost_mass.value_or(std::numeric_limits<double>::quiet_NaN());
}

std::vector<Measured> run(
    Engine& engine, const std::vector<std::vector<std::int64_t>>& prompts = ragged_prompts()) {
  SamplingOptions sampling;
  sampling.max_tokens = kSteps;
  std::vector<std::int64_t> ids;
  ids.reserve(prompts.size());
  for (const std::vector<std::int64_t>& prompt : prompts) {
    ids.push_back(engine.add(prompt, sampling));
  }
  testing::Ended ended = testing::run_to_end(engine);
  EXPECT_TRUE(ended.errors.empty());
  std::vector<Measured> runs;
  runs.reserve(ids.size());
  for (const std::int64_t id : ids) {
    runs.push_back({ended.generated[id], engine.request_statistics(id)});
  }
  return runs;
}

std::vector<Measured> run(const EngineOptions& options, const ModelConfig& config = tiny_config()) {
  Engine engine(tiny_model(config), options);
  return run(engine);
}

// ---- By hand

/// [heads, n, D] of tokens at positions 0 to n - 1, rotated by their halves.
at::Tensor rotated(const at::Tensor& heads, const ModelConfig& config) {
  const std::int64_t half = config.head_dim / 2;
  const at::Tensor exponents = at::arange(half, at::kDouble) * 2.0 / config.head_dim;
  const at::Tensor angles = at::arange(heads.size(1), at::kDouble).unsqueeze(1) *
                            at::pow(at::full({half}, config.rope_theta, at::kDouble), -exponents);
  const at::Tensor a = heads.narrow(2, 0, half);
  const at::Tensor b = heads.narrow(2, half, half);
  return at::cat({a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()}, 2);
}

/// Scaled logits [H, n] of the last token in a model's first layer, in float64 from its weights.
at::Tensor logits_of_last(const DecoderModel& model, const std::vector<std::int64_t>& tokens) {
  const ModelConfig& config = model.config();
  const LayerWeights& layer = model.weights().layers.front();
  const auto n = static_cast<std::int64_t>(tokens.size());
  const at::Tensor x = model.weights()
                           .embed_tokens.dense.index_select(0, at::tensor(tokens, at::kLong))
                           .to(at::kDouble);
  const at::Tensor normed = x * at::rsqrt(x.square().mean(-1, true) + config.norm_eps) *
                            layer.attention_norm_weight.to(at::kDouble);
  std::vector<at::Tensor> rows;
  for (const LinearWeight& part : layer.qkv.parts) {
    rows.push_back(part.dense.to(at::kDouble));
  }
  const at::Tensor qkv = at::matmul(normed, at::cat(rows, 0).t());
  const auto heads = [&](std::int64_t first, std::int64_t count) {
    const at::Tensor all = qkv.narrow(1, first * config.head_dim, count * config.head_dim);
    return rotated(all.view({n, count, config.head_dim}).transpose(0, 1), config);
  };
  const at::Tensor query = heads(0, config.num_heads).narrow(1, n - 1, 1);
  const at::Tensor keys = heads(config.num_heads, config.num_kv_heads)
                              .repeat_interleave(config.query_heads_per_kv_head(), 0);
  return at::matmul(query, keys.transpose(1, 2)).squeeze(1) / std::sqrt(config.head_dim);
}

/// Mean over the heads of the mass of all but the best K offloaded tokens and the window.
double lost_by_hand(const at::Tensor& logits, std::int64_t k) {
  const std::int64_t num_offloaded = std::max<std::int64_t>(logits.size(1) - kWindow, 0);
  const at::Tensor mass = at::softmax(logits, 1).narrow(1, 0, num_offloaded);
  const at::Tensor ranked = std::get<0>(at::sort(mass, 1, /*descending=*/true));
  const std::int64_t chosen = std::min(k, num_offloaded);
  return ranked.narrow(1, chosen, num_offloaded - chosen).sum(1).mean().item<double>();
}

TEST(LostMass, IsThatOfTheSoftmaxOverAllTokens) {
  ModelConfig config = tiny_config();
  config.num_layers = 1;  // what comes in is then the same whatever is lost
  const auto model = tiny_model(config);
  double before = 1.0;
  for (const std::int64_t k : {1, 2, 6, 20}) {
    Engine engine(model, hybrid(QueryMode::kExact, TokenCount::count(k)));
    const std::vector<Measured> runs = run(engine);
    double all = 0.0;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      std::vector<std::int64_t> tokens = ragged_prompts()[i];
      double sum = 0.0;
      double largest = 0.0;
      for (int step = 1; step < kSteps; ++step) {  // the first token comes from the prompt
        tokens.push_back(runs[i].generated.tokens[static_cast<std::size_t>(step - 1)]);
        const double lost = lost_by_hand(logits_of_last(*model, tokens), k);
        sum += lost;
        largest = std::max(largest, lost);
      }
      const RequestStatistics& found = runs[i].statistics;
      ASSERT_TRUE(found.lost_mass && found.largest_lost_mass);
      EXPECT_NEAR(*found.lost_mass, sum / (kSteps - 1), 2e-6) << "K " << k << ", request " << i;
      EXPECT_NEAR(*found.largest_lost_mass, largest, 2e-6) << "K " << k << ", request " << i;
      EXPECT_EQ(found.lost_mass_kind, "exact");
      EXPECT_EQ(found.lost_mass_steps, kSteps - 1);
      all += *found.lost_mass / static_cast<double>(runs.size());
    }
    EXPECT_LT(all, before) << "more tokens lose less";
    EXPECT_GT(all, 1e-3) << "or nothing is tested";
    before = all;
  }
}

/// Of a query head's offloaded tokens the fewest that have so much of them, `most` at the most.
std::int64_t fewest(const at::Tensor& ranked, double mass, std::int64_t most) {
  const double all = ranked.sum().item<double>();
  double sum = 0.0;
  std::int64_t count = 0;
  while (count < std::min(most, ranked.size(0)) && (count == 0 || sum < mass * all)) {
    sum += ranked[count++].item<double>();
  }
  return count;
}

struct ByMass {
  double lost = 0.0;          ///< mean over the query heads
  double largest = 0.0;       ///< of any head's offloaded tokens that it does not attend to
  std::int64_t attended = 0;  ///< by all KV heads
};

/// A KV head's query heads attend to what any of them takes.
ByMass chosen_by_hand(const at::Tensor& logits, double mass, std::int64_t most) {
  const std::int64_t num_offloaded = std::max<std::int64_t>(logits.size(1) - kWindow, 0);
  const at::Tensor weights = at::softmax(logits, 1).narrow(1, 0, num_offloaded);
  const std::int64_t per_group = tiny_config().query_heads_per_kv_head();
  ByMass found;
  for (std::int64_t g = 0; g < tiny_config().num_kv_heads; ++g) {
    at::Tensor taken = at::zeros({num_offloaded}, at::kBool);
    for (std::int64_t r = 0; r < per_group; ++r) {
      const auto [ranked, order] =
          at::sort(weights[g * per_group + r], /*dim=*/0, /*descending=*/true);
      taken.index_fill_(0, order.narrow(0, 0, fewest(ranked, mass, most)), true);
    }
    found.attended += taken.sum().item<std::int64_t>();
    for (std::int64_t r = 0; r < per_group; ++r) {
      const at::Tensor of_head = weights[g * per_group + r];
      const double lost = of_head.masked_fill(taken, 0.0).sum().item<double>();
      found.lost += lost / static_cast<double>(tiny_config().num_heads);
      found.largest = std::max(found.largest, lost / of_head.sum().item<double>());
    }
  }
  return found;
}

TEST(ChosenByMass, AreTheFewestOfEveryHeadAndSharedByItsGroup) {
  ModelConfig config = tiny_config();
  config.num_layers = 1;
  const auto model = tiny_model(config);
  ASSERT_GT(config.query_heads_per_kv_head(), 1);
  std::int64_t before = 0;
  for (const auto& [mass, k_max] : {std::pair{0.2, kMaxTokens},
                                    std::pair{0.5, kMaxTokens},
                                    std::pair{0.9, kMaxTokens},
                                    std::pair{0.9999, kMaxTokens},
                                    std::pair{0.9, std::int64_t{2}}}) {
    SCOPED_TRACE(message("mass ", mass, ", at most ", k_max));
    EngineOptions options = testing::hybrid_by_mass("", QueryMode::kExact, mass).options;
    if (k_max < kMaxTokens) {
      options.hybridgen.k_max = TokenCount::count(k_max);
    }
    Engine engine(model, options);
    const std::vector<Measured> runs = run(engine);
    std::int64_t attended = 0;
    for (std::size_t i = 0; i < runs.size(); ++i) {
      std::vector<std::int64_t> tokens = ragged_prompts()[i];
      // A sum that comes this near to the mass may be on either side of it in float32.
      constexpr double kNear = 1e-6;
      ByMass fewest;
      ByMass most;
      double available = 0.0;
      for (int step = 1; step < kSteps; ++step) {
        tokens.push_back(runs[i].generated.tokens[static_cast<std::size_t>(step - 1)]);
        const at::Tensor logits = logits_of_last(*model, tokens);
        for (auto& [sum, share] : {std::pair{&fewest, mass - kNear}, {&most, mass + kNear}}) {
          const ByMass now = chosen_by_hand(logits, share, k_max);
          sum->lost += now.lost / (kSteps - 1);
          sum->attended += now.attended;
          if (k_max == kMaxTokens) {
            EXPECT_LE(now.largest, 1.0 - share + 1e-12);
          }
        }
        available += static_cast<double>(
            config.num_kv_heads *
            std::max<std::int64_t>(static_cast<std::int64_t>(tokens.size()) - kWindow, 0));
      }
      const RequestStatistics& found = runs[i].statistics;
      EXPECT_LE(mass_of(found), fewest.lost + 2e-6) << "request " << i;
      EXPECT_GE(mass_of(found), most.lost - 2e-6) << "request " << i;
      EXPECT_EQ(found.lost_mass_kind, "exact");
      const std::int64_t taken = std::llround(found.attended_offloaded_share * available);
      EXPECT_GE(taken, fewest.attended) << "request " << i;
      EXPECT_LE(taken, most.attended) << "request " << i;
      EXPECT_LE(most.attended - fewest.attended, 4) << "or little is tested";
      attended += taken;
    }
    if (k_max == kMaxTokens) {
      EXPECT_GT(attended, before) << "more mass takes more tokens";
      before = attended;
    }
  }
}

// With rescored tokens what was chosen is no longer weighed by the logits that chose it.
TEST(ChosenByMass, LoseNoMoreThanTheRestInAnyStep) {
  for (const double mass : {0.3, 0.7, 0.95}) {
    for (const QueryMode query : {QueryMode::kExact, QueryMode::kSpeculative}) {
      for (const Measured& each : run(testing::hybrid_by_mass("", query, mass).options)) {
        EXPECT_LE(each.statistics.largest_lost_mass, 1.0 - mass + 1e-6);
        EXPECT_GT(each.statistics.lost_mass, 0.0);
      }
    }
  }
}

TEST(LostMass, IsTheShareOfOneSumInBoth) {
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  EXPECT_DOUBLE_EQ(share_of_second(std::log(3.0), 0.0), 0.25);
  EXPECT_NEAR(share_of_second(800.0 + std::log(3.0), 800.0), 0.25, 1e-12);
  EXPECT_EQ(share_of_second(0.0, kNone), 0.0);
  EXPECT_EQ(share_of_second(kNone, kNone), 0.0);
  EXPECT_EQ(share_of_second(kNone, 0.0), 1.0);
  EXPECT_EQ(share_of_second(0.0, -2000.0), 0.0);
}

// ---- Limits, and what is known where

class NothingLeftOut : public ::testing::TestWithParam<Setting> {};

TEST_P(NothingLeftOut, LoseExactlyNothing) {
  for (const Measured& each : run(GetParam().options)) {
    EXPECT_EQ(each.statistics.lost_mass, 0.0);
    EXPECT_EQ(each.statistics.largest_lost_mass, 0.0);
    EXPECT_EQ(each.statistics.lost_mass_kind, "exact");
    EXPECT_EQ(each.statistics.lost_mass_steps, kSteps - 1);
  }
}

const auto kName = [](const auto& info) { return info.param.name; };

std::vector<Setting> nothing_left_out() {
  std::vector<Setting> settings = testing::exact_settings();
  settings.push_back({"full", testing::options("full")});
  for (const auto& [name, query] : {std::pair{"exact", QueryMode::kExact},
                                    std::pair{"rescore", QueryMode::kRescore},
                                    std::pair{"speculative", QueryMode::kSpeculative}}) {
    settings.push_back({name, hybrid(query, TokenCount::all())});
  }
  return settings;
}

INSTANTIATE_TEST_SUITE_P(Methods, NothingLeftOut, ::testing::ValuesIn(nothing_left_out()), kName);

/// Of a prompt that is longer than every window and budget.
RequestStatistics of_long_prompt(const EngineOptions& options) {
  Engine engine(tiny_model(), options);
  return run(engine, {testing::prompt(70)}).front().statistics;
}

TEST(LostMass, IsUnknownWhereNotAllTokensWereScored) {
  std::vector<Setting> settings;
  for (Setting& setting : testing::approximate_settings()) {
    const EngineOptions& options = setting.options;
    if (options.method != "hybridgen" || options.hybridgen.strategy == kPre) {
      settings.push_back(std::move(setting));
    }
  }
  ASSERT_GT(settings.size(), 10U);
  for (const Setting& setting : settings) {
    SCOPED_TRACE(setting.name);
    const RequestStatistics found = of_long_prompt(setting.options);
    EXPECT_EQ(found.lost_mass, std::nullopt);
    EXPECT_EQ(found.largest_lost_mass, std::nullopt);
    EXPECT_EQ(found.lost_mass_kind, "");
    EXPECT_EQ(found.lost_mass_steps, 0);
  }
}

// The first steps leave nothing out, because nothing is offloaded yet.
TEST(LostMass, IsUnknownWhereItOnlyWasKnownWhileThereWasNothingToLose) {
  Engine engine(tiny_model(), hybrid(QueryMode::kExact, TokenCount::count(2), kPre));
  const RequestStatistics found = run(engine, {testing::prompt(4)}).front().statistics;
  EXPECT_GT(found.offloaded_tokens, 2);
  EXPECT_EQ(found.lost_mass, std::nullopt);
  EXPECT_EQ(found.lost_mass_steps, 0);
}

TEST(LostMass, IsNothingUntilATokenIsDropped) {
  const auto of = [](std::int64_t prompt) {
    EngineOptions options =
        testing::setting(
            "", "streaming_llm", {{"sinks", std::int64_t{2}}, {"window", std::int64_t{20}}})
            .options;
    Engine engine(tiny_model(), options);
    return run(engine, {testing::prompt(prompt)}).front().statistics;
  };
  EXPECT_EQ(of(4).lost_mass, 0.0);
  EXPECT_EQ(of(18).lost_mass, std::nullopt);
}

TEST(LostMass, IsEstimatedByAGuessAndExactWithoutOne) {
  const auto few = TokenCount::count(6);
  for (const QueryMode query : {QueryMode::kRescore, QueryMode::kSpeculative}) {
    EngineOptions options = hybrid(query, few);
    const RequestStatistics guessed = of_long_prompt(options);
    EXPECT_EQ(guessed.lost_mass_kind, "estimated");
    EXPECT_GT(guessed.lost_mass, 0.0);
    EXPECT_LT(guessed.lost_mass, 1.0);
    // A guess that is right, and one that no layer uses, say what the layer's own query says.
    const RequestStatistics exact = of_long_prompt(hybrid(QueryMode::kExact, few));
    options.test.oracle_proxy = true;
    EXPECT_NEAR(mass_of(of_long_prompt(options)), mass_of(exact), 1e-5);
    options.test.oracle_proxy = false;
    options.hybridgen.query.first_layer = 4;
    const RequestStatistics unused = of_long_prompt(options);
    EXPECT_EQ(unused.lost_mass_kind, "exact");
    EXPECT_NEAR(mass_of(unused), mass_of(exact), 1e-5);
  }
}

TEST(LostMass, IsEstimatedByAShadowOfTheKeys) {
  EngineOptions options = hybrid(QueryMode::kExact, TokenCount::count(6));
  const RequestStatistics exact = of_long_prompt(options);
  for (const Scoring scoring : {Scoring::kInt8, Scoring::kInt4}) {
    options.hybridgen.scoring = scoring;
    options.hybridgen.candidates_per_k = 4.0;
    const RequestStatistics shadow = of_long_prompt(options);
    EXPECT_EQ(shadow.lost_mass_kind, "estimated");
    // Of the keys in 8 bits a logit is off by a per cent or so, in 4 bits by sixteen times as much.
    EXPECT_NEAR(mass_of(shadow), mass_of(exact), scoring == Scoring::kInt8 ? 5e-3 : 5e-2);
  }
}

// ---- What it must not depend on

void expect_equal(const RequestStatistics& found, const RequestStatistics& expected) {
  EXPECT_EQ(found.lost_mass, expected.lost_mass);
  EXPECT_EQ(found.largest_lost_mass, expected.largest_lost_mass);
  EXPECT_EQ(found.lost_mass_kind, expected.lost_mass_kind);
  EXPECT_EQ(found.lost_mass_steps, expected.lost_mass_steps);
}

TEST(LostMass, IsThatOfTheRequestWhateverRunsBesideIt) {
  const EngineOptions options = hybrid(QueryMode::kRescore, TokenCount::count(6));
  const std::vector<Measured> together = run(options);
  for (std::size_t i = 0; i < together.size(); ++i) {
    Engine alone(tiny_model(), options);
    expect_equal(run(alone, {ragged_prompts()[i]}).front().statistics, together[i].statistics);
  }
  EngineOptions single = options;
  single.micro_batch = 1;
  const std::vector<Measured> one_by_one = run(single);
  for (std::size_t i = 0; i < together.size(); ++i) {
    expect_equal(one_by_one[i].statistics, together[i].statistics);
  }
  Engine engine(tiny_model(), options);
  run(engine);
  expect_equal(run(engine, {ragged_prompts()[0]}).front().statistics, together[0].statistics);
}

TEST(LostMass, IsTheSameByBothMathematics) {
  std::vector<EngineOptions> settings;
  for (const QueryMode query : {QueryMode::kExact, QueryMode::kRescore, QueryMode::kSpeculative}) {
    settings.push_back(hybrid(query, TokenCount::count(6)));
    settings.push_back(testing::hybrid_by_mass("", query, 0.6).options);
  }
  for (EngineOptions options : settings) {
    options.math = Math::kKernels;
    const std::vector<Measured> kernels = run(options);
    options.math = Math::kAten;
    const std::vector<Measured> aten = run(options);
    for (std::size_t i = 0; i < kernels.size(); ++i) {
      EXPECT_NEAR(mass_of(aten[i].statistics), mass_of(kernels[i].statistics), 1e-5);
    }
  }
}

// ---- Trace

TEST(LostMass, IsTracedStepByStep) {
  for (const QueryMode query : {QueryMode::kExact, QueryMode::kRescore}) {
    Engine engine(tiny_model(), hybrid(query, TokenCount::count(6)));
    engine.trace().start(1 << 16);
    const RequestStatistics found = run(engine, {testing::prompt(70)}).front().statistics;
    engine.trace().stop();
    double sum = 0.0;
    std::int64_t steps = 0;
    for (const TraceSpan& span : engine.trace().spans()) {
      if (span.name == "lost mass, " + found.lost_mass_kind) {
        EXPECT_EQ(span.lane, TraceLane::kScheduler);
        sum += span.value;
        ++steps;
      }
    }
    EXPECT_EQ(steps, found.lost_mass_steps);
    EXPECT_NEAR(sum / static_cast<double>(steps), found.lost_mass.value_or(-1.0), 1e-12);
  }
}

}  // namespace
}  // namespace hybridgen
