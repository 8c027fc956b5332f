// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "logits_test_support.h"

namespace hybridgen::kernels::test {
namespace {

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

/// A part with memory of its own.
struct OwnPart {
  OwnPart(std::int64_t queries, std::int64_t head_dim)
      : out(static_cast<std::size_t>(queries * head_dim), kNaN),
        peaks(static_cast<std::size_t>(queries), kNaN),
        sums(static_cast<std::size_t>(queries), kNaN) {}
  AttentionPart view() { return {out.data(), peaks.data(), sums.data()}; }
  friend bool operator==(const OwnPart&, const OwnPart&) = default;

  std::vector<float> out;
  std::vector<float> peaks;
  std::vector<float> sums;
};

struct Problem {
  DType dtype;
  std::int64_t head_dim;
  std::int64_t num_queries;
  std::int64_t count;
  Array keys = random_array(dtype, count* head_dim, 51);
  Array values = random_array(dtype, count* head_dim, 52);
  std::vector<float> queries = model_queries(dtype, num_queries, head_dim);

  AttendArgs args(TokenRange tokens) const {
    const auto begin = static_cast<std::size_t>(tokens.begin * head_dim) * size_of(dtype);
    AttendArgs args;
    args.dtype = dtype;
    args.queries = queries.data();
    args.num_queries = num_queries;
    args.head_dim = head_dim;
    args.keys = static_cast<const std::byte*>(keys.data()) + begin;
    args.key_stride = head_dim;
    args.values = static_cast<const std::byte*>(values.data()) + begin;
    args.value_stride = head_dim;
    args.count = tokens.size();
    return args;
  }
};

OwnPart attend(const CpuKernels& kernels, AttendArgs args) {
  OwnPart part(args.num_queries, args.head_dim);
  std::vector<float> scratch(
      static_cast<std::size_t>(attend_scratch(args.num_queries, args.head_dim)));
  args.part = part.view();
  args.scratch = scratch.data();
  kernels.attend(args);
  return part;
}

struct Merged {
  Array out;
  std::vector<float> lse;
};

Merged merge(const CpuKernels& kernels,
             DType dtype,
             std::int64_t rows,
             std::int64_t head_dim,
             std::vector<OwnPart> parts) {
  Merged merged{Array(dtype, rows * head_dim), std::vector<float>(static_cast<std::size_t>(rows))};
  std::vector<AttentionPart> views;
  for (OwnPart& part : parts) views.push_back(part.view());
  std::vector<float> shares(parts.size());
  kernels.merge_parts({.dtype = dtype,
                       .rows = rows,
                       .head_dim = head_dim,
                       .parts = views.data(),
                       .num_parts = static_cast<std::int64_t>(views.size()),
                       .shares = shares.data(),
                       .out = merged.out.data(),
                       .out_stride = head_dim,
                       .lse = merged.lse.data()});
  return merged;
}

/// Attention in float64, and what float32 arithmetic may add to it. A logit is off by
/// size * sum_error(D), and its weight relatively by as much and a few roundings of the
/// exponential.
void expect_attention(const Merged& merged, const Problem& problem) {
  const std::int64_t dim = problem.head_dim;
  for (std::int64_t q = 0; q < problem.num_queries; ++q) {
    std::vector<double> logits(static_cast<std::size_t>(problem.count));
    double logit_error = 0.0;
    for (std::int64_t t = 0; t < problem.count; ++t) {
      double size = 0.0;
      for (std::int64_t d = 0; d < dim; ++d) {
        const double term =
            static_cast<double>(problem.queries[static_cast<std::size_t>(q * dim + d)]) *
            static_cast<double>(problem.keys.at(t * dim + d));
        logits[static_cast<std::size_t>(t)] += term;
        size += std::abs(term);
      }
      logit_error = std::max(logit_error, size * sum_error(dim));
    }
    const double peak = *std::ranges::max_element(logits);
    double sum = 0.0;
    for (const double logit : logits) sum += std::exp(logit - peak);
    // Differences of logits stay below 60: rounding one costs its weight 60 * 2^-24 at most.
    const double weight_error = 2.0 * logit_error + 80.0 * unit_roundoff(DType::kFloat32);
    EXPECT_NEAR(merged.lse[static_cast<std::size_t>(q)],
                peak + std::log(sum),
                weight_error + sum_error(problem.count));
    for (std::int64_t d = 0; d < dim; ++d) {
      double expected = 0.0;
      double size = 0.0;
      for (std::int64_t t = 0; t < problem.count; ++t) {
        const double term = std::exp(logits[static_cast<std::size_t>(t)] - peak) / sum *
                            static_cast<double>(problem.values.at(t * dim + d));
        expected += term;
        size += std::abs(term);
      }
      const double tolerance = size * 2.0 * (weight_error + sum_error(problem.count)) +
                               1.01 * std::abs(expected) * unit_roundoff(problem.dtype) +
                               absolute_floor(problem.dtype);
      ASSERT_NEAR(merged.out.at(q * dim + d), expected, tolerance)
          << "head_dim " << dim << " queries " << problem.num_queries << " count " << problem.count;
    }
  }
}

class Attend : public KernelTest {
 protected:
  Merged whole(const Problem& problem) const {
    return merge(kernels(),
                 problem.dtype,
                 problem.num_queries,
                 problem.head_dim,
                 {attend(kernels(), problem.args({0, problem.count}))});
  }
  /// One query and one dimension: the logits are the keys.
  OwnPart of_logits(std::vector<float> logits, const std::vector<float>& values) const {
    Array rows(dtype(), static_cast<std::int64_t>(values.size()));
    for (std::size_t i = 0; i < values.size(); ++i) {
      rows.set(static_cast<std::int64_t>(i), values[i]);
    }
    AttendArgs args;
    args.dtype = dtype();
    args.num_queries = 1;
    args.head_dim = 1;
    args.values = rows.data();
    args.value_stride = 1;
    args.count = static_cast<std::int64_t>(logits.size());
    args.logits = logits.data();
    args.logits_stride = args.count;
    return attend(kernels(), args);
  }
};

TEST_P(Attend, IsOneSoftmaxForAnyHeadDimGroupAndCount) {
  for (const std::int64_t head_dim : {1, 5, 16, 64, 80, 112, 128}) {
    for (const std::int64_t num_queries : {1, 2, 3, 4, 5, 8, 9}) {
      for (const std::int64_t count : {1, 2, 5, 63, 64, 65, 150}) {
        const Problem problem{dtype(), head_dim, num_queries, count};
        expect_attention(whole(problem), problem);
      }
    }
  }
}

TEST_P(Attend, PartsMergeIntoOneSoftmaxOverTheirUnion) {
  const Problem problem{dtype(), 64, 3, 700};
  std::vector<OwnPart> parts;
  for (std::int64_t first = 0; first < problem.count; first += kPartTokens) {
    parts.push_back(
        attend(kernels(), problem.args({first, std::min(first + kPartTokens, problem.count)})));
  }
  parts.push_back(attend(kernels(), problem.args({0, 0})));  // without tokens
  expect_attention(merge(kernels(), dtype(), 3, 64, parts), problem);
}

TEST_P(Attend, APartDoesNotDependOnTheOtherQueryHeads) {
  for (const std::int64_t head_dim : {16, 80}) {
    const Problem problem{dtype(), head_dim, 9, 130};
    const OwnPart all = attend(kernels(), problem.args({0, 130}));
    for (std::int64_t q = 0; q < 9; ++q) {
      AttendArgs args = problem.args({0, 130});
      args.queries += q * head_dim;
      args.num_queries = 1;
      const OwnPart alone = attend(kernels(), args);
      EXPECT_EQ(alone.peaks[0], all.peaks[static_cast<std::size_t>(q)]);
      EXPECT_EQ(alone.sums[0], all.sums[static_cast<std::size_t>(q)]);
      EXPECT_TRUE(std::equal(alone.out.begin(), alone.out.end(), all.out.begin() + q * head_dim));
    }
  }
}

TEST_P(Attend, ChosenRowsAreTheRowsThemselves) {
  const Problem problem{dtype(), 72, 5, 160};
  // In runs, apart, backwards and twice.
  const std::vector<std::int32_t> positions{0, 1, 2, 3, 4, 40, 77, 78, 159, 12, 12, 31, 32};
  Problem gathered{dtype(), 72, 5, static_cast<std::int64_t>(positions.size())};
  for (std::int64_t j = 0; j < gathered.count; ++j) {
    for (std::int64_t d = 0; d < 72; ++d) {
      const std::int64_t from = positions[static_cast<std::size_t>(j)] * 72 + d;
      gathered.keys.set(j * 72 + d, problem.keys.at(from));
      gathered.values.set(j * 72 + d, problem.values.at(from));
    }
  }
  AttendArgs args = problem.args({0, gathered.count});
  args.positions = positions.data();
  EXPECT_EQ(attend(kernels(), args), attend(kernels(), gathered.args({0, gathered.count})));
}

TEST_P(Attend, LogitsThatItLeavesGiveTheSamePart) {
  const Problem problem{dtype(), 64, 5, 150};
  std::vector<float> logits(5 * 150);
  AttendArgs args = problem.args({0, 150});
  args.logits = logits.data();
  args.logits_stride = 150;
  const OwnPart part = attend(kernels(), args);
  const Keys keys{.rows = problem.keys, .head_dim = 64};
  expect_dot_products(logits, keys, problem.queries, 5, {0, 150});
  args.keys = nullptr;
  args.queries = nullptr;
  EXPECT_EQ(attend(kernels(), args), part);
}

TEST_P(Attend, WeightsOfTheLogitsSumToOne) {
  const Problem problem{dtype(), 64, 3, 501};
  std::vector<float> logits(3 * 501);
  AttendArgs args = problem.args({0, 501});
  args.logits = logits.data();
  args.logits_stride = 501;
  const Merged merged = merge(kernels(), dtype(), 3, 64, {attend(kernels(), args)});
  for (std::size_t q = 0; q < 3; ++q) {
    std::vector<float> weights(501);
    kernels().softmax_weights(logits.data() + q * 501, 501, merged.lse[q], weights.data());
    // The log-sum-exp is below 10, so its rounding costs 10 * 2^-24.
    EXPECT_NEAR(std::accumulate(weights.begin(), weights.end(), 0.0),
                1.0,
                sum_error(501) + 20.0 * unit_roundoff(DType::kFloat32));
  }
}

TEST_P(Attend, LogSumExpIsThatOfFloat64) {
  for (const std::int64_t count : {1, 7, 64, 4099, 100000}) {
    for (const float offset : {0.0F, 1000.0F, -1000.0F}) {
      std::vector<float> logits = random_floats(count, 90);
      for (float& logit : logits) logit = 4.0F * logit + offset;
      for (std::int64_t i = 5; i < count; i += 9) logits[static_cast<std::size_t>(i)] = -kInfinity;
      double sum = 0.0;
      for (const float logit : logits) sum += std::exp(static_cast<double>(logit - offset));
      // Of the sum 4,096 terms at a time are added in float32; what is returned is rounded once.
      const double expected = offset + std::log(sum);
      EXPECT_NEAR(kernels().log_sum_exp(logits.data(), count),
                  expected,
                  sum_error(512) + 2.0 * std::abs(expected) * unit_roundoff(DType::kFloat32))
          << count << " logits about " << offset;
    }
  }
}

TEST_P(Attend, LogSumExpOfNothingIsMinusInfinityAndNaNStays) {
  std::vector<float> logits(70, -kInfinity);
  EXPECT_EQ(kernels().log_sum_exp(logits.data(), 0), -kInfinity);
  EXPECT_EQ(kernels().log_sum_exp(logits.data(), 70), -kInfinity);
  logits[66] = -3.0F;
  EXPECT_FLOAT_EQ(kernels().log_sum_exp(logits.data(), 70), -3.0F);
  logits[3] = kNaN;
  EXPECT_TRUE(std::isnan(kernels().log_sum_exp(logits.data(), 70)));
}

TEST_P(Attend, OfNoTokenOrOnlyMaskedOnesIsZeroWhateverLiesThere) {
  const std::vector<float> masked(70, -kInfinity);
  const OwnPart empty = of_logits({}, {});
  EXPECT_EQ(empty.sums[0], 0.0F);
  OwnPart hidden = of_logits(masked, std::vector<float>(70, 1.0F));
  EXPECT_EQ(hidden.sums[0], 0.0F);
  hidden.out[0] = kNaN;
  const Merged none = merge(kernels(), dtype(), 1, 1, {empty, hidden});
  EXPECT_EQ(none.out.at(0), 0.0F);
  EXPECT_EQ(none.lse[0], -kInfinity);
  std::vector<float> weights(70, kNaN);
  kernels().softmax_weights(masked.data(), 70, none.lse[0], weights.data());
  EXPECT_EQ(weights, std::vector<float>(70, 0.0F));
  const OwnPart one = of_logits({3.0F}, {2.0F});
  EXPECT_EQ(merge(kernels(), dtype(), 1, 1, {hidden, one, empty}).out.at(0), 2.0F);
}

TEST_P(Attend, GivesMaskedTokensNoWeightInAnyTile) {
  std::vector<float> logits(200, -kInfinity);
  logits[130] = 1.0F;
  EXPECT_EQ(
      merge(kernels(), dtype(), 1, 1, {of_logits(logits, std::vector<float>(200, 3.0F))}).out.at(0),
      3.0F);
}

TEST_P(Attend, SurvivesLogitsFarBeyondTheRangeOfTheExponential) {
  std::vector<float> logits(150, -3e38F);
  std::vector<float> values(150, 5.0F);
  logits[100] = 3e38F;
  values[100] = 2.0F;
  const Merged merged = merge(kernels(), dtype(), 1, 1, {of_logits(logits, values)});
  EXPECT_EQ(merged.out.at(0), 2.0F);
  EXPECT_EQ(merged.lse[0], 3e38F);
}

TEST_P(Attend, HidesNeitherNaNNorInfinity) {
  for (const float bad : {kNaN, kInfinity}) {
    for (const std::size_t at : std::initializer_list<std::size_t>{0, 13, 63, 64, 149}) {
      std::vector<float> logits = random_floats(150, 61);
      logits[at] = bad;
      const OwnPart part = of_logits(logits, std::vector<float>(150, 1.0F));
      const OwnPart other = of_logits({1.0F}, {1.0F});
      EXPECT_TRUE(std::isnan(merge(kernels(), dtype(), 1, 1, {part, other}).out.at(0))) << at;
    }
  }
  const OwnPart alone = of_logits({kNaN}, {1.0F});
  EXPECT_TRUE(std::isnan(merge(kernels(), dtype(), 1, 1, {alone}).out.at(0)));
}

TEST_P(Attend, OfEqualLogitsIsTheMean) {
  const std::vector<float> values = [] {
    std::vector<float> all(256);
    for (std::size_t i = 0; i < 256; ++i) all[i] = static_cast<float>(i % 4);
    return all;
  }();
  EXPECT_EQ(
      merge(kernels(), dtype(), 1, 1, {of_logits(std::vector<float>(256, 7.0F), values)}).out.at(0),
      1.5F);
}

HYBRIDGEN_FOR_EVERY_ISA_AND_DTYPE(Attend);

}  // namespace
}  // namespace hybridgen::kernels::test
