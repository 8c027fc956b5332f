// SPDX-License-Identifier: Apache-2.0
// Numbers that can be checked by hand, and identities of attention over split token sets, through
// the pieces the pipeline is made of: host jobs, their staging, and the merge on the device.
//
// The toy: one head, D = 1, q = 1, keys (0, ln 2, 2 ln 2, 0), values (8, 0, 2, 16). The weights are
// (1, 2, 4, 1) / 8 and full attention gives 4.
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/topk.h>
#include <ATen/ops/zeros.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <functional>
#include <limits>
#include <memory>
#include <numbers>

#include "device/device_context.h"
#include "device/rope_table.h"
#include "kernels/cpu_kernels.h"
#include "kernels/gumbel.h"
#include "parts/gumbel_scores.h"
#include "pipeline/cpu_stage.h"
#include "pipeline/host_staging.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

constexpr auto kLn2 = std::numbers::ln2_v<float>;
constexpr double kExact = 1e-6;  // a few roundings of float32 numbers of size 1 to 10
constexpr double kMinusInfinity = -std::numeric_limits<double>::infinity();

constexpr Payload kLogits = Payload::kLogitsAndValues;
constexpr Payload kRescored = Payload::kKeysAndValues;
constexpr Payload kStreamed = Payload::kKeysAndValues;
constexpr Payload kAttended = Payload::kPartialAttention;

/// One decode row; the first `num_offloaded` tokens are on the host.
struct Problem {
  at::Tensor query;   ///< [1, H, D]
  at::Tensor keys;    ///< [G, n, D]
  at::Tensor values;  ///< [G, n, D]
  std::int64_t num_offloaded = 0;

  std::int64_t heads() const { return query.size(1); }
  std::int64_t groups() const { return keys.size(0); }
  std::int64_t per_group() const { return heads() / groups(); }
  std::int64_t dim() const { return query.size(2); }
  std::int64_t num_tokens() const { return keys.size(1); }
  std::int64_t num_resident() const { return num_tokens() - num_offloaded; }

  ModelConfig config() const {
    ModelConfig result = testing::tiny_config();
    result.num_layers = 1;
    result.num_heads = heads();
    result.num_kv_heads = groups();
    result.head_dim = dim();
    return result;
  }
  /// Softmax weights over all tokens: float64 [H, n].
  at::Tensor weights() const { return at::softmax(logits(), -1); }
  at::Tensor logits() const {
    const at::Tensor repeated = keys.to(at::kDouble).repeat_interleave(per_group(), 0);
    return at::matmul(repeated, query.select(0, 0).to(at::kDouble).unsqueeze(-1)).squeeze(-1) /
           std::sqrt(static_cast<double>(dim()));
  }
  /// Output with weights [H, n]: float64 [H, D].
  at::Tensor aggregate(const at::Tensor& weights) const {
    const at::Tensor repeated = values.to(at::kDouble).repeat_interleave(per_group(), 0);
    return at::matmul(weights.unsqueeze(1), repeated).squeeze(1);
  }
};

Problem toy(std::int64_t num_offloaded = 2) {
  return {.query = at::ones({1, 1, 1}),
          .keys = at::tensor({0.0F, kLn2, 2 * kLn2, 0.0F}).view({1, 4, 1}),
          .values = at::tensor({8.0F, 0.0F, 2.0F, 16.0F}).view({1, 4, 1}),
          .num_offloaded = num_offloaded};
}

Problem random_problem(std::int64_t num_tokens, std::int64_t num_offloaded) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(11);
  const auto normal = [&](at::IntArrayRef shape) { return at::randn(shape, generator); };
  return {.query = normal({1, 4, 8}) * 2.0,
          .keys = normal({2, num_tokens, 8}),
          .values = normal({2, num_tokens, 8}),
          .num_offloaded = num_offloaded};
}

/// Plans the tokens it was told, as many as they are.
class FixedPlan final : public TokenSelector {
 public:
  explicit FixedPlan(std::vector<std::int32_t> tokens) : tokens_(std::move(tokens)) {}
  std::string_view name() const override { return "fixed"; }
  SelectionStrategy strategy() const override { return SelectionStrategy::kPreQkt; }
  std::span<const std::int32_t> plan(const PlanContext& /*context*/,
                                     std::vector<std::int32_t>& /*scratch*/) const override {
    return tokens_;
  }

 private:
  std::vector<std::int32_t> tokens_;
};

