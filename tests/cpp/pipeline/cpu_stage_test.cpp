// SPDX-License-Identifier: Apache-2.0
// Host jobs whose heads are cut into ranges of tokens: the same bits as heads in one piece, however
// many workers there are, and the same bytes, times and errors. So are heads that are divided over
// memory nodes, whose workers take the tasks of their own node first.
#include "pipeline/cpu_stage.h"

#include <gtest/gtest.h>
#include <sched.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cmath>
#include <exception>
#include <future>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"
#include "kernels/cpu_kernels.h"
#include "pipeline/pipeline_probe.h"
#include "pipeline/test_probe.h"
#include "runtime/cpus.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kKvHeads = 2;
constexpr std::int64_t kHeads = 6;
constexpr std::int64_t kPerGroup = kHeads / kKvHeads;
constexpr std::int64_t kDim = 16;
constexpr std::int64_t kCapacity = 12000;
constexpr std::int64_t kChosen = 100;

ModelConfig config() {
  ModelConfig result;
  result.num_layers = 1;
  result.num_heads = kHeads;
  result.num_kv_heads = kKvHeads;
  result.head_dim = kDim;
  return result;
}

std::vector<float> normal(std::int64_t count, std::uint32_t seed) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> distribution;
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) value = distribution(generator);
  return values;
}

/// One request with keys that repeat, so that there are ties across ranges.
struct Request {
  Request(KeyLayout layout, std::int64_t num_offloaded, std::uint32_t seed)
      : count(num_offloaded),
        store({.num_layers = 1,
               .num_kv_heads = kKvHeads,
               .head_dim = kDim,
               .capacity = kCapacity,
               .key_layout = layout}),
        query(normal(kHeads * kDim, seed)),
        logits(kHeads * kChosen),
        positions(kHeads * kChosen),
        index(kHeads * kChosen),
        merged(kHeads * kChosen),
        union_sizes(kKvHeads),
        values(kHeads * kChosen * kDim),
        keys(kHeads * kChosen * kDim),
        scores(kHeads * score_stride(kCapacity)),
        parts(static_cast<std::size_t>(kKvHeads * attended_floats(count, kPerGroup, kDim))),
        output(kHeads * kDim),
        lse(kHeads) {
    constexpr std::int64_t kDistinct = 3000;
    const std::vector<float> rows = normal(kDistinct * kDim, seed + 1);
    std::vector<float> all;
    for (std::int64_t i = 0; i < kKvHeads * count; ++i) {
      const auto from = rows.begin() + i % kDistinct * kDim;
      all.insert(all.end(), from, from + kDim);
    }
    const KvRowsView view = {all.data(), count * kDim, kDim};
    store.grow(count);
    store.write(0, {0, count}, view, view);
    written = std::move(all);
  }

  HostJob attending_job() {
    HostJob job;
    job.store = &store;
    job.payload = Payload::kPartialAttention;
    job.chooser = EveryToken{};
    job.query = query.data();
    job.num_offloaded = count;
    job.num_chosen = count;
    job.buffers = {.output = output.data(), .lse = lse.data(), .parts = parts.data()};
    return job;
  }

  HostJob job(const TokenSelector& selector, bool is_cut) {
    HostJob job;
    job.store = &store;
    job.payload = Payload::kKeysAndValues;
    job.chooser = SelectedHere{.selector = &selector};
    job.query = query.data();
    job.num_offloaded = count;
    job.num_chosen = kChosen;
    job.buffers = {.logits = logits.data(),
                   .positions = positions.data(),
                   .index = index.data(),
                   .merged = merged.data(),
                   .union_sizes = union_sizes.data(),
                   .values = values.data(),
                   .keys = keys.data(),
                   .union_capacity = kPerGroup * kChosen,
                   .scores = is_cut ? scores.data() : nullptr};
    return job;
  }

  std::int64_t count;
  HostKvStore store;
  std::vector<float> query;
  std::vector<float> logits;
  std::vector<std::int32_t> positions;
  std::vector<std::int32_t> index;
  std::vector<std::int32_t> merged;
  std::vector<std::int64_t> union_sizes;
  std::vector<float> values;
  std::vector<float> keys;
  std::vector<float> scores;
  std::vector<float> parts;
  std::vector<float> output;
  std::vector<float> lse;
  std::vector<float> written;  ///< [G, count, D] of keys and of values
};

