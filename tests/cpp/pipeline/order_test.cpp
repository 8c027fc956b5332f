// SPDX-License-Identifier: Apache-2.0
// When host jobs may run: which query a job needs decides beside which part of the device stage it
// runs. Read from the traced spans of one decode step; no test looks at how long anything takes.
//
// A synchronous engine waits for each host job where it submits it, so that the spans of a job lie
// inside the device span that submitted it. An asynchronous one with random delays shows that what
// depends on a result waits for it.
#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <string_view>

#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::tiny_model;
using Config = OptionMap;

constexpr std::int64_t kNumLayers = 4;
constexpr std::int64_t kNumKvHeads = 2;

bool is_inside(const TraceSpan& inner, const TraceSpan& outer) {
  return inner.begin_ns >= outer.begin_ns && inner.end_ns <= outer.end_ns;
}

/// Spans of one decode step in order of their begin. A unit is one micro-batch in one layer; units
/// are numbered layer by layer.
struct Step {
  std::vector<TraceSpan> spans;

  std::vector<TraceSpan> device(std::string_view name) const {
    return filter([=](const TraceSpan& span) {
      return span.lane == TraceLane::kDevice && span.name == name;
    });
  }
  /// "pre" and "post" of every unit, and what lies between.
  std::vector<TraceSpan> inputs() const { return device("norm, q k v"); }
  std::vector<TraceSpan> resident_logits() const { return device("resident logits"); }
  std::vector<TraceSpan> merges() const { return device("merge, output, FFN"); }
  std::vector<TraceSpan> lane(TraceLane lane) const {
    return filter([=](const TraceSpan& span) { return span.lane == lane; });
  }
  std::vector<TraceSpan> of_layer(TraceLane lane, std::int64_t layer) const {
    return filter([=](const TraceSpan& span) { return span.lane == lane && span.layer == layer; });
  }

 private:
  std::vector<TraceSpan> filter(const std::function<bool(const TraceSpan&)>& wanted) const {
    std::vector<TraceSpan> result;
    std::ranges::copy_if(spans, std::back_inserter(result), wanted);
    return result;
  }
};

/// The second decode step of `num_requests` requests, so that every request has offloaded tokens.
Step trace_step(const EngineOptions& options, std::size_t num_requests = 1) {
  Engine engine(tiny_model(), options);
  SamplingOptions sampling;
  sampling.max_tokens = 10;
  for (std::size_t i = 0; i < num_requests; ++i) {
    engine.add(testing::prompt(20 + static_cast<std::int64_t>(i), i + 1), sampling);
  }
  for (std::size_t i = 0; i < num_requests; ++i) {
    engine.step();  // prefill
  }
  engine.step();
  engine.trace().start(4096);
  engine.step();
  engine.trace().stop();
  EXPECT_EQ(engine.trace().dropped(), 0);
  return {engine.trace().spans()};
}

struct Case {
  std::string name;
  EngineOptions options;
  /// Layer whose device stage submits the host job of `layer`.
  std::function<std::int64_t(std::int64_t layer)> submitted_in;
};

void PrintTo(const Case& test_case, std::ostream* out) { *out << test_case.name; }

// No query: one layer ahead; the first layer's job has nothing to hide behind.
std::int64_t none(std::int64_t layer) { return std::max<std::int64_t>(layer - 1, 0); }
// The layer's own query.
std::int64_t exact(std::int64_t layer) { return layer; }
// Guessed in the layer before, from `first` on; the layer's own before.
std::function<std::int64_t(std::int64_t)> guessed_from(std::int64_t first) {
  return [first](std::int64_t layer) { return layer < first ? exact(layer) : layer - 1; };
}

Case method(const std::string& name,
            const std::string& of,
            Config config,
            std::function<std::int64_t(std::int64_t)> submitted_in) {
  Case result{name, testing::options(of), std::move(submitted_in)};
  result.options.method_config = std::move(config);
  return result;
}

Case hybrid(const std::string& name,
            QueryMode query,
            std::function<std::int64_t(std::int64_t)> submitted_in) {
  Case result = method(name, "hybridgen", {}, std::move(submitted_in));
  result.options.hybridgen.query.mode = query;
  result.options.device_tokens.count = 9;
  result.options.hybridgen.k = TokenCount::count(6);
  return result;
}