/// What a host job does for a problem, and what the device makes of it.
class Split {
 public:
  /// `count`: tokens chosen per query head.
  Split(Problem problem,
        Payload payload,
        std::int64_t count,
        const Chooser& chooser = EveryToken{},
        KeyLayout layout = KeyLayout::kRows)
      : problem_(std::move(problem)),
        config_(problem_.config()),
        store_({.num_layers = 1,
                .num_kv_heads = problem_.groups(),
                .head_dim = problem_.dim(),
                .capacity = problem_.num_offloaded,
                .key_layout = layout}),
        stage_(pool_, kernels::cpu_kernels(kernels::resolve_isa("auto")), config_, trace_) {
    const std::int64_t n_c = problem_.num_offloaded;
    const std::int64_t dim = problem_.dim();
    const std::int64_t stride = problem_.num_tokens() * dim;
    store_.grow(store_.shape().capacity);
    store_.write(0,
                 {0, n_c},
                 {problem_.keys.const_data_ptr(), stride, dim},
                 {problem_.values.const_data_ptr(), stride, dim});
    job_.store = &store_;
    job_.payload = payload;
    job_.chooser = chooser;
    job_.query = job_.only_copies() ? nullptr : problem_.query.const_data_ptr();
    job_.num_offloaded = n_c;
    job_.num_chosen = count;
    staging_ = HostStaging(
        config_,
        DType::kFloat32,
        device_,
        {.max_chosen = count,
         .union_rows = job_.is_shared() ? count : std::min(n_c, count * problem_.per_group()),
         .has_own_choices = !job_.is_shared(),
         .has_keys = payload == Payload::kKeysAndValues,
         .num_attended = payload == Payload::kPartialAttention ? n_c : 0});
    job_.buffers = staging_.buffers();
    stage_.reserve(n_c);
  }

  /// For ChosenOnDevice: what the device planned for KV head 0.
  void plan(std::vector<std::int32_t> tokens) {
    plan_ = std::move(tokens);
    job_.chooser = ChosenOnDevice{.places = plan_.data(), .most = std::ssize(plan_)};
  }

  void run_host() {
    batch_.layer = 0;
    batch_.jobs = {job_};
    stage_.submit(batch_);
    stage_.wait(batch_);
    staging_.ship(batch_.jobs.front());
  }

  /// [H, D] after the merge with the resident tokens; `with_host`: false if there was no host job.
  at::Tensor merge(const DeviceOps& ops, bool with_host = true) {
    const at::Tensor keys =
        problem_.keys.narrow(1, problem_.num_offloaded, problem_.num_resident()).contiguous();
    const at::Tensor values =
        problem_.values.narrow(1, problem_.num_offloaded, problem_.num_resident()).contiguous();
    at::Tensor logits = at::empty({problem_.heads() * problem_.num_resident()});
    merged_ = at::empty({problem_.heads() * (problem_.num_resident() + job_.num_chosen)});
    at::Tensor parts = at::empty({attention_scratch(
        problem_.heads(), config_.head_dim, problem_.num_resident(), job_.num_chosen)});
    AttentionItem item;
    item.keys = &keys;
    item.values = &values;
    item.num_resident = problem_.num_resident();
    item.wants_weights = true;
    item.parts = &parts;
    item.payload = with_host ? &staging_.payload() : nullptr;
    item.resident_logits = &logits;
    item.merged_logits = &merged_;
    at::Tensor out = at::empty_like(problem_.query);
    const AttentionBatch batch{.items = {&item, 1}};
    ops.resident_logits(problem_.query, batch);
    ops.merge(problem_.query, batch, out);
    return out.select(0, 0);
  }

  at::Tensor attend(const DeviceOps& ops) {
    run_host();
    return merge(ops);
  }

  const HostJobBuffers& buffers() const { return job_.buffers; }
  float host_output() const { return *static_cast<const float*>(job_.buffers.output); }
  /// The softmax weights that the merge left, of a problem with one query head.
  std::vector<float> weights() const {
    const auto* data = merged_.const_data_ptr<float>();
    return {data, data + merged_.numel()};
  }

 private:
  Problem problem_;
  ModelConfig config_;
  HostKvStore store_;
  DeviceContext device_{"cpu"};
  TraceRecorder trace_;
  WorkerPool pool_{{.cpus = {-1}}};
  CpuStage stage_;
  HostStaging staging_;
  HostJob job_;
  std::vector<std::int32_t> plan_;
  HostJobBatch batch_;
  at::Tensor merged_;
};

class Example : public ::testing::TestWithParam<std::string> {
 protected:
  double attend(Payload payload,
                std::int64_t count,
                const Chooser& chooser = EveryToken{},
                KeyLayout layout = KeyLayout::kRows) {
    return Split(toy(), payload, count, chooser, layout).attend(*ops_).item<double>();
  }