std::unique_ptr<TokenSelector> top_k() {
  return make_top_k_selector(
      {.num_layers = 1, .num_kv_heads = kKvHeads, .query_heads_per_kv_head = kPerGroup});
}

/// One for each request, as in the engine: they keep state.
std::vector<std::unique_ptr<TokenSelector>> top_k_of_each(std::size_t requests) {
  std::vector<std::unique_ptr<TokenSelector>> selectors(requests);
  std::ranges::generate(selectors, top_k);
  return selectors;
}

/// Runs the jobs of `requests` on `workers` threads and returns what was counted.
struct Counted {
  std::int64_t key_bytes = 0;
  std::int64_t value_bytes = 0;
  std::vector<TraceSpan> spans;
  std::vector<std::exception_ptr> errors;  ///< one per request
};
Counted run(std::vector<std::unique_ptr<Request>>& requests,
            int workers,
            bool is_cut,
            const NumaDivision& division = {},
            bool waiter_helps = false) {
  WorkerPool pool({.cpus = std::vector<int>(static_cast<std::size_t>(workers), -1)});
  TraceRecorder trace;
  const kernels::CpuKernels& kernels = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  const auto probe = make_test_probe({.random_delay_us = is_cut ? 100 : 0});
  CpuStage stage(pool, kernels, config(), trace, probe.get(), division, waiter_helps);
  stage.reserve(kCapacity);
  const auto selectors = top_k_of_each(requests.size());
  HostJobBatch batch;
  batch.layer = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    batch.jobs.push_back(requests[i]->job(*selectors[i], is_cut));
  }
  trace.start(1024);
  for (int step = 0; step < 3; ++step) {  // thresholds of the step before must change nothing
    stage.submit(batch);
    stage.wait(batch);
  }
  trace.stop();
  EXPECT_LE(batch.begin_ns, batch.end_ns);
  Counted counted{batch.key_bytes_read, batch.value_bytes_read, trace.spans(), {}};
  for (std::size_t i = 0; i < requests.size(); ++i) {
    counted.errors.push_back(batch.error(i));
  }
  return counted;
}

std::vector<std::unique_ptr<Request>> ragged(KeyLayout layout) {
  std::vector<std::unique_ptr<Request>> requests;
  std::uint32_t seed = 1;
  for (const std::int64_t count : {std::int64_t{9999}, kChosen, std::int64_t{4100}}) {
    requests.push_back(std::make_unique<Request>(layout, count, seed++));
  }
  return requests;
}

void expect_same(const std::vector<std::unique_ptr<Request>>& requests,
                 const std::vector<std::unique_ptr<Request>>& expected) {
  for (std::size_t i = 0; i < requests.size(); ++i) {
    EXPECT_EQ(requests[i]->positions, expected[i]->positions);
    EXPECT_EQ(requests[i]->logits, expected[i]->logits);
    EXPECT_EQ(requests[i]->index, expected[i]->index);
    EXPECT_EQ(requests[i]->union_sizes, expected[i]->union_sizes);
    EXPECT_EQ(requests[i]->values, expected[i]->values);
    EXPECT_EQ(requests[i]->keys, expected[i]->keys);
  }
}

class Cut : public ::testing::TestWithParam<KeyLayout> {};

INSTANTIATE_TEST_SUITE_P(Layouts,
                         Cut,
                         ::testing::Values(KeyLayout::kBlocked, KeyLayout::kRows),
                         [](const auto& layout) {
                           return layout.param == KeyLayout::kRows ? "rows" : "blocked";
                         });

TEST_P(Cut, HeadsGiveTheBitsAndBytesOfWholeOnesForAnyNumberOfWorkers) {
  auto expected = ragged(GetParam());
  const Counted whole = run(expected, 1, /*is_cut=*/false);
  for (const int workers : {1, 2, 5}) {
    auto requests = ragged(GetParam());
    const Counted cut = run(requests, workers, /*is_cut=*/true);
    EXPECT_EQ(cut.key_bytes, whole.key_bytes);
    EXPECT_EQ(cut.value_bytes, whole.value_bytes);
    expect_same(requests, expected);
  }
}

