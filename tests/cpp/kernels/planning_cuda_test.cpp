// SPDX-License-Identifier: Apache-2.0
#include "kernels/cuda_planning.h"

#include <algorithm>

#include "hybridgen/core/error.h"
#include "kernel_test_support.h"
#include "kernels/cuda_kernels.h"
#include "support/in_every_order.h"

#if HYBRIDGEN_HAS_CUDA
#include "score_rows.h"
#endif

namespace hybridgen::kernels::test {
namespace {

TEST(PlanningCuda, WithoutCudaIsRefused) {
  if (has_cuda_kernels()) GTEST_SKIP() << "a build without nvcc (HYBRIDGEN_CUDA=OFF) would run it";
  EXPECT_THROW(guess_logits_cuda({}, nullptr), DeviceError);
  EXPECT_THROW(count_near_cuda({}, nullptr), DeviceError);
}

#if HYBRIDGEN_HAS_CUDA

using hybridgen::test::in_every_order;

constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

class PlanningOnDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
};

// ---- How many are near the best ----

std::int64_t count_near(const Rows& rows, float alpha, std::int64_t most) {
  const DeviceCopy guesses(rows.scores);
  const DeviceCopy count(std::vector<std::int64_t>{-7});
  const DeviceCopy workspace = workspace_of(count_near_workspace_bytes(rows.groups, rows.tokens()));
  count_near_cuda({.guesses = guesses.get<float>(),
                   .groups = rows.groups,
                   .tokens = rows.tokens(),
                   .alpha = alpha,
                   .most = most,
                   .count = count.get<std::int64_t>(),
                   .workspace = workspace.get()},
                  nullptr);
  return count.values<std::int64_t>().front();
}

/// DeviceOps::count_near in plain loops.
std::int64_t twin_count_near(const Rows& rows, float alpha, std::int64_t most) {
  double sum = 0.0;
  for (std::int64_t g = 0; g < rows.groups; ++g) {
    const float* row = rows.scores.data() + g * rows.tokens();
    float largest = row[0];
    for (std::int64_t t = 0; t < rows.tokens(); ++t) {
      if (row[t] > largest || std::isnan(row[t])) largest = row[t];
    }
    for (std::int64_t t = 0; t < rows.tokens(); ++t) sum += row[t] > largest - alpha ? 1.0 : 0.0;
  }
  const double mean = sum / static_cast<double>(rows.groups);
  return std::clamp<std::int64_t>(static_cast<std::int64_t>(mean), 1, most);
}

TEST_F(PlanningOnDevice, CountsWhatIsWithinAlphaOfARowsLargest) {
  const Rows rows{2, {1.0F, 4.0F, 3.0F, 2.0F, -9.0F, -9.0F, -9.0F, -9.0F}};
  EXPECT_EQ(count_near(rows, 1.0F, 4), 2);  // (1 + 4) / 2: 3 is not above 4 - 1
  EXPECT_EQ(count_near(rows, 1.5F, 4), 3);
  EXPECT_EQ(count_near(rows, 100.0F, 4), 4);
  EXPECT_EQ(count_near(rows, 100.0F, 3), 3);  // not more than `most`
  EXPECT_EQ(count_near(rows, 0.0F, 4), 1);    // not less than one
}

TEST_F(PlanningOnDevice, ARowWithANanCountsAsNone) {
  Rows rows{2, std::vector<float>(2 * 5000, 1.0F)};
  EXPECT_EQ(count_near(rows, 1.0F, 5000), 5000);
  rows.scores[2500] = kNaN;
  EXPECT_EQ(count_near(rows, 1.0F, 5000), 2500);
  rows.scores[9999] = kNaN;
  EXPECT_EQ(count_near(rows, 1.0F, 5000), 1);
}

TEST_F(PlanningOnDevice, CountsAgreeWithThePlainLoopInAnyOrder) {
  for (const std::int64_t tokens : {1, 257, 4100}) {
    for (const Rows& rows : hard_rows(3, tokens)) {
      for (const float alpha : {0.0F, 0.75F, 4.0F}) {
        const std::int64_t expected = twin_count_near(rows, alpha, tokens);
        in_every_order([&] { EXPECT_EQ(count_near(rows, alpha, tokens), expected); });
      }
    }
  }
}

// ---- Guessed logits ----

struct GuessShape {
  std::int64_t groups = 1;
  std::int64_t num_queries = 1;
  std::int64_t width = 1;
  std::int64_t tokens = 1;