  std::unique_ptr<DeviceOps> ops_ = GetParam() == "aten" ? make_aten_ops() : make_cpu_ops("auto");
  std::unique_ptr<TokenSelector> top_k_ =
      make_top_k_selector({.num_kv_heads = 2, .query_heads_per_kv_head = 2});
  std::unique_ptr<TokenSelector> recent_ = make_sinks_recent_selector(0);
  SelectedHere largest_{.selector = top_k_.get()};
  PlannedHere newest_{recent_.get()};
};

INSTANTIATE_TEST_SUITE_P(Operations,
                         Example,
                         ::testing::Values("kernels", "aten"),
                         [](const auto& name) { return name.param; });

constexpr double kFull = 4.0;
constexpr double kWithoutToken0 = 24.0 / 7.0;  // weights (2, 4, 1) / 7

// ---- The toy, tokens 0 and 1 on the host, 2 and 3 on the device

TEST_P(Example, LogitsAndValuesOfTheLargestLogit) {
  for (const KeyLayout layout : {KeyLayout::kBlocked, KeyLayout::kRows}) {
    EXPECT_NEAR(attend(kLogits, 1, largest_, layout), kWithoutToken0, kExact);
    EXPECT_NEAR(attend(kLogits, 2, largest_, layout), kFull, kExact);
  }
}

TEST_P(Example, LogitsAndValuesOfPlannedTokens) {
  for (const KeyLayout layout : {KeyLayout::kBlocked, KeyLayout::kRows}) {
    EXPECT_NEAR(attend(kLogits, 1, newest_, layout), kWithoutToken0, kExact);
    EXPECT_NEAR(attend(kLogits, 2, newest_, layout), kFull, kExact);
  }
}

TEST_P(Example, KeysAndValuesOfChosenTokensAreScoredOnTheDevice) {
  for (const Chooser& chooser : {Chooser{largest_}, Chooser{newest_}}) {
    EXPECT_NEAR(attend(kRescored, 1, chooser), kWithoutToken0, kExact) << chooser.index();
    EXPECT_NEAR(attend(kRescored, 2, chooser), kFull, kExact) << chooser.index();
  }
}

TEST_P(Example, KeysAndValuesOfAllTokensNeedNoQuery) {
  EXPECT_NEAR(attend(kStreamed, 2), kFull, kExact);
}

TEST_P(Example, KeysAndValuesOfTokensThatTheDevicePlanned) {
  Split one(toy(), kRescored, 1, ChosenOnDevice{});
  one.plan({1});
  EXPECT_NEAR(one.attend(*ops_).item<double>(), kWithoutToken0, kExact);
  Split both(toy(), kRescored, 2, ChosenOnDevice{});
  both.plan({0, 1});
  EXPECT_NEAR(both.attend(*ops_).item<double>(), kFull, kExact);
}

TEST_P(Example, PartialAttentionOfTheHostMergesByLogSumExp) {
  for (const KeyLayout layout : {KeyLayout::kBlocked, KeyLayout::kRows}) {
    Split split(toy(), kAttended, 2, EveryToken{}, layout);
    const double out = split.attend(*ops_).item<double>();
    EXPECT_NEAR(split.host_output(), 8.0 / 3.0, kExact);
    EXPECT_NEAR(split.buffers().lse[0], std::numbers::ln2 + std::log(1.5), kExact);  // ln 3
    EXPECT_NEAR(out, kFull, kExact);
  }
}

TEST_P(Example, PartialAttentionOverPlannedTokens) {
  Split split(toy(), kAttended, 2, newest_);
  EXPECT_NEAR(split.attend(*ops_).item<double>(), kFull, kExact);
  const FixedPlan token_1({1});
  Split sparse(toy(), kAttended, 2, PlannedHere{&token_1});
  EXPECT_NEAR(sparse.attend(*ops_).item<double>(), kWithoutToken0, kExact);
  EXPECT_NEAR(sparse.host_output(), 0.0, kExact);
  EXPECT_NEAR(sparse.buffers().lse[0], kLn2, kExact);
}

TEST_P(Example, PartialAttentionOverNoTokenChangesNothing) {
  const FixedPlan none({});
  Split split(toy(), kAttended, 2, PlannedHere{&none});
  const double out = split.attend(*ops_).item<double>();
  EXPECT_EQ(split.host_output(), 0.0F);
  EXPECT_EQ(split.buffers().lse[0], kMinusInfinity);
  EXPECT_NEAR(out, 24.0 / 5.0, kExact);  // tokens 2 and 3 alone
}