TEST_P(Cut, HeadsGiveTheSameBitsAndBytesIfTheWaiterHelps) {
  auto expected = ragged(GetParam());
  const Counted whole = run(expected, 1, /*is_cut=*/false);
  for (const int workers : {1, 2}) {
    for (const bool is_cut : {false, true}) {
      auto requests = ragged(GetParam());
      const Counted helped = run(requests, workers, is_cut, {}, /*waiter_helps=*/true);
      EXPECT_EQ(helped.key_bytes, whole.key_bytes);
      EXPECT_EQ(helped.value_bytes, whole.value_bytes);
      expect_same(requests, expected);
    }
  }
}

/// Parts with so many heads each; workers are theirs by turns.
NumaDivision division_of(const std::vector<std::int64_t>& heads, int workers) {
  NumaDivision division;
  std::int64_t first = 0;
  for (const std::int64_t num_heads : heads) {
    division.parts.push_back({static_cast<int>(division.parts.size()), first, num_heads, {}});
    first += num_heads;
  }
  for (int worker = 0; worker < workers; ++worker) {
    division.part_of_worker.push_back(worker % static_cast<int>(heads.size()));
  }
  return division;
}

TEST_P(Cut, HeadsDividedOverNodesGiveTheSameBitsAndBytes) {
  auto expected = ragged(GetParam());
  const Counted whole = run(expected, 1, /*is_cut=*/false);
  const std::vector<std::vector<std::int64_t>> divisions = {{1, 1}, {2, 0}, {0, 2}, {1, 0, 1}};
  for (const std::vector<std::int64_t>& heads : divisions) {
    for (const int workers : {1, 2, 5}) {  // of fewer than there are parts, some have none
      for (const bool is_cut : {false, true}) {
        auto requests = ragged(GetParam());
        const Counted divided =
            run(requests, workers, is_cut, division_of(heads, workers), /*waiter_helps=*/is_cut);
        EXPECT_EQ(divided.key_bytes, whole.key_bytes);
        EXPECT_EQ(divided.value_bytes, whole.value_bytes);
        expect_same(requests, expected);
      }
    }
  }
}

/// Attends to all tokens of `requests` on `workers` threads.
void attend(std::vector<std::unique_ptr<Request>>& requests,
            int workers,
            const NumaDivision& division = {}) {
  WorkerPool pool({.cpus = std::vector<int>(static_cast<std::size_t>(workers), -1)});
  TraceRecorder trace;
  const auto probe = make_test_probe({.random_delay_us = 100});
  CpuStage stage(pool,
                 kernels::cpu_kernels(kernels::resolve_isa("auto")),
                 config(),
                 trace,
                 probe.get(),
                 division,
                 /*waiter_helps=*/workers % 2 == 0);
  stage.reserve(kCapacity);
  HostJobBatch batch;
  batch.layer = 0;
  for (const auto& request : requests) batch.jobs.push_back(request->attending_job());
  stage.submit(batch);
  stage.wait(batch);
  std::int64_t tokens = 0;
  for (const auto& request : requests) tokens += request->count;
  EXPECT_EQ(batch.key_bytes_read, tokens * kKvHeads * kDim * 4);
  EXPECT_EQ(batch.value_bytes_read, batch.key_bytes_read);
}

/// Of query head `head`, in double precision.
std::vector<double> attention_of(const Request& request, std::int64_t head) {
  const float* rows = request.written.data() + head / kPerGroup * request.count * kDim;
  const float* query = request.query.data() + head * kDim;
  std::vector<double> attention(kDim + 1);
  double* const sums = attention.data();
  for (std::int64_t t = 0; t < request.count; ++t) {
    double logit = 0.0;
    for (std::int64_t d = 0; d < kDim; ++d) logit += double{query[d]} * rows[t * kDim + d];
    const double weight = std::exp(logit / std::sqrt(static_cast<double>(kDim)));
    for (std::int64_t d = 0; d < kDim; ++d) sums[d] += weight * rows[t * kDim + d];
    sums[kDim] += weight;
  }
  for (std::int64_t d = 0; d < kDim; ++d) sums[d] /= sums[kDim];
  sums[kDim] = std::log(sums[kDim]);
  return attention;
}

