// SPDX-License-Identifier: Apache-2.0
#include "scheduling/feedback_scheduler.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <ostream>
#include <random>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

constexpr SelectionStrategy kPost = SelectionStrategy::kPostQkt;
constexpr SelectionStrategy kPre = SelectionStrategy::kPreQkt;
constexpr std::int64_t kMany = 1'000'000;  // offloaded tokens that limit nothing

/// Every sampled step is a decision: shows the policy without its averaging.
SchedulerOptions every_step() {
  SchedulerOptions options;
  options.interval = 1;
  options.warmup = 0;
  return options;
}

/// One step with `host_s` = T_cpu + T_tx and one pipelined pair.
StepSample step(double host_s, double device_s) { return {host_s, 0.0, device_s, 1}; }
const StepSample kFast = step(1.0, 2.0);  // the host has time left
const StepSample kSlow = step(3.0, 2.0);  // the device waits for the host
const StepSample kNothingOverlapped{};

struct State {
  std::int64_t k;
  SelectionStrategy strategy;
  SchedulerDecision decision;
  friend bool operator==(const State&, const State&) = default;
};
State state_of(const FeedbackScheduler& scheduler) {
  return {scheduler.k(), scheduler.strategy(), scheduler.last_decision()};
}
void PrintTo(const State& state, std::ostream* stream) {
  *stream << state.k << ' ' << name_of(state.strategy) << ' ' << name_of(state.decision);
}

struct Step {
  StepSample sample;
  std::int64_t num_offloaded;
};
std::vector<State> replay(const SchedulerOptions& options, const std::vector<Step>& steps) {
  FeedbackScheduler scheduler(options);
  std::vector<State> states;
  for (const Step& each : steps) {
    scheduler.end_step(each.sample, each.num_offloaded);
    states.push_back(state_of(scheduler));
  }
  return states;
}

StepSample random_sample(std::mt19937_64& random) {
  const auto seconds = [&random] { return static_cast<double>(random() % 1000) / 256.0; };
  const double host_s = seconds();
  const double link_s = seconds() / 4.0;
  const double device_s = seconds();
  return {host_s, link_s, device_s, static_cast<std::int64_t>(random() % 5)};
}