TEST_P(Example, WithoutAHostJobTheResidentTokensAreAll) {
  Split split(toy(), kLogits, 1, largest_);
  EXPECT_NEAR(split.merge(*ops_, /*with_host=*/false).item<double>(), 24.0 / 5.0, kExact);
}

TEST_P(Example, WeightsAreLeftInTokenOrder) {
  Split split(toy(), kLogits, 2, largest_);
  split.attend(*ops_);
  const std::array<float, 4> expected = {0.125F, 0.25F, 0.5F, 0.125F};
  for (std::size_t token = 0; token < expected.size(); ++token) {
    EXPECT_NEAR(split.weights()[token], expected[token], kExact) << "token " << token;
  }
}

TEST_P(Example, AnySplitGivesFullAttention) {
  for (const std::int64_t offloaded : {1, 2, 3}) {
    for (const auto& [payload, chooser] : {std::pair{kLogits, Chooser{largest_}},
                                           std::pair{kRescored, Chooser{largest_}},
                                           std::pair{kStreamed, Chooser{}},
                                           std::pair{kAttended, Chooser{}}}) {
      Split split(toy(offloaded), payload, offloaded, chooser);
      EXPECT_NEAR(split.attend(*ops_).item<double>(), kFull, kExact) << offloaded << " offloaded";
    }
  }
}

TEST_P(Example, TheHostMayHoldEveryToken) {
  Split split(toy(4), kAttended, 4);
  EXPECT_NEAR(split.attend(*ops_).item<double>(), kFull, kExact);
  EXPECT_NEAR(split.buffers().lse[0], std::log(8.0), kExact);
}

// ---- Partial attention in any order

PartialAttention part_of_toy(const DeviceOps& ops, std::int64_t first, std::int64_t count) {
  const Problem problem = toy();
  return ops.partial_attention(problem.query,
                               problem.keys.narrow(1, first, count).contiguous(),
                               problem.values.narrow(1, first, count).contiguous(),
                               /*causal=*/false);
}

TEST_P(Example, PartsOfTheToyHaveTheirOwnOutputsAndLogSumExps) {
  const PartialAttention host = part_of_toy(*ops_, 0, 2);
  EXPECT_NEAR(host.out.item<double>(), 8.0 / 3.0, kExact);
  EXPECT_NEAR(host.lse.item<double>(), std::log(3.0), kExact);
  const PartialAttention device = part_of_toy(*ops_, 2, 2);
  EXPECT_NEAR(device.out.item<double>(), 24.0 / 5.0, kExact);
  EXPECT_NEAR(device.lse.item<double>(), std::log(5.0), kExact);
  PartialAttention sum = host;
  ops_->add_partial(sum, device);
  EXPECT_NEAR(sum.out.item<double>(), kFull, kExact);
  EXPECT_NEAR(sum.lse.item<double>(), std::log(8.0), kExact);
}

TEST_P(Example, ThreePartsMergeInAnyOrder) {
  const std::array<PartialAttention, 3> parts = {
      part_of_toy(*ops_, 0, 1), part_of_toy(*ops_, 1, 2), part_of_toy(*ops_, 3, 1)};
  std::array<std::size_t, 3> order = {0, 1, 2};
  do {
    PartialAttention sum;
    for (const std::size_t part : order) {
      ops_->add_partial(sum, {parts[part].out.clone(), parts[part].lse});
    }
    EXPECT_NEAR(sum.out.item<double>(), kFull, kExact);
    EXPECT_NEAR(sum.lse.item<double>(), std::log(8.0), kExact);
  } while (std::ranges::next_permutation(order).found);
}

TEST_P(Example, APartWithoutTokensMergesAsNothing) {
  const PartialAttention empty{at::zeros({1, 1, 1}), at::full({1, 1}, kMinusInfinity)};
  for (const bool is_first : {true, false}) {
    PartialAttention sum = is_first ? empty : part_of_toy(*ops_, 0, 4);
    ops_->add_partial(sum, is_first ? part_of_toy(*ops_, 0, 4) : empty);
    EXPECT_NEAR(sum.out.item<double>(), kFull, kExact);
    EXPECT_NEAR(sum.lse.item<double>(), std::log(8.0), kExact);
  }
}

// ---- Grouped queries