TEST_P(Cut, AttentionIsThatOfOneSoftmaxWithTheSameBitsForAnyNumberOfWorkersAndNodes) {
  auto expected = ragged(GetParam());
  attend(expected, 1);
  for (const auto& request : expected) {
    for (std::int64_t head = 0; head < kHeads; ++head) {
      const std::vector<double> exact = attention_of(*request, head);
      for (std::int64_t d = 0; d < kDim; ++d) {
        EXPECT_NEAR(request->output[static_cast<std::size_t>(head * kDim + d)],
                    exact[static_cast<std::size_t>(d)],
                    1e-5);
      }
      EXPECT_NEAR(request->lse[static_cast<std::size_t>(head)], exact[kDim], 1e-4);
    }
  }
  for (const int workers : {2, 5}) {
    for (const NumaDivision& division : {NumaDivision{}, division_of({1, 1}, workers)}) {
      auto requests = ragged(GetParam());
      attend(requests, workers, division);
      for (std::size_t i = 0; i < requests.size(); ++i) {
        EXPECT_EQ(requests[i]->output, expected[i]->output);
        EXPECT_EQ(requests[i]->lse, expected[i]->lse);
      }
    }
  }
}

TEST(Ranges, AreTracedOneByOneAndEachHeadIsFinishedOnce) {
  auto requests = ragged(KeyLayout::kBlocked);
  const Counted cut = run(requests, 4, /*is_cut=*/true);
  const auto spans_of = [&](const std::string& name) {
    return std::ranges::count_if(cut.spans,
                                 [&](const TraceSpan& span) { return span.name == name; });
  };
  // Of 3 steps: two requests are cut, the short one is not.
  EXPECT_EQ(spans_of("select, gather"), 3 * 2 * kKvHeads);
  EXPECT_EQ(spans_of("score, select, gather"), 3 * kKvHeads);
  EXPECT_GT(spans_of("score"), 3 * 2 * kKvHeads);
}

TEST(Ranges, OfALongRequestAreManyEvenIfItHasFewHeads) {
  std::vector<std::unique_ptr<Request>> requests;
  requests.push_back(std::make_unique<Request>(KeyLayout::kBlocked, kCapacity, 7));
  const Counted cut = run(requests, 3, /*is_cut=*/true);
  EXPECT_GE(std::ranges::count_if(
                cut.spans, [](const TraceSpan& span) { return span.name == std::string("score"); }),
            3 * 3 * kKvHeads);
}

TEST(AJobThatFails, NamesItsFirstFailureAndLeavesAllOthersAsTheyAre) {
  auto expected = ragged(KeyLayout::kBlocked);
  run(expected, 1, /*is_cut=*/false);
  expected.erase(expected.begin());
  for (const NumaDivision& division : {NumaDivision{}, division_of({1, 1}, 3)}) {
    for (const bool is_cut : {false, true}) {
      auto requests = ragged(KeyLayout::kBlocked);
      for (const std::int64_t head : {5, 2, 4}) {  // of both KV heads
        requests[0]->query[static_cast<std::size_t>(head * kDim)] =
            std::numeric_limits<float>::quiet_NaN();
      }
      const Counted counted = run(requests, 3, is_cut, division);
      ASSERT_EQ(counted.errors.size(), requests.size());
      EXPECT_EQ(counted.errors[1], nullptr);
      EXPECT_EQ(counted.errors[2], nullptr);
      ASSERT_NE(counted.errors[0], nullptr) << "NaN logits went unnoticed";
      try {
        std::rethrow_exception(counted.errors[0]);
      } catch (const NumericError& error) {
        EXPECT_NE(std::string(error.what()).find("layer 0, query head 2"), std::string::npos)
            << error.what();
      }
      requests.erase(requests.begin());
      expect_same(requests, expected);
    }
  }
}

/// Sees whole rows and takes the last tokens.
class LastTokens : public TokenSelector {
 public:
  std::string_view name() const override { return "last"; }
  SelectionStrategy strategy() const override { return SelectionStrategy::kPostQkt; }
  void select(std::int64_t /*layer*/,
              std::int64_t /*query_head*/,
              std::span<const float> logits,
              std::span<std::int32_t> positions,
              std::span<float> values,
              std::vector<float>& /*scratch*/) const override {
    const std::size_t first = logits.size() - positions.size();
    for (std::size_t i = 0; i < positions.size(); ++i) {
      positions[i] = static_cast<std::int32_t>(first + i);
      values[i] = logits[first + i];
    }
  }
};