  std::int64_t blocks() const { return (tokens + 31) / 32; }
};

/// Queries and keys with gaps between their rows and blocks. What lies in the gaps, and keys behind
/// the last token, are NaN.
class Guessing {
 public:
  Guessing(DType dtype, const GuessShape& shape)
      : dtype_(dtype),
        shape_(shape),
        queries_(dtype, shape.groups * query_group_stride()),
        keys_(dtype, shape.groups * key_group_stride()) {
    for (Array* array : {&queries_, &keys_}) fill_bits(*array);
    const Array queries = random_array(dtype, shape.groups * shape.num_queries * shape.width, 10);
    const Array keys = random_array(dtype, shape.groups * shape.tokens * shape.width, 11);
    std::int64_t next = 0;
    for (std::int64_t g = 0; g < shape.groups; ++g) {
      for (std::int64_t r = 0; r < shape.num_queries; ++r) {
        for (std::int64_t w = 0; w < shape.width; ++w) set_query(g, r, w, queries.at(next++));
      }
    }
    next = 0;
    for (std::int64_t g = 0; g < shape.groups; ++g) {
      for (std::int64_t t = 0; t < shape.tokens; ++t) {
        for (std::int64_t w = 0; w < shape.width; ++w) set_key(g, t, w, keys.at(next++));
      }
    }
  }

  void set_query(std::int64_t g, std::int64_t r, std::int64_t w, float value) {
    queries_.set(query_at(g, r, w), value);
  }
  void set_key(std::int64_t g, std::int64_t t, std::int64_t w, float value) {
    keys_.set(key_at(g, t, w), value);
  }
  float query(std::int64_t g, std::int64_t r, std::int64_t w) const {
    return queries_.at(query_at(g, r, w));
  }
  float key(std::int64_t g, std::int64_t t, std::int64_t w) const {
    return keys_.at(key_at(g, t, w));
  }

  std::vector<float> on_device() const {
    const DeviceCopy queries(queries_);
    const DeviceCopy keys(keys_);
    const DeviceCopy guesses(
        std::vector<float>(static_cast<std::size_t>(shape_.groups * shape_.tokens), 5.0F));
    guess_logits_cuda({.dtype = dtype_,
                       .groups = shape_.groups,
                       .num_queries = shape_.num_queries,
                       .width = shape_.width,
                       .tokens = shape_.tokens,
                       .queries = queries.get(),
                       .query_group_stride = query_group_stride(),
                       .query_stride = query_stride(),
                       .keys = keys.get(),
                       .key_group_stride = key_group_stride(),
                       .key_block_stride = key_block_stride(),
                       .key_column_stride = key_column_stride(),
                       .guesses = guesses.get<float>()},
                      nullptr);
    return guesses.values<float>();
  }

  /// Logits of the CPU's kernel, the largest over the queries.
  std::vector<float> by_twin() const {
    std::vector<float> guesses;
    for (std::int64_t g = 0; g < shape_.groups; ++g) {
      Array blocks(dtype_, shape_.blocks() * 32 * shape_.width);
      std::vector<float> queries;
      for (std::int64_t t = 0; t < shape_.tokens; ++t) {
        for (std::int64_t w = 0; w < shape_.width; ++w) {
          blocks.set((t / 32 * shape_.width + w) * 32 + t % 32, key(g, t, w));
        }
      }
      for (std::int64_t r = 0; r < shape_.num_queries; ++r) {
        for (std::int64_t w = 0; w < shape_.width; ++w) queries.push_back(query(g, r, w));
      }
      std::vector<float> logits(static_cast<std::size_t>(shape_.num_queries * shape_.tokens));
      BlockedLogitsArgs args;
      args.keys = {blocks.data(), dtype_, shape_.width, shape_.blocks() * 32};
      args.queries = queries.data();
      args.num_queries = shape_.num_queries;
      args.tokens = {0, shape_.tokens};
      args.logits = logits.data();
      args.logits_stride = shape_.tokens;
      cpu_kernels(Isa::kPortable).blocked_logits(args);
      for (std::int64_t t = 0; t < shape_.tokens; ++t) {
        float largest = -kInfinity;
        for (std::int64_t r = 0; r < shape_.num_queries; ++r) {
          largest = std::max(largest, logits[static_cast<std::size_t>(r * shape_.tokens + t)]);
        }
        guesses.push_back(largest);
      }
    }
    return guesses;
  }