TEST_P(Example, QueryHeadsOfOneKvHeadDoNotSeeEachOthersTokens) {
  // Head 0 likes token 0 and dislikes token 1; head 1 the other way round; token 2 is resident.
  const Problem problem{.query = at::tensor({1.0F, -1.0F}).view({1, 2, 1}),
                        .keys = at::tensor({2.0F, -2.0F, 0.0F}).view({1, 3, 1}),
                        .values = at::tensor({10.0F, 20.0F, 0.0F}).view({1, 3, 1}),
                        .num_offloaded = 2};
  const double weight = std::exp(2.0) / (std::exp(2.0) + 1.0);
  for (const Payload payload : {kLogits, kRescored}) {
    Split split(problem, payload, 1, largest_);
    const at::Tensor out = split.attend(*ops_);
    EXPECT_EQ(split.buffers().union_sizes[0], 2);
    EXPECT_NEAR(out[0].item<double>(), weight * 10.0, 10 * kExact);
    EXPECT_NEAR(out[1].item<double>(), weight * 20.0, 10 * kExact);
  }
}

// ---- What is lost by leaving tokens out

TEST_P(Example, TheErrorIsBoundedByTheMassOfTheDroppedTokens) {
  const Problem problem = random_problem(24, 16);
  const at::Tensor weights = problem.weights();
  const at::Tensor full = problem.aggregate(weights);
  const double longest =
      at::linalg_vector_norm(problem.values.to(at::kDouble), 2, at::IntArrayRef{-1})
          .max()
          .item<double>();
  std::vector<double> mass_before(static_cast<std::size_t>(problem.heads()), 1.0);
  for (std::int64_t k = 1; k <= problem.num_offloaded; ++k) {
    Split split(problem, kLogits, k, largest_, KeyLayout::kBlocked);
    const at::Tensor out = split.attend(*ops_);
    for (std::int64_t head = 0; head < problem.heads(); ++head) {
      const at::Tensor offloaded = weights[head].narrow(0, 0, problem.num_offloaded);
      double mass = offloaded.sum().item<double>();
      for (std::int64_t j = 0; j < k; ++j) {
        mass -= offloaded[split.buffers().positions[head * k + j]].item<double>();
      }
      const double error = (out[head] - full[head]).norm().item<double>();
      EXPECT_LE(error, 2.0 * mass * longest + kExact) << "k " << k << ", head " << head;
      // Of all sets of k tokens the largest logits leave the least behind, and less with every k.
      const double least =
          std::get<0>(at::topk(offloaded, problem.num_offloaded - k, -1, /*largest=*/false))
              .sum()
              .item<double>();
      EXPECT_NEAR(mass, least, kExact) << "k " << k << ", head " << head;
      double& before = mass_before[static_cast<std::size_t>(head)];
      EXPECT_LE(mass, before + kExact) << "k " << k << ", head " << head;
      before = mass;
    }
  }
  for (const double mass : mass_before) {
    EXPECT_NEAR(mass, 0.0, kExact);  // k = n_c drops nothing
  }
}

TEST_P(Example, AttentionOverAChosenSetIsSoftmaxOverThatSet) {
  const Problem problem = random_problem(24, 16);
  const FixedPlan chosen({0, 3, 4, 9, 15});
  at::Tensor logits = problem.logits();
  for (std::int64_t token = 0; token < problem.num_offloaded; ++token) {
    if (token != 0 && token != 3 && token != 4 && token != 9 && token != 15) {
      logits.select(1, token).fill_(kMinusInfinity);
    }
  }
  const at::Tensor expected = problem.aggregate(at::softmax(logits, -1));
  for (const Payload payload : {kLogits, kRescored, kAttended}) {
    Split split(problem, payload, 5, PlannedHere{&chosen});
    EXPECT_LT((split.attend(*ops_) - expected).abs().max().item<double>(), kExact);
  }
}

TEST_P(Example, TheOrderOfTheTokensDoesNotMatter) {
  // So caches that drop tokens may keep the others in any slots.
  const Problem problem = random_problem(24, 16);
  const at::Tensor expected = Split(problem, kStreamed, 16).attend(*ops_);
  Problem shuffled = problem;
  const at::Tensor order = at::tensor(
      {7, 0, 15, 3, 12, 1, 9, 4, 14, 2, 11, 5, 13, 6, 10, 8, 23, 16, 20, 18, 22, 17, 21, 19},
      at::kLong);
  shuffled.keys = problem.keys.index_select(1, order);
  shuffled.values = problem.values.index_select(1, order);
  const at::Tensor actual = Split(shuffled, kStreamed, 16).attend(*ops_);
  EXPECT_LT((actual - expected).abs().max().item<double>(), kExact);
}

// ---- Rotary positions