TEST(Ranges, GiveAnySelectorTheWholeRowOfLogits) {
  Request request(KeyLayout::kBlocked, 9999, 3);
  WorkerPool pool({.cpus = {-1, -1}});
  TraceRecorder trace;
  CpuStage stage(pool, kernels::cpu_kernels(kernels::resolve_isa("auto")), config(), trace);
  stage.reserve(kCapacity);
  const LastTokens selector;
  HostJobBatch batch;
  batch.layer = 0;
  batch.jobs = {request.job(selector, /*is_cut=*/true)};
  stage.submit(batch);
  stage.wait(batch);
  for (std::int64_t head = 0; head < kHeads; ++head) {
    for (std::int64_t j = 0; j < kChosen; ++j) {
      const auto at = static_cast<std::size_t>(head * kChosen + j);
      const std::int64_t position = 9999 - kChosen + j;
      ASSERT_EQ(request.positions[at], position);
      const auto key = static_cast<const float*>(request.store.values(0, head / kPerGroup).data) +
                       position * kDim;  // V equals K here
      double expected = 0.0;
      for (std::int64_t d = 0; d < kDim; ++d) {
        expected += static_cast<double>(request.query[static_cast<std::size_t>(head * kDim + d)]) *
                    static_cast<double>(key[d]);
      }
      // 16 products and sums of numbers of size 3, and one division by 4, in float32:
      // 17 roundings of at most 2^-24 of a sum of magnitudes below 16 * 9 / 4.
      ASSERT_NEAR(request.logits[at], expected / 4.0, 17.0 * 36.0 / (1 << 24));
    }
  }
}

/// Counts on which CPUs the heads are finished.
class CpuCounter final : public LastTokens {
 public:
  explicit CpuCounter(std::vector<int> cpus) : cpus_(std::move(cpus)) {}
  void select(std::int64_t layer,
              std::int64_t query_head,
              std::span<const float> logits,
              std::span<std::int32_t> positions,
              std::span<float> values,
              std::vector<float>& scratch) const override {
    LastTokens::select(layer, query_head, logits, positions, values, scratch);
    const bool is_home = sched_getcpu() == cpus_[static_cast<std::size_t>(query_head / kPerGroup)];
    (is_home ? at_home : elsewhere) += 1;
  }
  mutable std::atomic<std::int64_t> at_home{0};
  mutable std::atomic<std::int64_t> elsewhere{0};

 private:
  std::vector<int> cpus_;  ///< of each KV head
};

/// Both workers always hold one task each, so that neither has time to help the other.
class Meeting final : public PipelineProbe {
 public:
  void at_seam() override { both_.arrive_and_wait(); }

 private:
  std::barrier<> both_{2};
};

TEST(NodeDivision, RunsTheTasksOfAHeadOnItsNode) {
  std::vector<int> cpus = available_cpus();
  if (cpus.size() < 2) GTEST_SKIP() << "one CPU cannot stand for two nodes";
  cpus.resize(2);
  const NumaDivision division =
      divide_heads({{0, {cpus[0]}, 1, 1}, {1, {cpus[1]}, 1, 1}}, cpus, kKvHeads);
  ASSERT_EQ(division.parts.size(), 2U);
  for (const bool is_cut : {false, true}) {
    auto requests = ragged(KeyLayout::kBlocked);
    WorkerPool pool({.cpus = cpus});
    TraceRecorder trace;
    Meeting meeting;
    CpuStage stage(pool,
                   kernels::cpu_kernels(kernels::resolve_isa("auto")),
                   config(),
                   trace,
                   &meeting,
                   division);
    stage.reserve(kCapacity);
    const CpuCounter selector(cpus);
    HostJobBatch batch;
    batch.layer = 0;
    for (auto& request : requests) batch.jobs.push_back(request->job(selector, is_cut));
    for (int step = 0; step < 3; ++step) {
      stage.submit(batch);
      stage.wait(batch);
    }
    EXPECT_EQ(selector.at_home, 3 * 3 * kHeads);
    EXPECT_EQ(selector.elsewhere, 0);
  }
}

/// Jobs of `requests`, which choose by logits.
void add_jobs(HostJobBatch& batch,
              std::vector<std::unique_ptr<Request>>& requests,
              const std::vector<std::unique_ptr<TokenSelector>>& selectors) {
  batch.layer = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    batch.jobs.push_back(requests[i]->job(*selectors[i], /*is_cut=*/true));
  }
}

