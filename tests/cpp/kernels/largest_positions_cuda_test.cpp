// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <limits>

#include "hybridgen/core/error.h"
#include "kernel_test_support.h"
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_planning.h"
#include "support/in_every_order.h"

#if HYBRIDGEN_HAS_CUDA
#include "guessed_requests.h"
#endif

namespace hybridgen::kernels::test {
namespace {

TEST(LargestPositionsCuda, WithoutCudaIsRefused) {
  if (has_cuda_kernels()) GTEST_SKIP() << "a build without nvcc (HYBRIDGEN_CUDA=OFF) would run it";
  EXPECT_THROW(largest_positions_cuda({}, nullptr), DeviceError);
}

#if HYBRIDGEN_HAS_CUDA

using hybridgen::test::in_every_order;

#if !defined(HYBRIDGEN_SANITIZES_THREAD)
#define HYBRIDGEN_SANITIZES_THREAD 0  // on a device
#endif

class LargestPositionsOnDevice : public testing::Test {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
};

Rows one_row(std::vector<float> scores) { return {.groups = 1, .scores = std::move(scores)}; }

std::vector<std::vector<std::int32_t>> places(const std::vector<GuessedRequest>& requests) {
  const GuessedRequests guessed(requests);
  largest_positions_cuda(guessed.args(), nullptr);
  std::vector<std::vector<std::int32_t>> all;
  for (std::size_t i = 0; i < requests.size(); ++i) all.push_back(guessed.places(i));
  return all;
}

/// Of one request; where the count is not `most`, it lies on the device.
std::vector<std::int32_t> places(const Rows& rows, std::int64_t count, std::int64_t most) {
  const auto on_device = count == most ? std::nullopt : std::optional(count);
  return places({{.guesses = rows, .most = most, .count = on_device}}).front();
}

/// By the CPU twin.
std::vector<std::int32_t> twin_places(const Rows& rows, std::int64_t count, std::int64_t most) {
  const std::int64_t tokens = rows.tokens();
  std::vector<std::int32_t> all(static_cast<std::size_t>(rows.groups * most),
                                static_cast<std::int32_t>(tokens));
  std::vector<float> values(static_cast<std::size_t>(count));
  std::vector<float> scratch;
  for (std::int64_t g = 0; g < rows.groups; ++g) {
    EXPECT_TRUE(top_k(rows.scores.data() + g * tokens,
                      tokens,
                      count,
                      all.data() + g * most,
                      values.data(),
                      scratch));
  }
  return all;
}

TEST_F(LargestPositionsOnDevice, AllPlacesAreThoseOfTheRow) {
  for (const std::int64_t tokens : {1, 2, 256, 300}) {
    const Rows rows{2, random_floats(2 * tokens, 1)};
    const std::vector<std::int32_t> all = places(rows, tokens, tokens);
    for (std::int64_t i = 0; i < 2 * tokens; ++i) {
      ASSERT_EQ(all[static_cast<std::size_t>(i)], i % tokens);
    }
  }
}

TEST_F(LargestPositionsOnDevice, OfEqualScoresTheEarlierOnesAreTaken) {
  const Rows equal = one_row(std::vector<float>(700, -2.5F));
  EXPECT_EQ(places(equal, 3, 3), (std::vector<std::int32_t>{0, 1, 2}));
  EXPECT_EQ(places(one_row({1.0F, 5.0F, 3.0F, 5.0F, 5.0F, 7.0F}), 3, 3),
            (std::vector<std::int32_t>{1, 3, 5}));
}

TEST_F(LargestPositionsOnDevice, OfEqualScoresTheNewerOnesAreTakenWhereARowSaysSo) {
  const auto newer = [](const Rows& rows, std::int64_t most) {
    return places({{.guesses = rows, .most = most, .takes_newer = true}}).front();
  };
  EXPECT_EQ(newer(one_row(std::vector<float>(700, -2.5F)), 3),
            (std::vector<std::int32_t>{697, 698, 699}));
  EXPECT_EQ(newer(one_row({1.0F, 5.0F, 3.0F, 5.0F, 5.0F, 7.0F}), 3),
            (std::vector<std::int32_t>{3, 4, 5}));
  // The twin of a row is the earlier ones of its reverse.
  for (const Rows& rows : hard_rows(1, 4100)) {
    Rows reversed = rows;
    std::ranges::reverse(reversed.scores);
    std::vector<std::int32_t> expected = twin_places(reversed, 1000, 1000);
    for (std::int32_t& place : expected) place = 4099 - place;
    std::ranges::reverse(expected);
    in_every_order([&] { EXPECT_EQ(newer(rows, 1000), expected); });
  }
}

TEST_F(LargestPositionsOnDevice, NoPlacesAreWrittenWhereNoneAreWanted) {
  const Rows rows = one_row({1.0F, 5.0F, 3.0F});
  EXPECT_EQ(places({{.guesses = rows, .most = 0}, {.guesses = rows, .most = 2}}),
            (std::vector<std::vector<std::int32_t>>{{}, {1, 2}}));
}

TEST_F(LargestPositionsOnDevice, MinusZeroEqualsZero) {
  EXPECT_EQ(places(one_row({-1.0F, -0.0F, 0.0F, -0.0F, -1e-45F}), 2, 2),
            (std::vector<std::int32_t>{1, 2}));
}

TEST_F(LargestPositionsOnDevice, WhatIsLeftOfARowIsTheNumberOfTokens) {
  const Rows rows = one_row({2.0F, -kInfinity, 9.0F, kInfinity});
  EXPECT_EQ(places(rows, 1, 4), (std::vector<std::int32_t>{3, 4, 4, 4}));
  EXPECT_EQ(places(rows, 3, 4), (std::vector<std::int32_t>{0, 2, 3, 4}));
  EXPECT_EQ(places(rows, 4, 4), (std::vector<std::int32_t>{0, 1, 2, 3}));
}

TEST_F(LargestPositionsOnDevice, ACountOnTheDeviceStaysBetweenOneAndMost) {
  const Rows rows = one_row({2.0F, 1.0F, 9.0F, 3.0F});
  EXPECT_EQ(places(rows, 100, 2), (std::vector<std::int32_t>{2, 3}));
  EXPECT_EQ(places(rows, 0, 2), (std::vector<std::int32_t>{2, 4}));
  EXPECT_EQ(places(rows, -1, 2), (std::vector<std::int32_t>{2, 4}));
  EXPECT_EQ(places({{.guesses = rows, .most = 2, .count = 2}}).front(),
            (std::vector<std::int32_t>{2, 3}));
}

// A row in the middle of one piece or at the end of the last, and a NaN of either sign: nobody gets
// a place, the other rows neither.
TEST_F(LargestPositionsOnDevice, NoneIfAnyScoreIsNan) {
  const std::int64_t tokens = 4500;
  const float quiet = std::numeric_limits<float>::quiet_NaN();
  for (const float nan : {quiet, -quiet}) {
    for (const std::int64_t at : {std::int64_t{100}, 3 * tokens - 1}) {
      Rows rows{3, random_floats(3 * tokens, 2)};
      rows.scores[static_cast<std::size_t>(at)] = nan;
      in_every_order([&] {
        EXPECT_EQ(places(rows, 7, 9),
                  std::vector<std::int32_t>(3 * 9, static_cast<std::int32_t>(tokens)));
      });
    }
  }
}

TEST_F(LargestPositionsOnDevice, PlacesAgreeWithTheCpuTwin) {
  for (const std::int64_t tokens : {1, 33, 257, 2049}) {
    for (const Rows& rows : hard_rows(1, tokens)) {
      const std::int64_t count = (tokens + 2) / 3;
      const std::int64_t most = std::min(tokens, count + 1);
      ASSERT_EQ(places(rows, count, most), twin_places(rows, count, most)) << tokens;
      ASSERT_EQ(places(rows, most, most), twin_places(rows, most, most)) << tokens;
    }
  }
}

TEST_F(LargestPositionsOnDevice, PlacesAreTheSameInAnyOrder) {
  for (const Rows& rows : hard_rows(2, 4100)) {
    const std::vector<std::int32_t> expected = twin_places(rows, 1000, 1200);
    in_every_order([&] { EXPECT_EQ(places(rows, 1000, 1200), expected); });
  }
}

// As many pieces as there may be, of several tiles each, and more heads than threads in a warp.
TEST_F(LargestPositionsOnDevice, LongRowsAndManyHeadsAgree) {
  // ThreadSanitizer would take minutes for the longest row.
  const std::int64_t longest = std::int64_t{1} << (HYBRIDGEN_SANITIZES_THREAD ? 16 : 20);
  for (const std::int64_t tokens : {longest, std::int64_t{70001}}) {
    const Rows rows = one_row(random_floats(tokens, 4));
    EXPECT_EQ(places(rows, tokens / 3, tokens / 2), twin_places(rows, tokens / 3, tokens / 2));
  }
  const Rows many{40, random_floats(40 * 300, 6)};
  EXPECT_EQ(places(many, 30, 40), twin_places(many, 30, 40));
}

// Of other lengths than their neighbours', one without tokens, one with a NaN.
TEST_F(LargestPositionsOnDevice, RequestsOfABatchGetWhatTheyWouldAlone) {
  std::vector<GuessedRequest> requests;
  for (const std::int64_t tokens : {300, 5000, 1, 2049}) {
    const Rows rows{3, random_floats(3 * tokens, static_cast<std::uint32_t>(tokens))};
    requests.push_back({.guesses = rows, .most = (tokens + 1) / 2});
    requests.push_back({.guesses = rows, .most = (tokens + 1) / 2, .count = (tokens + 3) / 4});
  }
  requests.insert(requests.begin() + 1, GuessedRequest{.guesses = {.groups = 3, .scores = {}}});
  GuessedRequest without_number = requests.front();
  without_number.guesses.scores[700] = std::numeric_limits<float>::quiet_NaN();
  requests.push_back(without_number);
  std::vector<std::vector<std::int32_t>> alone;
  for (const GuessedRequest& request : requests) alone.push_back(places({request}).front());
  EXPECT_EQ(alone[0], twin_places(requests[0].guesses, 150, 150));
  EXPECT_EQ(alone.back(), std::vector<std::int32_t>(3 * 150, 300));
  in_every_order([&] { EXPECT_EQ(places(requests), alone); });
}

#endif  // HYBRIDGEN_HAS_CUDA

}  // namespace
}  // namespace hybridgen::kernels::test