TEST_P(Example, AddingAConstantToAllPositionsChangesNoLogit) {
  const ModelConfig config = testing::tiny_config();
  const RopeTable table = build_rope_table(config, 256, at::kCPU);
  const Problem problem = random_problem(20, 0);
  const at::Tensor vectors = at::cat({problem.keys, problem.values}, 2).permute({1, 0, 2});
  ASSERT_EQ(vectors.size(2), config.head_dim);
  const auto logits = [&](std::int64_t shift) {
    at::Tensor rotated = vectors.contiguous().clone();  // [20 rows, 2 heads, D]
    ops_->rotate(table, at::arange(shift, shift + 20, at::kLong), rotated);
    const at::Tensor heads = rotated.permute({1, 0, 2});
    return at::matmul(heads, heads.transpose(1, 2));  // of every token with every other
  };
  const at::Tensor original = logits(0);
  for (const std::int64_t shift : {1, 37, 236}) {
    // Angles of far positions are rounded to float32.
    EXPECT_LT((logits(shift) - original).abs().max().item<double>(), 5e-4) << shift;
  }
  EXPECT_GT((logits(0) - at::matmul(vectors.permute({1, 0, 2}), vectors.permute({1, 2, 0})))
                .abs()
                .max()
                .item<double>(),
            0.1);  // the control: rotation does something
}

// ---- Sums of a prompt's weights

struct Prompt {
  at::Tensor query;  ///< [T, H, D]
  at::Tensor keys;   ///< [G, T, D]

  std::int64_t rows() const { return query.size(0); }
  std::int64_t heads() const { return query.size(1); }
  /// Causal, scaled: float64 [H, T, T].
  at::Tensor logits() const {
    const std::int64_t per_group = heads() / keys.size(0);
    const at::Tensor z =
        at::matmul(query.to(at::kDouble).permute({1, 0, 2}),
                   keys.to(at::kDouble).repeat_interleave(per_group, 0).transpose(1, 2)) /
        std::sqrt(static_cast<double>(query.size(2)));
    return hide_future(z);
  }
  at::Tensor hide_future(const at::Tensor& z) const {
    return z.masked_fill(at::ones({rows(), rows()}, at::kBool).triu(1), kMinusInfinity);
  }
};

Prompt random_prompt(std::int64_t rows) {
  auto generator = at::make_generator<at::CPUGeneratorImpl>(5);
  return {.query = at::randn({rows, 4, 8}, generator), .keys = at::randn({2, rows, 8}, generator)};
}

double largest_difference(const at::Tensor& a, const at::Tensor& b) {
  return (a - b).abs().max().item<double>();
}

constexpr double kSumTolerance = 2e-5;  // per token, of sums over up to a hundred rows

class ColumnSums : public ::testing::TestWithParam<std::string> {
 protected:
  at::Tensor column_sums(const at::Tensor& query,
                         const at::Tensor& keys,
                         bool causal,
                         const at::Tensor& lse) const {
    return ops_->column_sums(query, keys, lse.to(at::kFloat), causal);
  }

  std::unique_ptr<DeviceOps> ops_ = GetParam() == "aten" ? make_aten_ops() : make_cpu_ops("auto");
};

INSTANTIATE_TEST_SUITE_P(Operations,
                         ColumnSums,
                         ::testing::Values("kernels", "aten"),
                         [](const auto& name) { return name.param; });

TEST_P(ColumnSums, AreThoseOfTheSoftmaxMatrix) {
  const Prompt prompt = random_prompt(50);
  const at::Tensor z = prompt.logits();
  const at::Tensor sums =
      column_sums(prompt.query, prompt.keys, /*causal=*/true, at::logsumexp(z, {-1}));
  EXPECT_LT(largest_difference(sums, at::softmax(z, -1).sum(1)), kSumTolerance);
}

TEST_P(ColumnSums, OfARowEachAddUpToTheRows) {
  const Prompt prompt = random_prompt(50);
  const at::Tensor sums =
      column_sums(prompt.query, prompt.keys, /*causal=*/true, at::logsumexp(prompt.logits(), {-1}));
  for (std::int64_t head = 0; head < prompt.heads(); ++head) {
    EXPECT_NEAR(sums[head].sum().item<double>(), 50.0, 50 * kSumTolerance);
  }
}

TEST_P(ColumnSums, DoNotDependOnHowThePromptIsSplit) {
  const Prompt prompt = random_prompt(50);
  const at::Tensor lse = at::logsumexp(prompt.logits(), {-1});
  const at::Tensor whole = column_sums(prompt.query, prompt.keys, /*causal=*/true, lse);
  for (const std::int64_t first : {1, 20, 49}) {
    const auto chunk = [&](std::int64_t begin, std::int64_t end) {
      return prompt.query.narrow(0, begin, end - begin);
    };
    const auto keys = [&](std::int64_t begin, std::int64_t end) {
      return prompt.keys.narrow(1, begin, end - begin);
    };
    const at::Tensor old_rows =
        column_sums(chunk(0, first), keys(0, first), true, lse.narrow(1, 0, first));
    const at::Tensor late = lse.narrow(1, first, 50 - first);
    const at::Tensor seen = column_sums(chunk(first, 50), keys(0, first), false, late);
    const at::Tensor own = column_sums(chunk(first, 50), keys(first, 50), true, late);
    EXPECT_LT(largest_difference(at::cat({old_rows + seen, own}, 1), whole), kSumTolerance)
        << "split at " << first;
  }
}