std::vector<Case> cases() {
  const OptionValue host = std::string("host");
  std::vector<Case> all = {
      method("flexgen", "flexgen", {}, none),
      method("streaming_llm_on_host",
             "streaming_llm",
             {{"sinks", std::int64_t{2}}, {"window", std::int64_t{7}}, {"home", host}},
             none),
      method("h2o_on_host", "h2o", {{"home", host}}, none),
      method("keyformer_on_host", "keyformer", {{"home", host}}, none),
      // The first two layers load every token, the others what was guessed one layer ahead.
      method("infinigen", "infinigen", {}, none),
      method("moe_lightning", "moe_lightning", {}, exact),
      method("hgca", "hgca", {{"block", std::int64_t{4}}, {"blocks", std::int64_t{3}}}, exact),
      hybrid("hybridgen_exact", QueryMode::kExact, exact),
      hybrid("hybridgen_speculative", QueryMode::kSpeculative, guessed_from(2)),
      hybrid("hybridgen_rescored", QueryMode::kRescore, guessed_from(2))};
  Case planned = hybrid("hybridgen_planned", QueryMode::kSpeculative, guessed_from(2));
  planned.options.hybridgen.strategy = SelectionStrategy::kPreQkt;
  Case early = hybrid("hybridgen_guessing_early", QueryMode::kSpeculative, guessed_from(1));
  early.options.hybridgen.query.first_layer = 1;
  Case reused = hybrid("hybridgen_previous_query", QueryMode::kSpeculative, guessed_from(2));
  reused.options.hybridgen.query.source = GuessSource::kPreviousQuery;
  // An oracle guesses from the layer's own input, which is there no earlier than its query.
  Case oracle = hybrid("hybridgen_oracle", QueryMode::kSpeculative, exact);
  oracle.options.test.oracle_proxy = true;
  for (Case& each : {std::ref(planned), std::ref(early), std::ref(reused), std::ref(oracle)}) {
    all.push_back(std::move(each));
  }
  return all;
}

const auto kName = [](const auto& info) { return info.param.name; };

// ---- One micro-batch

class QueryColumn : public ::testing::TestWithParam<Case> {};

TEST_P(QueryColumn, SaysWhichLayerSubmitsTheHostJob) {
  EngineOptions options = GetParam().options;
  options.test.synchronous = true;
  const Step step = trace_step(options);
  const auto inputs = step.inputs();
  ASSERT_EQ(inputs.size(), kNumLayers);
  for (std::int64_t layer = 0; layer < kNumLayers; ++layer) {
    const auto jobs = step.of_layer(TraceLane::kCpu, layer);
    ASSERT_EQ(jobs.size(), kNumKvHeads);
    const auto submitted_in = static_cast<std::size_t>(GetParam().submitted_in(layer));
    for (const TraceSpan& job : jobs) {
      EXPECT_TRUE(is_inside(job, inputs[submitted_in])) << "layer " << layer;
    }
  }
}