/// A stage of its own pool, for the tests' requests.
struct StageOf {
  explicit StageOf(std::size_t workers)
      : pool({.cpus = std::vector<int>(workers, -1)}),
        stage(pool, kernels::cpu_kernels(kernels::resolve_isa("auto")), config(), trace) {
    stage.reserve(kCapacity);
  }

  WorkerPool pool;
  TraceRecorder trace;
  CpuStage stage;
};

TEST(JobsThatWaitForADevice, WaitOnceForAllOfThemAndGiveTheSameBits) {
  auto expected = ragged(KeyLayout::kBlocked);
  run(expected, 1, /*is_cut=*/false);
  auto requests = ragged(KeyLayout::kBlocked);
  StageOf of(2);
  CpuStage& stage = of.stage;
  const auto selectors = top_k_of_each(requests.size());
  HostJobBatch batch;
  add_jobs(batch, requests, selectors);
  std::atomic<int> waits{0};
  batch.wait_for_device = [&waits] { ++waits; };
  for (int step = 1; step <= 3; ++step) {
    stage.submit(batch);
    stage.wait(batch);
    EXPECT_EQ(waits, step);
    expect_same(requests, expected);
  }
}

TEST(JobsThatWaitForADevice, LeaveTheWorkersToOthersMeanwhile) {
  auto late = ragged(KeyLayout::kBlocked);
  auto ready = ragged(KeyLayout::kBlocked);
  StageOf of(1);
  CpuStage& stage = of.stage;
  const auto selectors = top_k_of_each(late.size());
  HostJobBatch waiting;
  HostJobBatch other;
  add_jobs(waiting, late, selectors);
  add_jobs(other, ready, selectors);
  std::promise<void> device;
  waiting.wait_for_device = [&device] { device.get_future().wait(); };
  stage.submit(waiting);
  stage.submit(other);
  stage.wait(other);  // would hang if the only worker waited for the device
  device.set_value();
  stage.wait(waiting);
  expect_same(late, ready);
}

TEST(JobsThatWaitForADevice, AllFailByWhatTheDeviceSays) {
  auto requests = ragged(KeyLayout::kBlocked);
  StageOf of(1);
  CpuStage& stage = of.stage;
  const auto selectors = top_k_of_each(requests.size());
  HostJobBatch batch;
  add_jobs(batch, requests, selectors);
  batch.wait_for_device = [] { throw DeviceError("the device is gone"); };
  stage.submit(batch);
  stage.wait(batch);
  for (std::size_t job = 0; job < batch.jobs.size(); ++job) {
    ASSERT_NE(batch.error(job), nullptr);
    EXPECT_THROW(std::rethrow_exception(batch.error(job)), DeviceError);
  }
  batch.wait_for_device = [] {};  // nothing of it is left for the next
  stage.submit(batch);
  stage.wait(batch);
  EXPECT_EQ(batch.error(0), nullptr);
}

TEST(NodeDivision, LeavesTasksOfABusyNodeToTheOthers) {
  auto expected = ragged(KeyLayout::kBlocked);
  run(expected, 1, /*is_cut=*/false);
  auto requests = ragged(KeyLayout::kBlocked);
  WorkerPool pool({.cpus = {-1, -1}});
  TraceRecorder trace;
  CpuStage stage(pool,
                 kernels::cpu_kernels(kernels::resolve_isa("auto")),
                 config(),
                 trace,
                 nullptr,
                 division_of({1, 1}, 2));
  stage.reserve(kCapacity);
  std::atomic<bool> released{false};
  TaskGroup busy;  // holds one of the two workers
  busy.assign(
      [](void* flag, std::int64_t /*index*/, int /*worker*/) {
        static_cast<std::atomic<bool>*>(flag)->wait(false);
      },
      &released,
      1);
  pool.submit(busy);
  const auto selectors = top_k_of_each(requests.size());
  HostJobBatch batch;
  batch.layer = 0;
  for (std::size_t i = 0; i < requests.size(); ++i) {
    batch.jobs.push_back(requests[i]->job(*selectors[i], /*is_cut=*/true));
  }
  stage.submit(batch);
  stage.wait(batch);
  released = true;
  released.notify_all();
  pool.wait(busy);
  expect_same(requests, expected);
}

}  // namespace
}  // namespace hybridgen