TEST_P(ColumnSums, OfALongPromptAreTakenInBlocksOfRows) {
  // 4 heads * 1300 * 1300 logits are more than the 2^22 that are held at a time.
  const Prompt prompt = random_prompt(1300);
  const at::Tensor z = prompt.logits();
  const at::Tensor sums =
      column_sums(prompt.query, prompt.keys, /*causal=*/true, at::logsumexp(z, {-1}));
  EXPECT_LT(largest_difference(sums, at::softmax(z, -1).sum(1)), 1e-4);
  EXPECT_NEAR(sums[0].sum().item<double>(), 1300.0, 0.01);
}

KeyformerScore noisy_score() {
  KeyformerScore score;
  score.tau_init = 1.5;
  score.seed = 3;
  score.request = 8;
  return score;
}

TEST(KeyformerSums, AreThoseOfTheNoisyTemperedSoftmax) {
  const Prompt prompt = random_prompt(30);
  const KeyformerScore score = noisy_score();
  constexpr std::int64_t kLayer = 2;
  at::Tensor noise = at::empty({prompt.heads(), 30, 30}, at::kFloat);
  for (std::int64_t head = 0; head < prompt.heads(); ++head) {
    const std::int64_t kv_head = head / (prompt.heads() / prompt.keys.size(0));
    for (std::int64_t row = 0; row < 30; ++row) {
      kernels::gumbel_row({score.seed, score.request, kLayer, kv_head, row},
                          0,
                          30,
                          noise.mutable_data_ptr<float>() + (head * 30 + row) * 30);
    }
  }
  const at::Tensor expected = at::softmax((prompt.logits() + noise) / 1.5, -1).sum(1);
  const auto sums = keyformer_sums(prompt.query, {{prompt.keys, 0, true}}, score, kLayer, 0);
  ASSERT_EQ(sums.size(), 1U);
  EXPECT_LT(largest_difference(sums[0], expected), kSumTolerance);
  for (std::int64_t head = 0; head < prompt.heads(); ++head) {
    EXPECT_NEAR(sums[0][head].sum().item<double>(), 30.0, 30 * kSumTolerance);
  }
}

TEST(KeyformerSums, AndTheirNoiseDoNotDependOnHowThePromptIsSplit) {
  const Prompt prompt = random_prompt(30);
  const KeyformerScore score = noisy_score();
  const at::Tensor whole =
      keyformer_sums(prompt.query, {{prompt.keys, 0, true}}, score, 0, 0).front();
  for (const std::int64_t first : {1, 11, 29}) {
    const at::Tensor old_keys = prompt.keys.narrow(1, 0, first);
    const at::Tensor new_keys = prompt.keys.narrow(1, first, 30 - first);
    const auto old_rows =
        keyformer_sums(prompt.query.narrow(0, 0, first), {{old_keys, 0, true}}, score, 0, 0);
    const auto new_rows = keyformer_sums(prompt.query.narrow(0, first, 30 - first),
                                         {{old_keys, 0, false}, {new_keys, first, true}},
                                         score,
                                         0,
                                         first);
    EXPECT_LT(largest_difference(at::cat({old_rows[0] + new_rows[0], new_rows[1]}, 1), whole),
              kSumTolerance)
        << "split at " << first;
  }
}

TEST(KeyformerSums, WithoutNoiseAtTemperatureOneAreThePlainOnes) {
  const Prompt prompt = random_prompt(30);
  KeyformerScore score = noisy_score();
  score.noise = false;
  score.tau_init = 1.0;
  const auto sums = keyformer_sums(prompt.query, {{prompt.keys, 0, true}}, score, 0, 0);
  const at::Tensor plain =
      make_aten_ops()->column_sums(prompt.query,
                                   prompt.keys,
                                   at::logsumexp(prompt.logits(), {-1}).to(at::kFloat),
                                   /*causal=*/true);
  EXPECT_LT(largest_difference(sums[0], plain), kSumTolerance);
}