  /// The largest over the queries of the sum of the terms' sizes: bounds the error of every logit,
  /// and so that of the largest.
  double size_of_terms(std::int64_t g, std::int64_t t) const {
    double largest = 0.0;
    for (std::int64_t r = 0; r < shape_.num_queries; ++r) {
      double sum = 0.0;
      for (std::int64_t w = 0; w < shape_.width; ++w) {
        sum += std::abs(double{query(g, r, w)} * double{key(g, t, w)});
      }
      largest = std::max(largest, sum);
    }
    return largest;
  }

  void expect_agreement() const {
    const std::vector<float> guesses = on_device();
    const std::vector<float> expected = by_twin();
    for (std::size_t i = 0; i < expected.size(); ++i) {
      const auto at = static_cast<std::int64_t>(i);
      ASSERT_NEAR(
          guesses[i],
          expected[i],
          2.0 * sum_error(shape_.width) * size_of_terms(at / shape_.tokens, at % shape_.tokens))
          << "token " << at % shape_.tokens << " of head " << at / shape_.tokens;
    }
  }

 private:
  static void fill_bits(Array& array) {
    std::memset(
        array.data(), 0xff, static_cast<std::size_t>(array.count()) * size_of(array.dtype()));
  }
  std::int64_t query_stride() const { return shape_.width + 3; }
  std::int64_t query_group_stride() const { return shape_.num_queries * query_stride() + 5; }
  std::int64_t key_column_stride() const { return 32 + 2; }
  std::int64_t key_block_stride() const { return shape_.width * key_column_stride() + 7; }
  std::int64_t key_group_stride() const { return shape_.blocks() * key_block_stride() + 9; }
  std::int64_t query_at(std::int64_t g, std::int64_t r, std::int64_t w) const {
    return g * query_group_stride() + r * query_stride() + w;
  }
  std::int64_t key_at(std::int64_t g, std::int64_t t, std::int64_t w) const {
    return g * key_group_stride() + t / 32 * key_block_stride() + w * key_column_stride() + t % 32;
  }

  DType dtype_;
  GuessShape shape_;
  Array queries_;
  Array keys_;
};

class GuessOnDevice : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
};

// Of one dimension, and queries 1 and -1: the keys' magnitudes, exactly.
TEST_P(GuessOnDevice, OfOneDimensionAreMagnitudes) {
  const GuessShape shape{.groups = 2, .num_queries = 2, .width = 1, .tokens = 70};
  Guessing guessing(GetParam(), shape);
  for (std::int64_t g = 0; g < 2; ++g) {
    guessing.set_query(g, 0, 0, 1.0F);
    guessing.set_query(g, 1, 0, -1.0F);
  }
  const std::vector<float> guesses = guessing.on_device();
  for (std::size_t i = 0; i < guesses.size(); ++i) {
    const auto at = static_cast<std::int64_t>(i);
    ASSERT_EQ(guesses[i], std::abs(guessing.key(at / 70, at % 70, 0)));
  }
}

// Rows of queries around how many share a reading of the keys, columns around how many lie in
// shared memory, tokens around a block of keys and a block of threads.
TEST_P(GuessOnDevice, AgreeWithTheCpuTwin) {
  for (const std::int64_t num_queries : {1, 3, 4, 5, 9}) {
    for (const std::int64_t width : {1, 38, 127, 129, 300}) {
      const std::int64_t tokens = width < 100 ? 289 : 33;
      Guessing(GetParam(), {2, num_queries, width, tokens}).expect_agreement();
    }
  }
  for (const std::int64_t tokens : {1, 31, 32, 255, 256, 257, 513}) {
    Guessing(GetParam(), {3, 2, 5, tokens}).expect_agreement();
  }
}

TEST_P(GuessOnDevice, AgreeInAnyOrder) {
  const Guessing guessing(GetParam(), {2, 6, 140, 300});
  in_every_order([&] { guessing.expect_agreement(); });
}

TEST_P(GuessOnDevice, NanOfOneQueryIsTheGuess) {
  const GuessShape shape{.groups = 2, .num_queries = 6, .width = 5, .tokens = 40};
  for (const std::int64_t row : {0, 3, 5}) {
    Guessing guessing(GetParam(), shape);
    guessing.set_query(1, row, 4, kInfinity);
    guessing.set_key(1, 35, 4, 0.0F);
    const std::vector<float> guesses = guessing.on_device();
    for (std::size_t i = 0; i < guesses.size(); ++i) {
      ASSERT_EQ(std::isnan(guesses[i]), i == 40 + 35) << "query " << row << ", guess " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes,
                         GuessOnDevice,
                         testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16),
                         [](const auto& param) { return std::string(name_of(param.param)); });

#endif  // HYBRIDGEN_HAS_CUDA

}  // namespace
}  // namespace hybridgen::kernels::test