TEST_P(QueryColumn, OrdersSubmissionsAndWaits) {
  for (const bool is_synchronous : {false, true}) {
    EngineOptions options = GetParam().options;
    options.test.synchronous = is_synchronous;
    options.test.random_delay_us = 300;
    const Step step = trace_step(options);
    const auto inputs = step.inputs();
    const auto resident_logits = step.resident_logits();
    const auto merges = step.merges();
    ASSERT_EQ(inputs.size(), kNumLayers);
    ASSERT_EQ(resident_logits.size(), kNumLayers);
    ASSERT_EQ(merges.size(), kNumLayers);
    for (std::int64_t layer = 0; layer < kNumLayers; ++layer) {
      SCOPED_TRACE(layer);
      const auto i = static_cast<std::size_t>(layer);
      // The device stage: one layer after the other.
      EXPECT_EQ(inputs[i].layer, layer);
      EXPECT_LE(inputs[i].end_ns, resident_logits[i].begin_ns);
      EXPECT_LE(resident_logits[i].end_ns, merges[i].begin_ns);
      if (i > 0) {
        EXPECT_LE(merges[i - 1].end_ns, inputs[i].begin_ns);
      }
      // The host stage: not before its query, done before its result is used.
      const auto jobs = step.of_layer(TraceLane::kCpu, layer);
      ASSERT_EQ(jobs.size(), kNumKvHeads);
      const auto submitted_in = static_cast<std::size_t>(GetParam().submitted_in(layer));
      for (const TraceSpan& job : jobs) {
        EXPECT_GE(job.begin_ns, inputs[submitted_in].begin_ns);
        EXPECT_LE(job.end_ns, merges[i].begin_ns);
      }
      // The link: after the last part of the job, before the merge.
      const auto payloads = step.of_layer(TraceLane::kLink, layer);
      ASSERT_EQ(payloads.size(), 1U);
      for (const TraceSpan& job : jobs) {
        EXPECT_GE(payloads.front().begin_ns, job.end_ns);
      }
      EXPECT_LE(payloads.front().end_ns, merges[i].begin_ns);
      EXPECT_GT(payloads.front().bytes, 0);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Methods, QueryColumn, ::testing::ValuesIn(cases()), kName);

TEST(MethodsOnTheDeviceAlone, UseNeitherTheHostNorTheLink) {
  for (const char* name : {"full", "streaming_llm", "h2o", "keyformer"}) {
    const Step step = trace_step(testing::options(name));
    EXPECT_EQ(step.merges().size(), kNumLayers) << name;
    EXPECT_TRUE(step.lane(TraceLane::kCpu).empty()) << name;
    EXPECT_TRUE(step.lane(TraceLane::kLink).empty()) << name;
  }
}

TEST(ARequestWithoutOffloadedTokens, UsesNeitherTheHostNorTheLink) {
  EngineOptions options = testing::options("hybridgen");
  options.device_tokens.count = 200;
  const Step step = trace_step(options);
  EXPECT_EQ(step.merges().size(), kNumLayers);
  EXPECT_TRUE(step.lane(TraceLane::kCpu).empty());
  EXPECT_TRUE(step.lane(TraceLane::kLink).empty());
}

// ---- The two stages at the same time

/// Where the device, at the end of layer 2, and the host, in its job for layer 3, meet: each waits
/// until the other is there, which can only happen if they run at the same time.
class Meeting {
 public:
  explicit Meeting(bool waits) : waits_(waits) {}

  void device_arrives() { arrive(device_, host_); }
  void host_arrives() { arrive(host_, device_); }
  bool took_place() const { return device_.met && host_.met; }
  bool device_was_first() const { return device_.order == 1 && host_.order == 2; }

 private:
  struct Side {
    int order = 0;  ///< 1: first, 2: second
    bool met = false;
  };

  void arrive(Side& self, const Side& other) {
    std::unique_lock lock(mutex_);
    if (self.order > 0) {
      return;
    }
    self.order = ++arrivals_;
    changed_.notify_all();
    if (waits_) {  // the limit is for a failing test only
      self.met = changed_.wait_for(lock, std::chrono::seconds(20), [&] { return other.order > 0; });
    }
  }

  const bool waits_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int arrivals_ = 0;
  Side device_;
  Side host_;
};

class MeetingSelector final : public TokenSelector {
 public:
  explicit MeetingSelector(Meeting& meeting) : meeting_(meeting) {}

  std::string_view name() const override { return "meeting"; }
  SelectionStrategy strategy() const override { return SelectionStrategy::kPreQkt; }
  bool wants_decode_weights() const override { return true; }
  std::span<const std::int32_t> plan(const PlanContext& context,
                                     std::vector<std::int32_t>& scratch) const override {
    if (context.layer == 3) {
      meeting_.host_arrives();
    }
    return recent_->plan(context, scratch);
  }
  void on_decode(std::int64_t layer,
                 std::int64_t /*kv_head*/,
                 const DecodeAttention& /*attention*/) override {
    if (layer == 2) {
      meeting_.device_arrives();
    }
  }

 private:
  Meeting& meeting_;
  std::unique_ptr<TokenSelector> recent_ = make_sinks_recent_selector();
};

// A decode step of a composition whose host jobs from layer 1 on need `query`.
void run_with(Meeting& meeting, HostQuery query) {
  Method method;
  method.name = "meeting";
  method.residency = Residency::kWindow;
  method.window.tokens = [](const RequestShape&) { return std::int64_t{9}; };
  method.early_work = Fetch{HostQuery::kExact, BySelectors{}};
  method.work = Fetch{query, BySelectors{}};
  method.first_layer = 1;
  method.strategy = SelectionStrategy::kPreQkt;
  method.parts.push_back(selector_part(method.strategy, [&meeting](const SelectorShape&) {
    return std::make_unique<MeetingSelector>(meeting);
  }));
  method.key_layout = natural_key_layout(method);
  check_composition(method);
  EngineOptions options = testing::options("hybridgen");
  options.hybridgen.k = TokenCount::count(6);
  Engine engine(tiny_model(), options, method);
  SamplingOptions sampling;
  sampling.max_tokens = 10;
  engine.add(testing::prompt(20), sampling);
  engine.step();  // prefill
  engine.step();
}

class Overlap : public ::testing::TestWithParam<HostQuery> {};

TEST_P(Overlap, TheHostWorksOnALayerWhileTheDeviceFinishesTheOneBefore) {
  Meeting meeting(/*waits=*/true);
  run_with(meeting, GetParam());
  EXPECT_TRUE(meeting.took_place());
}

INSTANTIATE_TEST_SUITE_P(Queries,
                         Overlap,
                         ::testing::Values(HostQuery::kNone, HostQuery::kGuessed),
                         [](const auto& query) {
                           return query.param == HostQuery::kNone ? "none" : "guessed";
                         });

TEST(ExactQuery, LetsTheLayerBeforeFinishFirst) {
  Meeting meeting(/*waits=*/false);
  run_with(meeting, HostQuery::kExact);
  EXPECT_TRUE(meeting.device_was_first());
}

// ---- Several micro-batches (CGOPipe's order)

struct Pipe {
  std::int64_t requests = 0;
  std::int64_t micro_batches = 0;
  std::int64_t lookahead = 0;
};

std::string name_of(const Pipe& pipe) {
  return std::to_string(pipe.requests) + "_requests_" + std::to_string(pipe.micro_batches) +
         "_batches_" + std::to_string(pipe.lookahead) + "_ahead";
}

void PrintTo(const Pipe& pipe, std::ostream* out) { *out << name_of(pipe); }

class MicroBatches : public ::testing::TestWithParam<Pipe> {
 protected:
  Step trace(bool is_synchronous) const {
    EngineOptions options = testing::options("moe_lightning");
    options.method_config = {{"micro_batches", GetParam().micro_batches},
                             {"lookahead", GetParam().lookahead}};
    options.test.synchronous = is_synchronous;
    options.test.random_delay_us = 200;
    return trace_step(options, static_cast<std::size_t>(GetParam().requests));
  }
  std::int64_t num_batches() const {
    return std::min(GetParam().requests, GetParam().micro_batches);
  }
  std::int64_t num_units() const { return kNumLayers * num_batches(); }
  std::int64_t lookahead() const { return std::min(GetParam().lookahead, num_batches()); }
  std::size_t rows(std::int64_t batch) const {  // sizes differ by one at most, the last are larger
    const std::int64_t first = batch * GetParam().requests / num_batches();
    return static_cast<std::size_t>((batch + 1) * GetParam().requests / num_batches() - first);
  }
  std::size_t jobs_of(std::int64_t unit) const { return rows(unit % num_batches()) * kNumKvHeads; }
};

TEST_P(MicroBatches, PassThroughEachLayerOneAfterTheOther) {
  const Step step = trace(/*is_synchronous=*/false);
  const auto pre = step.inputs();
  const auto post = step.merges();
  ASSERT_EQ(pre.size(), static_cast<std::size_t>(num_units()));
  ASSERT_EQ(post.size(), static_cast<std::size_t>(num_units()));
  for (std::int64_t unit = 0; unit < num_units(); ++unit) {
    EXPECT_EQ(pre[static_cast<std::size_t>(unit)].layer, unit / num_batches());
    EXPECT_EQ(post[static_cast<std::size_t>(unit)].layer, unit / num_batches());
  }
}

// A waiting driver helps, so that jobs of two units may begin in either order: what can be told
// from the spans is how many had begun and how many had ended when a stage of the device began.
TEST_P(MicroBatches, AreAttendedToOnTheHostBetweenTheirTwoDeviceStages) {
  const Step step = trace(/*is_synchronous=*/false);
  const auto pre = step.inputs();
  const auto post = step.merges();
  ASSERT_EQ(pre.size(), static_cast<std::size_t>(num_units()));
  ASSERT_EQ(post.size(), static_cast<std::size_t>(num_units()));
  const auto jobs = step.lane(TraceLane::kCpu);
  std::size_t num_before = 0;
  for (std::int64_t unit = 0; unit < num_units(); ++unit) {
    const std::int64_t submitted_ns = pre[static_cast<std::size_t>(unit)].begin_ns;
    const std::int64_t merged_ns = post[static_cast<std::size_t>(unit)].begin_ns;
    const auto begun = std::ranges::count_if(
        jobs, [&](const TraceSpan& job) { return job.begin_ns < submitted_ns; });
    const auto ended =
        std::ranges::count_if(jobs, [&](const TraceSpan& job) { return job.end_ns <= merged_ns; });
    EXPECT_LE(static_cast<std::size_t>(begun), num_before) << "unit " << unit;
    num_before += jobs_of(unit);
    EXPECT_GE(static_cast<std::size_t>(ended), num_before) << "unit " << unit;
  }
  EXPECT_EQ(jobs.size(), num_before);
}

TEST_P(MicroBatches, AreAttendedToInsideTheStageThatSubmitsThemByASynchronousEngine) {
  const Step step = trace(/*is_synchronous=*/true);
  const auto pre = step.inputs();
  ASSERT_EQ(pre.size(), static_cast<std::size_t>(num_units()));
  for (std::int64_t unit = 0; unit < num_units(); ++unit) {
    const TraceSpan& stage = pre[static_cast<std::size_t>(unit)];
    const auto jobs = step.of_layer(TraceLane::kCpu, stage.layer);
    const auto inside =
        std::ranges::count_if(jobs, [&](const TraceSpan& job) { return is_inside(job, stage); });
    EXPECT_EQ(static_cast<std::size_t>(inside), jobs_of(unit)) << "unit " << unit;
  }
}

TEST_P(MicroBatches, EnterTheNextLayerAfterTheyHaveLeftTheOneBefore) {
  const Step step = trace(/*is_synchronous=*/false);
  const auto pre = step.inputs();
  const auto post = step.merges();
  const auto batches = static_cast<std::size_t>(num_batches());
  ASSERT_EQ(pre.size(), post.size());
  for (std::size_t unit = batches; unit < pre.size(); ++unit) {
    EXPECT_LE(post[unit - batches].end_ns, pre[unit].begin_ns) << "unit " << unit;
  }
}

TEST_P(MicroBatches, RunAheadByTheLookahead) {
  // With a lookahead of 2: pre 0, pre 1, post 0, pre 2, post 1, pre 3, ...
  const Step step = trace(/*is_synchronous=*/false);
  const auto pre = step.inputs();
  const auto post = step.merges();
  ASSERT_EQ(pre.size(), post.size());
  const auto ahead = static_cast<std::size_t>(lookahead());
  for (std::size_t finished = 0; finished < post.size(); ++finished) {
    for (std::size_t started = 0; started < pre.size(); ++started) {
      if (started < finished + ahead) {
        EXPECT_LE(pre[started].end_ns, post[finished].begin_ns) << started << ", " << finished;
      } else {
        EXPECT_LE(post[finished].end_ns, pre[started].begin_ns) << started << ", " << finished;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Pipes,
                         MicroBatches,
                         ::testing::Values(Pipe{1, 2, 2},
                                           Pipe{3, 3, 2},
                                           Pipe{3, 3, 1},
                                           Pipe{3, 3, 3},
                                           Pipe{5, 2, 2},
                                           Pipe{4, 3, 9}),
                         [](const auto& pipe) { return name_of(pipe.param); });

}  // namespace
}  // namespace hybridgen