TEST(KeyformerSums, AtAnEndlessTemperatureFavourEarlyTokens) {
  // Row i gives 1 / (i + 1) to each token it sees.
  const Prompt prompt = random_prompt(30);
  KeyformerScore score;
  score.noise = false;
  score.tau_init = 1e9;
  const at::Tensor sums =
      keyformer_sums(prompt.query, {{prompt.keys, 0, true}}, score, 0, 0).front();
  double tail = 0.0;
  for (std::int64_t token = 29; token >= 0; --token) {
    tail += 1.0 / static_cast<double>(token + 1);
    EXPECT_NEAR(sums[0][token].item<double>(), tail, kSumTolerance) << "token " << token;
  }
}

// ---- Where the tokens are

/// Tokens on the host and gone for good, of n that the caches have seen.
struct Places {
  std::int64_t offloaded = 0;
  std::int64_t dropped = 0;
};

struct Residence {
  std::string name;
  EngineOptions options;
  std::function<Places(std::int64_t n)> places;
};

void PrintTo(const Residence& residence, std::ostream* out) { *out << residence.name; }

Residence residence(const std::string& method,
                    OptionMap config,
                    std::function<Places(std::int64_t n)> places) {
  Residence result{method, testing::options(method), std::move(places)};
  result.options.method_config = std::move(config);
  return result;
}

std::vector<Residence> residences() {
  const auto beyond = [](std::int64_t n, std::int64_t kept) {
    return std::max<std::int64_t>(n - kept, 0);
  };
  const auto on_device = [=](std::int64_t kept) {
    return [=](std::int64_t n) { return Places{0, beyond(n, kept)}; };
  };
  const auto on_host = [=](std::int64_t kept) {
    return [=](std::int64_t n) { return Places{std::min(n, kept), beyond(n, kept)}; };
  };
  const auto window = [=](std::int64_t resident) {
    return [=](std::int64_t n) { return Places{beyond(n, resident), 0}; };
  };
  const OptionValue host = std::string("host");
  Residence hybrid = residence("hybridgen", {}, window(9));
  hybrid.options.device_tokens.count = 9;
  std::vector<Residence> all = {
      residence("full", {}, on_device(1000)),
      residence("flexgen", {}, window(1)),
      residence("moe_lightning", {}, window(0)),
      residence("infinigen", {}, window(1)),
      residence("streaming_llm",
                {{"sinks", std::int64_t{2}}, {"window", std::int64_t{23}}},
                on_device(25)),
      residence("h2o", {{"heavy", std::int64_t{10}}, {"recent", std::int64_t{15}}}, on_device(25)),
      residence("keyformer", {{"kv_cache", std::int64_t{25}}}, on_device(25)),
      residence("streaming_llm",
                {{"sinks", std::int64_t{2}}, {"window", std::int64_t{23}}, {"home", host}},
                on_host(25)),
      residence("h2o",
                {{"heavy", std::int64_t{10}}, {"recent", std::int64_t{15}}, {"home", host}},
                on_host(25)),
      residence("keyformer", {{"kv_cache", std::int64_t{25}}, {"home", host}}, on_host(25)),
      hybrid,
      residence("hgca",
                {{"block", std::int64_t{4}}, {"blocks", std::int64_t{3}}},
                [=](std::int64_t n) { return Places{(beyond(n, 12) + 3) / 4 * 4, 0}; })};
  for (Residence& each : all) {
    each.name += each.options.method_config.contains("home") ? "_on_host" : "";
  }
  return all;
}

class Partition : public ::testing::TestWithParam<Residence> {};

TEST_P(Partition, HoldsAfterThePromptAndAfterEveryStep) {
  constexpr std::int64_t kPrompt = 12;  // fits HGCA's window; budgets are reached while decoding
  Engine engine(testing::tiny_model(), GetParam().options);
  SamplingOptions sampling;
  sampling.max_tokens = 40;
  const std::int64_t id = engine.add(testing::prompt(kPrompt), sampling);
  for (std::int64_t n = kPrompt; n < kPrompt + 30; ++n) {
    engine.step();
    const RequestStatistics request = engine.request_statistics(id);
    const Places expected = GetParam().places(n);
    ASSERT_EQ(request.resident_tokens + request.offloaded_tokens + request.dropped_tokens, n);
    ASSERT_EQ(request.offloaded_tokens, expected.offloaded) << "n " << n;
    ASSERT_EQ(request.dropped_tokens, expected.dropped) << "n " << n;
  }
}

INSTANTIATE_TEST_SUITE_P(Methods,
                         Partition,
                         ::testing::ValuesIn(residences()),
                         [](const auto& each) { return each.param.name; });

}  // namespace
}  // namespace hybridgen