std::vector<Step> random_steps(std::mt19937_64& random, int count) {
  std::vector<Step> steps;
  auto num_offloaded = static_cast<std::int64_t>(random() % 3000);
  for (int i = 0; i < count; ++i) {
    const bool none = random() % 16 == 0;
    steps.push_back({random_sample(random), none ? 0 : num_offloaded});
    num_offloaded += static_cast<std::int64_t>(random() % 64);
  }
  return steps;
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

// ---- Algorithm 1 ----

TEST(FeedbackScheduler, StartsAtKMinInPostQkt) {
  const FeedbackScheduler scheduler(SchedulerOptions{});
  EXPECT_EQ(scheduler.k(), 128);
  EXPECT_EQ(scheduler.strategy(), kPost);
  EXPECT_EQ(scheduler.num_decisions(), 0);
  EXPECT_EQ(scheduler.last_decision(), SchedulerDecision::kHold);
}

TEST(FeedbackScheduler, FollowsAlgorithm1StepByStep) {
  using enum SchedulerDecision;
  struct Row {
    double host_s, device_s;
    std::int64_t k;
    SelectionStrategy strategy;
    SchedulerDecision decision;
  };
  const std::vector<Row> rows = {
      {1, 2, 154, kPost, kGrow},    // ceil(1.2 * 128)
      {2, 2, 185, kPost, kGrow},    // equality grows
      {3, 2, 148, kPost, kShrink},  // floor(0.8 * 185)
      {3, 2, 128, kPost, kShrink},  // 118 is below k_min
      {3, 2, 128, kPre, kToPre},    // nothing left to give up
      {1, 2, 154, kPre, kGrow},     // K keeps adapting, the strategy does not return
      {3, 2, 128, kPre, kShrink},
      {3, 2, 128, kPre, kHold},
  };
  FeedbackScheduler scheduler(every_step());
  for (std::size_t i = 0; i < rows.size(); ++i) {
    scheduler.end_step(step(rows[i].host_s, rows[i].device_s), kMany);
    EXPECT_EQ(state_of(scheduler), (State{rows[i].k, rows[i].strategy, rows[i].decision}))
        << "row " << i;
  }
  EXPECT_EQ(scheduler.num_decisions(), 8);
}

TEST(FeedbackScheduler, EqualsAlgorithm1AsPrintedForAnySamples) {
  std::mt19937_64 random(1);
  FeedbackScheduler scheduler(every_step());
  std::int64_t k = 128;
  SelectionStrategy strategy = kPost;
  for (int i = 0; i < 2000; ++i) {
    StepSample sample = random_sample(random);
    sample.num_pairs = 1;
    if (sample.host_s + sample.link_s <= sample.device_s) {
      k = std::min(kMany, (6 * k + 4) / 5);
    } else if (k > 128) {
      k = std::max<std::int64_t>(128, 4 * k / 5);
    } else {
      strategy = kPre;
    }
    scheduler.end_step(sample, kMany);
    ASSERT_EQ(scheduler.k(), k) << "step " << i;
    ASSERT_EQ(scheduler.strategy(), strategy) << "step " << i;
  }
}

TEST(FeedbackScheduler, TheHostStageIsComputationPlusTransfer) {
  FeedbackScheduler fits(every_step());
  fits.end_step({1.5, 0.5, 2.0, 1}, kMany);
  EXPECT_EQ(fits.last_decision(), SchedulerDecision::kGrow);

  FeedbackScheduler waits(every_step());
  waits.end_step({1.5, 0.75, 2.0, 1}, kMany);
  EXPECT_EQ(waits.last_decision(), SchedulerDecision::kToPre);
}

TEST(FeedbackScheduler, SwitchesToPreQktOnlyAtKMin) {
  FeedbackScheduler scheduler(every_step());
  for (int i = 0; i < 10; ++i) scheduler.end_step(kFast, kMany);
  while (scheduler.strategy() == kPost) {
    const std::int64_t before = scheduler.k();
    scheduler.end_step(kSlow, kMany);
    EXPECT_EQ(scheduler.strategy() == kPre, before == 128);
  }
}

TEST(FeedbackScheduler, NothingReturnsFromPreQktByDefault) {
  FeedbackScheduler scheduler(every_step());
  scheduler.end_step(kSlow, kMany);
  for (int i = 0; i < 1000; ++i) {
    scheduler.end_step(step(0.0, 1.0), kMany);
    ASSERT_EQ(scheduler.strategy(), kPre);
  }
}

TEST(FeedbackScheduler, TwentySevenGrowthsPass16384Tokens) {
  FeedbackScheduler scheduler(every_step());
  int growths = 0;
  while (scheduler.k() <= 16384) {
    scheduler.end_step(kFast, kMany);
    ++growths;
  }
  EXPECT_LE(growths, 27);
}

// The host's time is proportional to K and equals the device's at K = 1000.
StepSample proportional(std::int64_t k) { return step(static_cast<double>(k) / 1000.0, 1.0); }

TEST(FeedbackScheduler, OscillatesAroundTheBalanceBecauseItsFactorsAreNotInverse) {
  FeedbackScheduler scheduler(every_step());
  for (int i = 0; i < 50; ++i) scheduler.end_step(proportional(scheduler.k()), kMany);
  int grown = 0;
  int shrunk = 0;
  for (int i = 0; i < 200; ++i) {
    scheduler.end_step(proportional(scheduler.k()), kMany);
    grown += scheduler.last_decision() == SchedulerDecision::kGrow ? 1 : 0;
    shrunk += scheduler.last_decision() == SchedulerDecision::kShrink ? 1 : 0;
    ASSERT_GE(scheduler.k(), 800);
    ASSERT_LE(scheduler.k(), 1200);
  }
  EXPECT_EQ(grown + shrunk, 200);
  EXPECT_GT(grown, 80);
  EXPECT_GT(shrunk, 80);
  EXPECT_EQ(scheduler.strategy(), kPost);
}

TEST(FeedbackScheduler, ADeadbandAsWideAsAGrowthSettles) {
  SchedulerOptions options = every_step();
  options.deadband = 0.21;
  FeedbackScheduler scheduler(options);
  for (int i = 0; i < 50; ++i) scheduler.end_step(proportional(scheduler.k()), kMany);
  const std::int64_t settled = scheduler.k();
  for (int i = 0; i < 200; ++i) {
    scheduler.end_step(proportional(scheduler.k()), kMany);
    ASSERT_EQ(state_of(scheduler), (State{settled, kPost, SchedulerDecision::kHold}));
  }
  EXPECT_GT(settled, 1000);
  EXPECT_LE(settled, 1210);
}

TEST(FeedbackScheduler, InsideTheDeadbandNothingChangesNotEvenTheStrategy) {
  SchedulerOptions options = every_step();
  options.deadband = 0.5;
  FeedbackScheduler scheduler(options);
  scheduler.end_step(step(3.0, 2.0), kMany);  // exactly (1 + deadband) * G
  EXPECT_EQ(state_of(scheduler), (State{128, kPost, SchedulerDecision::kHold}));
  scheduler.end_step(step(3.01, 2.0), kMany);
  EXPECT_EQ(state_of(scheduler), (State{128, kPre, SchedulerDecision::kToPre}));
}

// ---- bounds of K ----

TEST(FeedbackScheduler, KNeverExceedsTheOffloadedTokensOrKMin) {
  FeedbackScheduler scheduler(every_step());
  for (int i = 0; i < 20; ++i) scheduler.end_step(kFast, 300);
  EXPECT_EQ(scheduler.k(), 300);
  EXPECT_EQ(scheduler.last_decision(), SchedulerDecision::kHold) << "nothing left to grow";

  FeedbackScheduler few(every_step());
  few.end_step(kFast, 5);
  EXPECT_EQ(few.k(), 128) << "k_min wins";
}

TEST(FeedbackScheduler, KForIsWhatCanReallyBeChosen) {
  const FeedbackScheduler scheduler(every_step());
  EXPECT_EQ(scheduler.k_for(0), 0);
  EXPECT_EQ(scheduler.k_for(5), 5);
  EXPECT_EQ(scheduler.k_for(128), 128);
  EXPECT_EQ(scheduler.k_for(kMany), 128);
}

TEST(FeedbackScheduler, KIsClampedAsSoonAsFewerTokensAreOffloaded) {
  FeedbackScheduler scheduler(SchedulerOptions{});
  for (int i = 0; i < 41; ++i) scheduler.end_step(kFast, kMany);
  ASSERT_GT(scheduler.k(), 500);
  const std::int64_t decisions = scheduler.num_decisions();
  scheduler.end_step(kNothingOverlapped, 200);
  EXPECT_EQ(scheduler.k(), 200);
  scheduler.end_step(kNothingOverlapped, 20);
  EXPECT_EQ(scheduler.k(), 128);
  EXPECT_EQ(scheduler.num_decisions(), decisions) << "a clamp is no decision";
}

TEST(FeedbackScheduler, KMaxRatioLimitsTheShareOfOffloadedTokens) {
  SchedulerOptions options = every_step();
  options.k_max_ratio = 0.25;
  FeedbackScheduler scheduler(options);
  for (int i = 0; i < 20; ++i) scheduler.end_step(kFast, 1003);
  EXPECT_EQ(scheduler.k(), 250);  // floor(250.75)
  scheduler.end_step(kFast, 1004);
  EXPECT_EQ(scheduler.k(), 251);
}

TEST(FeedbackScheduler, KMaxLimitsKWhateverIsOffloaded) {
  SchedulerOptions options = every_step();
  options.k_max = 200;
  FeedbackScheduler scheduler(options);
  for (int i = 0; i < 20; ++i) scheduler.end_step(kFast, kMany);
  EXPECT_EQ(scheduler.k(), 200);
  scheduler.end_step(kNothingOverlapped, 150);
  EXPECT_EQ(scheduler.k(), 150) << "the smaller limit counts";

  options.k_max = options.k_min;
  FeedbackScheduler fixed(options);
  fixed.end_step(kFast, kMany);
  EXPECT_EQ(fixed.k(), 128);
}

TEST(FeedbackScheduler, FactorsAreExact) {
  SchedulerOptions options = every_step();
  options.k_min = 5;
  FeedbackScheduler scheduler(options);
  scheduler.end_step(kFast, kMany);
  EXPECT_EQ(scheduler.k(), 6);  // 1.2 * 5 in floating point must not become 7
  scheduler.end_step(kFast, kMany);
  EXPECT_EQ(scheduler.k(), 8);  // ceil(7.2)

  options.k_min = 1;
  options.grow = {1, 1};
  FeedbackScheduler by_one(options);
  for (int i = 0; i < 9; ++i) by_one.end_step(kFast, kMany);
  EXPECT_EQ(by_one.k(), 10) << "K rises by one token at least";

  options.grow = {10, 1};
  options.shrink = {1, 10};
  FeedbackScheduler tenfold(options);
  for (int i = 0; i < 5; ++i) tenfold.end_step(kFast, kMany);
  EXPECT_EQ(tenfold.k(), 100'000);
  for (int i = 0; i < 3; ++i) tenfold.end_step(kSlow, kMany);
  EXPECT_EQ(tenfold.k(), 100);
}

TEST(FeedbackScheduler, TheLargestCountsAndFactorsDoNotOverflow) {
  constexpr std::int64_t kMost = std::numeric_limits<std::int32_t>::max();
  SchedulerOptions options = every_step();
  options.k_min = kMost - 1;
  options.grow = {1'000'000, 1};
  options.shrink = {999'999, 1'000'000};
  FeedbackScheduler scheduler(options);
  scheduler.end_step(kFast, kMost);
  EXPECT_EQ(scheduler.k(), kMost);
  scheduler.end_step(kSlow, kMost);
  EXPECT_EQ(scheduler.k(), kMost - 1);
}

// ---- what is sampled, and when is decided ----

TEST(FeedbackScheduler, WithoutOffloadedTokensNothingChanges) {
  FeedbackScheduler scheduler(SchedulerOptions{});
  for (int i = 0; i < 12; ++i) {
    const FeedbackScheduler before = scheduler;
    for (int j = 0; j < 10; ++j) scheduler.end_step(kSlow, 0);
    EXPECT_EQ(scheduler, before) << "step " << i;  // nor do warm-up and averages move on
    scheduler.end_step(kFast, kMany);
  }
  EXPECT_GT(scheduler.num_decisions(), 0);
}

TEST(FeedbackScheduler, AStepInWhichNothingOverlappedIsNoSample) {
  FeedbackScheduler scheduler(SchedulerOptions{});
  for (int i = 0; i < 12; ++i) {
    const FeedbackScheduler before = scheduler;
    scheduler.end_step({9.0, 9.0, 0.0, 0}, kMany);
    EXPECT_EQ(scheduler, before) << "step " << i;
    scheduler.end_step(kFast, kMany);
  }
}

TEST(FeedbackScheduler, DecidesAfterWarmUpAndThenEveryInterval) {
  SchedulerOptions options;
  options.warmup = 2;
  options.interval = 3;
  FeedbackScheduler scheduler(options);
  std::vector<std::int64_t> decisions;
  for (int i = 1; i <= 9; ++i) {
    scheduler.end_step(kFast, kMany);
    decisions.push_back(scheduler.num_decisions());
  }
  EXPECT_EQ(decisions, (std::vector<std::int64_t>{0, 0, 0, 0, 1, 1, 1, 2, 2}));
}

TEST(FeedbackScheduler, WarmUpStepsAreForgotten) {
  SchedulerOptions options;
  options.warmup = 1;
  options.interval = 1;
  FeedbackScheduler scheduler(options);
  scheduler.end_step(step(1e9, 1.0), kMany);  // the first step after prefill
  EXPECT_EQ(scheduler.num_decisions(), 0);
  EXPECT_FALSE(scheduler.scan_s_per_token());
  scheduler.end_step(kFast, kMany);
  EXPECT_EQ(scheduler.last_decision(), SchedulerDecision::kGrow);
}

TEST(FeedbackScheduler, WarmsUpAgainAfterAStrategyChange) {
  SchedulerOptions options;
  options.warmup = 2;
  options.interval = 1;
  FeedbackScheduler scheduler(options);
  for (int i = 0; i < 3; ++i) scheduler.end_step(kSlow, kMany);
  ASSERT_EQ(scheduler.last_decision(), SchedulerDecision::kToPre);
  for (int i = 0; i < 2; ++i) scheduler.end_step(kFast, kMany);
  EXPECT_EQ(scheduler.num_decisions(), 1);
  scheduler.end_step(kFast, kMany);
  EXPECT_EQ(scheduler.num_decisions(), 2);
  EXPECT_EQ(scheduler.k(), 154);
}

TEST(FeedbackScheduler, DecidesOnTheSumOfAnInterval) {
  SchedulerOptions options = every_step();
  options.interval = 4;
  FeedbackScheduler hidden(options);  // three late steps, and one that makes up for them
  for (int i = 0; i < 3; ++i) hidden.end_step(step(3.0, 2.0), kMany);
  EXPECT_EQ(hidden.num_decisions(), 0);
  hidden.end_step(step(1.0, 4.0), kMany);
  EXPECT_EQ(hidden.last_decision(), SchedulerDecision::kGrow) << "H = 10, G = 10";

  FeedbackScheduler late(options);  // three early steps, and one that undoes them
  for (int i = 0; i < 3; ++i) late.end_step(step(1.0, 2.0), kMany);
  late.end_step(step(6.0, 2.0), kMany);
  EXPECT_EQ(late.last_decision(), SchedulerDecision::kToPre) << "H = 9, G = 8";
}

TEST(FeedbackScheduler, EachIntervalStartsFromZero) {
  SchedulerOptions options = every_step();
  options.interval = 2;
  FeedbackScheduler scheduler(options);
  for (int i = 0; i < 2; ++i) scheduler.end_step(step(0.0, 1000.0), kMany);
  ASSERT_EQ(scheduler.k(), 154);
  for (int i = 0; i < 2; ++i) scheduler.end_step(kSlow, kMany);
  EXPECT_EQ(scheduler.k(), 128) << "the idle interval before must not excuse this one";
}

// ---- switched-off halves ----

TEST(FeedbackScheduler, WithoutAdaptKOnlyTheStrategyMoves) {
  SchedulerOptions options = every_step();
  options.adapt_k = false;
  FeedbackScheduler scheduler(options);
  scheduler.end_step(kFast, kMany);
  EXPECT_EQ(state_of(scheduler), (State{128, kPost, SchedulerDecision::kHold}));
  scheduler.end_step(kSlow, kMany);
  EXPECT_EQ(state_of(scheduler), (State{128, kPre, SchedulerDecision::kToPre}));
  scheduler.end_step(kFast, kMany);
  EXPECT_EQ(state_of(scheduler), (State{128, kPre, SchedulerDecision::kHold}));
}

TEST(FeedbackScheduler, WithoutAdaptStrategyOnlyKMoves) {
  for (const SelectionStrategy strategy : {kPost, kPre}) {
    SchedulerOptions options = every_step();
    options.adapt_strategy = false;
    options.initial_strategy = strategy;
    options.return_to_post = ReturnToPost::kEstimate;
    FeedbackScheduler scheduler(options);
    scheduler.end_step(kFast, kMany);
    EXPECT_EQ(state_of(scheduler), (State{154, strategy, SchedulerDecision::kGrow}));
    scheduler.end_step(kSlow, kMany);
    EXPECT_EQ(state_of(scheduler), (State{128, strategy, SchedulerDecision::kShrink}));
    scheduler.end_step(kSlow, kMany);
    EXPECT_EQ(state_of(scheduler), (State{128, strategy, SchedulerDecision::kHold}));
  }
}

// ---- return to Post-QKT ----

SchedulerOptions returning() {
  SchedulerOptions options = every_step();
  options.return_to_post = ReturnToPost::kEstimate;
  return options;
}

/// Scans 1000 tokens in 2 s per pair while the device needs 1 s: switches at once.
FeedbackScheduler degraded(const SchedulerOptions& options) {
  FeedbackScheduler scheduler(options);
  scheduler.end_step({8.0, 0.0, 4.0, 4}, 1000);
  EXPECT_EQ(scheduler.strategy(), kPre);
  return scheduler;
}

TEST(FeedbackSchedulerReturn, KnowsTheLastScanPerTokenAndPair) {
  FeedbackScheduler scheduler(returning());
  EXPECT_FALSE(scheduler.scan_s_per_token());
  scheduler.end_step({1.0, 5.0, 9.0, 2}, 1000);
  EXPECT_DOUBLE_EQ(scheduler.scan_s_per_token().value_or(-1.0), 0.5e-3);  // without the copies
  scheduler.end_step({8.0, 0.0, 4.0, 4}, 1000);
  scheduler.end_step({8.0, 0.0, 4.0, 4}, 1000);
  ASSERT_EQ(scheduler.strategy(), kPre);
  scheduler.end_step({1.0, 0.0, 4.0, 4}, 1000);  // a Pre-QKT step scans nothing
  EXPECT_DOUBLE_EQ(scheduler.scan_s_per_token().value_or(-1.0), 2e-3);
}

TEST(FeedbackSchedulerReturn, ComesAfterEnoughPredictionsInARow) {
  FeedbackScheduler scheduler = degraded(returning());
  const StepSample ample{0.5, 0.0, 4.0, 1};  // 2 s <= 0.9 * 4 s
  scheduler.end_step(ample, 1000);
  scheduler.end_step(ample, 1000);
  EXPECT_EQ(scheduler.strategy(), kPre);
  const std::int64_t before = scheduler.k();
  scheduler.end_step(ample, 1000);
  EXPECT_EQ(scheduler.strategy(), kPost);
  EXPECT_EQ(scheduler.last_decision(), SchedulerDecision::kToPost);
  EXPECT_GT(scheduler.k(), before) << "the same decision moved K, too";
}

TEST(FeedbackSchedulerReturn, OneMissStartsTheCountAnew) {
  FeedbackScheduler scheduler = degraded(returning());
  const StepSample ample{0.5, 0.0, 4.0, 1};
  const StepSample tight{0.5, 0.0, 2.0, 1};
  for (const StepSample& sample : {ample, ample, tight, ample, ample}) {
    scheduler.end_step(sample, 1000);
    ASSERT_EQ(scheduler.strategy(), kPre);
  }
  scheduler.end_step(ample, 1000);
  EXPECT_EQ(scheduler.strategy(), kPost);
}

TEST(FeedbackSchedulerReturn, ARequestThatDegradesAgainCountsAnew) {
  FeedbackScheduler scheduler = degraded(returning());
  const StepSample ample{0.5, 0.0, 4.0, 1};
  const StepSample slow{2.0, 0.0, 1.0, 1};
  for (int i = 0; i < 3; ++i) scheduler.end_step(ample, 1000);
  ASSERT_EQ(scheduler.strategy(), kPost);
  while (scheduler.strategy() == kPost) scheduler.end_step(slow, 1000);
  for (int i = 0; i < 2; ++i) scheduler.end_step(ample, 1000);
  EXPECT_EQ(scheduler.strategy(), kPre);
  scheduler.end_step(ample, 1000);
  EXPECT_EQ(scheduler.strategy(), kPost);
}

TEST(FeedbackSchedulerReturn, LeavesTheMarginAndCountsCopiesAndNewTokens) {
  SchedulerOptions options = returning();
  options.return_hold = 1;
  options.return_margin = 0.5;
  struct Case {
    StepSample sample;
    std::int64_t num_offloaded;
    SelectionStrategy strategy;
  };
  const std::vector<Case> cases = {
      {{0.5, 0.0, 4.0, 1}, 1000, kPost},   // 2 <= 0.5 * 4
      {{0.5, 0.0, 3.75, 1}, 1000, kPre},   // inside the margin
      {{0.5, 0.25, 4.0, 1}, 1000, kPre},   // the copies do not fit
      {{0.5, 0.5, 5.0, 1}, 1000, kPost},   // 2.5 <= 0.5 * 5
      {{0.5, 0.0, 4.0, 1}, 1250, kPre},    // more to scan than before
      {{0.5, 0.0, 5.0, 1}, 1250, kPost},   // 2.5 <= 0.5 * 5
      {{2.0, 0.0, 16.0, 4}, 1000, kPost},  // means are per pair
      {{2.0, 0.0, 15.0, 4}, 1000, kPre},
  };
  for (std::size_t i = 0; i < cases.size(); ++i) {
    FeedbackScheduler scheduler = degraded(options);
    scheduler.end_step(cases[i].sample, cases[i].num_offloaded);
    EXPECT_EQ(scheduler.strategy(), cases[i].strategy) << "case " << i;
  }
}

TEST(FeedbackSchedulerReturn, IsFollowedByAWarmUp) {
  SchedulerOptions options = returning();
  options.warmup = 1;
  options.return_hold = 1;
  FeedbackScheduler scheduler(options);
  const StepSample slow{2.0, 0.0, 1.0, 1};
  const StepSample ample{0.5, 0.0, 4.0, 1};
  for (const StepSample& sample : {slow, slow, ample, ample}) scheduler.end_step(sample, 1000);
  ASSERT_EQ(scheduler.last_decision(), SchedulerDecision::kToPost);
  const std::int64_t decisions = scheduler.num_decisions();
  scheduler.end_step(slow, 1000);
  EXPECT_EQ(scheduler.num_decisions(), decisions);
}

TEST(FeedbackSchedulerReturn, IsNotDecidedOnTheSamplesThatLedToPreQkt) {
  SchedulerOptions options = returning();
  options.interval = 2;
  options.return_hold = 1;
  options.return_margin = 0.0;
  FeedbackScheduler scheduler(options);
  scheduler.end_step({9.0, 0.0, 1.0, 1}, 1000);
  scheduler.end_step({0.5, 0.0, 1.0, 1}, 1000);  // the last scan alone would fit
  EXPECT_EQ(scheduler.last_decision(), SchedulerDecision::kToPre);
  EXPECT_EQ(scheduler.strategy(), kPre);
}

TEST(FeedbackSchedulerReturn, NeedsAScanToEstimateFrom) {
  SchedulerOptions options = returning();
  options.initial_strategy = kPre;
  FeedbackScheduler scheduler(options);
  for (int i = 0; i < 20; ++i) scheduler.end_step({0.0, 0.0, 4.0, 1}, 1000);
  EXPECT_EQ(scheduler.strategy(), kPre);
}

// ---- the paper's ablation ----

/// What the options make of time to spare, and then of a device that waits for long.
std::pair<State, State> behaviour(SchedulerOptions options) {
  options.warmup = 0;
  options.interval = 1;
  FeedbackScheduler scheduler(options);
  scheduler.end_step(kFast, kMany);
  const State spare = state_of(scheduler);
  for (int i = 0; i < 3; ++i) scheduler.end_step(kSlow, kMany);
  return {spare, state_of(scheduler)};
}

TEST(SchedulerPreset, NamesTheSixConfigurationsOfTheAblation) {
  EXPECT_EQ(
      scheduler_preset_names(),
      (std::vector<std::string>{
          "fixed_pre", "fixed_post", "fixed_adaptive", "adaptive_pre", "adaptive_post", "full"}));
}

TEST(SchedulerPreset, EachMovesWhatItsNameSays) {
  struct Row {
    std::string name;
    SelectionStrategy first;
    std::int64_t k_with_spare_time;
    SelectionStrategy last;
  };
  const std::vector<Row> rows = {
      {"fixed_pre", kPre, 128, kPre},
      {"fixed_post", kPost, 128, kPost},
      {"fixed_adaptive", kPost, 128, kPre},
      {"adaptive_pre", kPre, 154, kPre},
      {"adaptive_post", kPost, 154, kPost},
      {"full", kPost, 154, kPre},
  };
  for (const Row& row : rows) {
    SCOPED_TRACE(row.name);
    const SchedulerOptions options = scheduler_preset(row.name);
    EXPECT_NO_THROW(options.validate());
    EXPECT_EQ(options.initial_strategy, row.first);
    const auto [spare, late] = behaviour(options);
    EXPECT_EQ(spare.k, row.k_with_spare_time);
    EXPECT_EQ(spare.strategy, row.first);
    EXPECT_EQ(late.k, 128);
    EXPECT_EQ(late.strategy, row.last);
  }
}

TEST(SchedulerPreset, FullIsTheDefault) { EXPECT_EQ(scheduler_preset("full"), SchedulerOptions{}); }

TEST(SchedulerPreset, AnUnknownNameListsAllAndSuggestsTheNearest) {
  EXPECT_EQ(error_of([] { scheduler_preset("fixed-post"); }),
            "[scheduler] preset is \"fixed-post\"; allowed: \"fixed_pre\", \"fixed_post\", "
            "\"fixed_adaptive\", \"adaptive_pre\", \"adaptive_post\", \"full\"; "
            "did you mean \"fixed_post\"?");
  EXPECT_TRUE(error_of([] { scheduler_preset("x"); }).ends_with("\"full\"; use one of these"));
}

// ---- one object per request ----

TEST(FeedbackScheduler, ReplayingTheSamplesGivesTheSameStates) {
  std::mt19937_64 random(2);
  const std::vector<Step> steps = random_steps(random, 500);
  EXPECT_EQ(replay(SchedulerOptions{}, steps), replay(SchedulerOptions{}, steps));
  EXPECT_EQ(replay(returning(), steps), replay(returning(), steps));
}

TEST(FeedbackScheduler, InterleavedRequestsBehaveAsAlone) {
  std::mt19937_64 random(3);
  const std::vector<Step> first_steps = random_steps(random, 300);
  const std::vector<Step> second_steps = random_steps(random, 300);
  FeedbackScheduler first(every_step());
  FeedbackScheduler second(returning());
  std::vector<State> first_states;
  std::vector<State> second_states;
  for (std::size_t i = 0; i < first_steps.size(); ++i) {
    first.end_step(first_steps[i].sample, first_steps[i].num_offloaded);
    second.end_step(second_steps[i].sample, second_steps[i].num_offloaded);
    first_states.push_back(state_of(first));
    second_states.push_back(state_of(second));
  }
  EXPECT_EQ(first_states, replay(every_step(), first_steps));
  EXPECT_EQ(second_states, replay(returning(), second_steps));
}

TEST(FeedbackScheduler, ADegradedRequestDoesNotAffectTheNext) {
  {
    FeedbackScheduler finished(every_step());
    for (int i = 0; i < 10; ++i) finished.end_step(kSlow, kMany);
    ASSERT_EQ(finished.strategy(), kPre);
  }
  EXPECT_EQ(replay(every_step(), {{kFast, kMany}}),
            (std::vector<State>{{154, kPost, SchedulerDecision::kGrow}}));
}

// ---- any options, any samples ----

TEST(FeedbackScheduler, KeepsItsPromisesForRandomOptionsAndSamples) {
  std::mt19937_64 random(4);
  const auto below = [&random](std::uint64_t end) {
    return static_cast<std::int64_t>(random() % end);
  };
  std::set<SchedulerDecision> decisions;
  for (int run = 0; run < 400; ++run) {
    SchedulerOptions options;
    options.k_min = 1 + below(300);
    options.grow = {11 + below(20), 1 + below(11)};
    options.shrink = {1 + below(9), 10};
    options.k_max_ratio = static_cast<double>(1 + below(8)) / 8.0;
    if (below(2) == 0) options.k_max = options.k_min + below(500);
    options.interval = 1 + below(4);
    options.warmup = below(3);
    options.deadband = static_cast<double>(below(3)) / 8.0;
    options.adapt_k = below(4) != 0;
    options.adapt_strategy = below(4) != 0;
    options.initial_strategy = below(3) == 0 ? kPre : kPost;
    options.return_to_post = below(2) == 0 ? ReturnToPost::kNever : ReturnToPost::kEstimate;
    options.return_hold = 1 + below(3);
    FeedbackScheduler scheduler(options);
    double host_s = 0.0;    // H since the last decision; the samples are dyadic, so sums are exact
    double device_s = 0.0;  // G
    std::int64_t num_steps = 0;
    std::int64_t warmup_left = options.warmup;
    for (const Step& each : random_steps(random, 200)) {
      SCOPED_TRACE(message("run ", run, ", n_c ", each.num_offloaded, ", K ", scheduler.k()));
      const FeedbackScheduler before = scheduler;
      scheduler.end_step(each.sample, each.num_offloaded);
      if (each.num_offloaded == 0) {
        ASSERT_EQ(scheduler, before);
        continue;
      }

      const auto share =
          static_cast<std::int64_t>(options.k_max_ratio * static_cast<double>(each.num_offloaded));
      ASSERT_GE(scheduler.k(), options.k_min);
      ASSERT_LE(scheduler.k(), std::max(options.k_min, share));
      ASSERT_LE(scheduler.k(), options.k_max.value_or(kMany));
      ASSERT_LE(scheduler.k_for(each.num_offloaded), each.num_offloaded);
      if (!options.adapt_k) {
        ASSERT_EQ(scheduler.k(), options.k_min);
      }
      if (!options.adapt_strategy) {
        ASSERT_EQ(scheduler.strategy(), options.initial_strategy);
      }
      if (options.return_to_post == ReturnToPost::kNever && before.strategy() == kPre) {
        ASSERT_EQ(scheduler.strategy(), kPre);
      }

      if (each.sample.num_pairs > 0 && warmup_left > 0) {
        --warmup_left;
      } else if (each.sample.num_pairs > 0) {
        host_s += each.sample.host_s + each.sample.link_s;
        device_s += each.sample.device_s;
        ++num_steps;
      }
      const bool decided = scheduler.num_decisions() > before.num_decisions();
      ASSERT_EQ(decided, num_steps == options.interval);
      if (!decided) {
        ASSERT_EQ(scheduler.strategy(), before.strategy());
        ASSERT_LE(scheduler.k(), before.k()) << "only a decision raises K";
        continue;
      }
      const SchedulerDecision decision = scheduler.last_decision();
      decisions.insert(decision);
      ASSERT_EQ(scheduler.strategy() != before.strategy(),
                decision == SchedulerDecision::kToPre || decision == SchedulerDecision::kToPost);
      if (decision == SchedulerDecision::kGrow) {
        ASSERT_LE(host_s, device_s);
      }
      if (decision == SchedulerDecision::kShrink) {
        ASSERT_GT(host_s, (1.0 + options.deadband) * device_s);
      }
      if (decision == SchedulerDecision::kToPre) {
        ASSERT_GT(host_s, (1.0 + options.deadband) * device_s);
        ASSERT_EQ(scheduler.k(), options.k_min);
      }
      if (scheduler.strategy() != before.strategy()) warmup_left = options.warmup;
      host_s = device_s = 0.0;
      num_steps = 0;
    }
  }
  EXPECT_EQ(decisions.size(), 5U) << "every kind of decision occurred";
}

// ---- errors ----

TEST(FeedbackSchedulerErrors, EachBadOptionIsNamedWithItsValueAndWhatIsAllowed) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  using Change = std::function<void(SchedulerOptions&)>;
  const std::vector<std::pair<Change, std::string>> cases = {
      {[](auto& o) { o.k_min = 0; }, "[scheduler] k_min is 0; allowed: 'auto' or an integer >= 1"},
      {[](auto& o) { o.k_min = std::int64_t{1} << 31; }, "[scheduler] k_min is 2147483648;"},
      {[](auto& o) { o.grow = {4, 5}; },
       "[scheduler] grow is 0.8; allowed: a number in [1, 1e+06]"},
      {[](auto& o) { o.grow = {6, 0}; }, "[scheduler] grow is 6/0;"},
      {[](auto& o) { o.grow = {-6, -5}; }, "[scheduler] grow is -6/-5;"},
      {[](auto& o) { o.grow = {1000001, 1}; }, "[scheduler] grow is 1000001/1;"},
      {[](auto& o) { o.shrink = {5, 5}; },
       "[scheduler] shrink is 1.0; allowed: a number in [0, 1)"},
      {[](auto& o) { o.shrink = {0, 5}; }, "[scheduler] shrink is 0/5;"},
      {[](auto& o) { o.shrink = {1, 1000001}; }, "[scheduler] shrink is 1/1000001;"},
      {[](auto& o) { o.k_max_ratio = 0.0; },
       "[scheduler] k_max_ratio is 0.0; allowed: a number in (0, 1]"},
      {[](auto& o) { o.k_max_ratio = 1.5; }, "[scheduler] k_max_ratio is 1.5;"},
      {[=](auto& o) { o.k_max_ratio = kNan; }, "[scheduler] k_max_ratio is nan;"},
      {[](auto& o) { o.k_max = 127; },
       "[scheduler] k_max is 127; allowed: an integer >= k_min, or None; k_min is 128"},
      {[](auto& o) { o.k_max = std::int64_t{1} << 31; }, "[scheduler] k_max is 2147483648;"},
      {[](auto& o) { o.interval = 0; }, "[scheduler] interval is 0; allowed: an integer >= 1"},
      {[](auto& o) { o.warmup = -1; }, "[scheduler] warmup is -1; allowed: an integer >= 0"},
      {[](auto& o) { o.deadband = -0.5; },
       "[scheduler] deadband is -0.5; allowed: a number in [0, 1e+06]"},
      {[=](auto& o) { o.deadband = kInfinity; }, "[scheduler] deadband is inf;"},
      {[](auto& o) { o.return_margin = -0.5; },
       "[scheduler] return_margin is -0.5; allowed: a number in [0, 1)"},
      {[](auto& o) { o.return_margin = 1.0; }, "[scheduler] return_margin is 1.0;"},
      {[=](auto& o) { o.return_margin = kNan; }, "[scheduler] return_margin is nan;"},
      {[](auto& o) { o.return_hold = 0; },
       "[scheduler] return_hold is 0; allowed: an integer >= 1"},
  };
  for (const auto& [change, expected] : cases) {
    SchedulerOptions options;
    change(options);
    EXPECT_TRUE(error_of([&] { options.validate(); }).starts_with(expected))
        << error_of([&] { options.validate(); }) << "\nexpected: " << expected;
    EXPECT_THROW(FeedbackScheduler{options}, ConfigError) << expected;
  }
  EXPECT_NO_THROW(SchedulerOptions{}.validate());
}

TEST(FeedbackSchedulerErrors, ABadSampleIsNamedAndChangesNothing) {
  constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  struct Case {
    StepSample sample;
    std::int64_t num_offloaded;
    std::string expected;
  };
  const std::vector<Case> cases = {
      {{-1.0, 0.0, 1.0, 1}, 10, "[scheduler] host_s is -1; allowed: finite, >= 0;"},
      {{1.0, kNan, 1.0, 1}, 10, "[scheduler] link_s is nan;"},
      {{1.0, 0.0, kInfinity, 1}, 10, "[scheduler] device_s is inf;"},
      {{1.0, 0.0, 1.0, -1}, 10, "[scheduler] num_pairs is -1; allowed: >= 0;"},
      {{1.0, 0.0, 1.0, 1}, -1, "[scheduler] num_offloaded is -1; allowed: 0 to 2147483647;"},
      {{1.0, 0.0, 1.0, 1}, std::int64_t{1} << 31, "[scheduler] num_offloaded is 2147483648;"},
  };
  FeedbackScheduler scheduler(every_step());
  scheduler.end_step(kFast, kMany);
  for (const Case& each : cases) {
    const FeedbackScheduler before = scheduler;
    const std::string error =
        error_of([&] { scheduler.end_step(each.sample, each.num_offloaded); });
    EXPECT_TRUE(error.starts_with(each.expected)) << error;
    EXPECT_EQ(scheduler, before);
  }
}

TEST(FeedbackScheduler, NamesItsDecisionsForTraces) {
  EXPECT_EQ(name_of(SchedulerDecision::kHold), "hold");
  EXPECT_EQ(name_of(SchedulerDecision::kGrow), "grow");
  EXPECT_EQ(name_of(SchedulerDecision::kShrink), "shrink");
  EXPECT_EQ(name_of(SchedulerDecision::kToPre), "to_pre");
  EXPECT_EQ(name_of(SchedulerDecision::kToPost), "to_post");
}

}  // namespace
}  // namespace hybridgen
