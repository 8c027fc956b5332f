// SPDX-License-Identifier: Apache-2.0
#include "kvcache/scoring_shadow.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kHeads = 3;
constexpr std::int64_t kDim = 10;
constexpr std::int64_t kTokens = 100;

ShadowShape shape_of(ShadowPrecision precision, DType dtype = DType::kFloat32) {
  return {.num_layers = 2,
          .num_kv_heads = kHeads,
          .head_dim = kDim,
          .dtype = dtype,
          .capacity = kTokens,
          .precision = precision};
}

/// Keys [heads, tokens, D], with gaps between tokens and heads as views of larger tensors have.
struct Keys {
  Keys() : data(static_cast<std::size_t>(kHeads * kHeadStride)) {
    std::mt19937 generator(1);
    std::normal_distribution<float> normal;
    for (float& value : data) value = normal(generator);
    // Channels differ in centre and spread.
    for (std::int64_t g = 0; g < kHeads; ++g) {
      for (std::int64_t t = 0; t < kTokens; ++t) {
        at(g, t, 2) = at(g, t, 2) * 20.0F + 50.0F;
        at(g, t, 7) *= 0.1F;
      }
    }
  }
  float& at(std::int64_t g, std::int64_t t, std::int64_t d) {
    return data[static_cast<std::size_t>(g * kHeadStride + t * kStride + d)];
  }
  KvRowsView from(std::int64_t token) const {
    return {data.data() + token * kStride, kHeadStride, kStride};
  }

  static constexpr std::int64_t kStride = kDim + 3;
  static constexpr std::int64_t kHeadStride = kTokens * kStride + 5;
  std::vector<float> data;
};

struct Stored {
  double value = 0.0;      ///< what the shadow holds for the key
  double half_step = 0.0;  ///< half the distance to the next value it could hold
};

/// Element (t, d) by the format's description.
Stored stored(const ShadowKeyView& view, std::int64_t t, std::int64_t d) {
  const std::byte* block = view.blocks + t / 32 * view.block_bytes;
  int code = 0;
  int most = 255;
  if (view.precision == ShadowPrecision::kInt8) {
    code = static_cast<int>(block[(d / 4 * 32 + t % 32) * 4 + d % 4]);
  } else {
    most = 15;
    code = static_cast<int>(block[(d / 8 * 32 + t % 32) * 4 + d % 4]);
    code = d % 8 < 4 ? code & 15 : code >> 4;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, block + view.block_bytes - 64 + t % 32 * 2, 2);
  const double step = static_cast<double>(view.spreads[d]) *
                      std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
  return {view.centres[d] + step * (2 * code - most), step};
}

std::vector<std::byte> bytes_of(const ScoringShadow& shadow) {
  std::vector<std::byte> all;
  for (std::int64_t layer = 0; layer < shadow.shape().num_layers; ++layer) {
    for (std::int64_t g = 0; g < shadow.shape().num_kv_heads; ++g) {
      const ShadowKeyView view = shadow.keys(layer, g);
      const std::span<const std::byte> head(
          view.blocks, static_cast<std::size_t>(view.capacity / 32 * view.block_bytes));
      all.insert(all.end(), head.begin(), head.end());
    }
  }
  return all;
}

class ScoringShadowOf : public testing::TestWithParam<ShadowPrecision> {};

TEST_P(ScoringShadowOf, HoldsEveryKeyToHalfAStep) {
  Keys keys;
  ScoringShadow shadow(shape_of(GetParam()));
  shadow.grow(shadow.shape().capacity);
  shadow.write(1, {0, kTokens}, keys.from(0));
  for (std::int64_t g = 0; g < kHeads; ++g) {
    const ShadowKeyView view = shadow.keys(1, g);
    for (std::int64_t t = 0; t < kTokens; ++t) {
      for (std::int64_t d = 0; d < kDim; ++d) {
        const Stored found = stored(view, t, d);
        // Four roundings of float32 in numbers up to 256 half steps.
        ASSERT_NEAR(found.value, keys.at(g, t, d), found.half_step * (1.0 + 1024 * 0x1p-24))
            << "head " << g << " token " << t << " dimension " << d;
      }
    }
  }
}

TEST_P(ScoringShadowOf, ATokensStepIsTheLeastThatHoldsItsLargestElement) {
  Keys keys;
  for (std::int64_t d = 0; d < kDim; ++d) keys.at(0, 50, d) *= 1000.0F;
  ScoringShadow shadow(shape_of(GetParam()));
  shadow.grow(shadow.shape().capacity);
  shadow.calibrate(0, 40, keys.from(0));
  shadow.write(0, {0, kTokens}, keys.from(0));
  const ShadowKeyView view = shadow.keys(0, 0);
  const double most = GetParam() == ShadowPrecision::kInt8 ? 255.0 : 15.0;
  for (std::int64_t t = 0; t < kTokens; ++t) {
    double peak = 0.0;
    for (std::int64_t d = 0; d < kDim; ++d) {
      const double offset = static_cast<double>(keys.at(0, t, d)) - view.centres[d];
      peak = std::max(peak, std::abs(offset) / view.spreads[d]);
    }
    const double step = stored(view, t, 0).half_step / view.spreads[0];
    EXPECT_GE(step * most, peak * (1.0 - 0x1p-20));
    EXPECT_LE(step * most, peak * (1.0 + 0x1p-7 + 0x1p-20));  // bfloat16's spacing
  }
}

TEST_P(ScoringShadowOf, WritingInPiecesEqualsWritingAtOnce) {
  const Keys keys;
  ScoringShadow whole(shape_of(GetParam()));
  whole.grow(whole.shape().capacity);
  ScoringShadow pieces(shape_of(GetParam()));
  pieces.grow(pieces.shape().capacity);
  ScoringShadow rows(shape_of(GetParam()));
  rows.grow(rows.shape().capacity);
  for (ScoringShadow* shadow : {&whole, &pieces, &rows}) {
    for (const std::int64_t layer : {0, 1}) shadow->calibrate(layer, kTokens, keys.from(0));
  }
  for (const std::int64_t layer : {0, 1}) {
    whole.write(layer, {0, kTokens}, keys.from(0));
    std::int64_t begin = 0;
    for (const std::int64_t size : {1, 30, 2, 33, 0, 1, 33}) {
      pieces.write(layer, {begin, begin + size}, keys.from(begin));
      begin += size;
    }
    ASSERT_EQ(begin, kTokens);
    for (std::int64_t t = kTokens - 1; t >= 0; --t) {
      for (std::int64_t g = 0; g < kHeads; ++g) {
        const KvRowsView row = keys.from(t);
        rows.write_row(layer, g, t, static_cast<const float*>(row.data) + g * row.head_stride);
      }
    }
  }
  EXPECT_TRUE(bytes_of(pieces) == bytes_of(whole));
  EXPECT_TRUE(bytes_of(rows) == bytes_of(whole));
}

TEST_P(ScoringShadowOf, CalibratedAnewAndWrittenAgainEqualsANewOne) {
  const Keys keys;
  ScoringShadow renewed(shape_of(GetParam()));
  renewed.grow(renewed.shape().capacity);
  renewed.write(0, {0, 20}, keys.from(0));
  renewed.calibrate(0, kTokens, keys.from(0));
  renewed.write(0, {0, kTokens}, keys.from(0));
  ScoringShadow fresh(shape_of(GetParam()));
  fresh.grow(fresh.shape().capacity);
  fresh.write(0, {0, kTokens}, keys.from(0));
  EXPECT_TRUE(bytes_of(renewed) == bytes_of(fresh));
}

TEST_P(ScoringShadowOf, ARowReplacesItsOwnTokenOnly) {
  Keys keys;
  ScoringShadow shadow(shape_of(GetParam()));
  shadow.grow(shadow.shape().capacity);
  shadow.write(0, {0, kTokens}, keys.from(0));
  const std::vector<std::byte> before = bytes_of(shadow);
  const std::vector<float> other(kDim, 3.0F);
  shadow.write_row(0, 1, 37, other.data());
  EXPECT_FALSE(bytes_of(shadow) == before);
  EXPECT_NEAR(stored(shadow.keys(0, 1), 37, 0).value,
              3.0,
              stored(shadow.keys(0, 1), 37, 0).half_step * 1.001);
  shadow.write_row(0, 1, 37, &keys.at(1, 37, 0));
  EXPECT_TRUE(bytes_of(shadow) == before);
}

TEST_P(ScoringShadowOf, TheSameNumbersInAnyTypeGiveTheSameBytes) {
  Keys keys;
  for (float& value : keys.data) value = std::round(value);  // exact in all types
  ScoringShadow wide(shape_of(GetParam()));
  wide.grow(wide.shape().capacity);
  wide.write(0, {0, kTokens}, keys.from(0));
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    std::vector<std::uint16_t> narrow;
    for (const float value : keys.data) {
      const auto bits = std::bit_cast<std::uint32_t>(value);
      const std::uint32_t sign = bits >> 16 & 0x8000U;
      const std::uint32_t half =
          value == 0.0F ? 0U : ((bits & 0x7fffffffU) >> 13) - (std::uint32_t{127 - 15} << 10);
      narrow.push_back(
          static_cast<std::uint16_t>(dtype == DType::kBFloat16 ? bits >> 16 : sign | half));
    }
    ScoringShadow shadow(shape_of(GetParam(), dtype));
    shadow.grow(shadow.shape().capacity);
    shadow.write(0, {0, kTokens}, {narrow.data(), Keys::kHeadStride, Keys::kStride});
    EXPECT_TRUE(bytes_of(shadow) == bytes_of(wide)) << name_of(dtype);
  }
}

TEST_P(ScoringShadowOf, ChannelsAreCentredAtTheMeanAndSpreadByTheDeviationOfTheFirstKeys) {
  Keys keys;
  ScoringShadow shadow(shape_of(GetParam()));
  shadow.grow(shadow.shape().capacity);
  EXPECT_FALSE(shadow.is_calibrated(1));
  shadow.write(1, {0, 60}, keys.from(0));
  EXPECT_TRUE(shadow.is_calibrated(1));
  EXPECT_FALSE(shadow.is_calibrated(0));
  shadow.write(1, {60, kTokens}, keys.from(60));  // changes nothing any more
  double mean = 0.0;
  double square = 0.0;
  for (std::int64_t t = 0; t < 60; ++t) mean += keys.at(2, t, 2) / 60.0;
  for (std::int64_t t = 0; t < 60; ++t) square += std::pow(keys.at(2, t, 2) - mean, 2) / 60.0;
  const ShadowKeyView view = shadow.keys(1, 2);
  EXPECT_NEAR(view.centres[2], mean, 1e-5 * std::abs(mean));
  EXPECT_NEAR(view.spreads[2], std::sqrt(square), 1e-5 * std::sqrt(square));
}

TEST_P(ScoringShadowOf, AFewKeysFarFromAllOthersDoNotWidenTheSpreads) {
  Keys keys;
  ScoringShadow shadow(shape_of(GetParam()));
  shadow.grow(shadow.shape().capacity);
  shadow.calibrate(0, kTokens, keys.from(0));
  keys.at(1, 0, 6) = 1000.0F;
  ScoringShadow with_sink(shape_of(GetParam()));
  with_sink.grow(with_sink.shape().capacity);
  with_sink.calibrate(0, kTokens, keys.from(0));
  // One key of a hundred less.
  const float without = shadow.keys(0, 1).spreads[6];
  EXPECT_NEAR(with_sink.keys(0, 1).spreads[6], without, 0.1F * without);
  EXPECT_NEAR(with_sink.keys(0, 1).centres[6], shadow.keys(0, 1).centres[6], 0.1F * without);
}

TEST_P(ScoringShadowOf, KeysThatAllDifferInAChannelOfTheirOwnAreMeasuredAll) {
  ShadowShape shape = shape_of(GetParam());
  shape.head_dim = kTokens;
  shape.num_kv_heads = 1;
  std::vector<float> keys(static_cast<std::size_t>(kTokens * kTokens));
  for (std::int64_t t = 0; t < kTokens; ++t) keys[static_cast<std::size_t>(t * kTokens + t)] = 1.0F;
  ScoringShadow shadow(shape);
  shadow.grow(shadow.shape().capacity);
  shadow.calibrate(0, kTokens, {keys.data(), 0, kTokens});
  // One of a hundred is 1: the mean is 0.01, the deviation the root of 0.01 * 0.99.
  EXPECT_NEAR(shadow.keys(0, 0).centres[50], 0.01, 1e-6);
  EXPECT_NEAR(shadow.keys(0, 0).spreads[50], std::sqrt(0.0099), 1e-6);
}

TEST_P(ScoringShadowOf, AChannelThatStandsStillKeepsASmallSpread) {
  Keys keys;
  for (std::int64_t t = 0; t < kTokens; ++t) keys.at(0, t, 4) = -8.0F;
  ScoringShadow shadow(shape_of(GetParam()));
  shadow.grow(shadow.shape().capacity);
  shadow.write(0, {0, kTokens}, keys.from(0));
  const ShadowKeyView view = shadow.keys(0, 0);
  double squares = 0.0;
  for (std::int64_t d = 0; d < kDim; ++d) {
    // The channel itself stands for its floor, which the mean hardly sees.
    if (d != 4) squares += static_cast<double>(view.spreads[d]) * view.spreads[d] / kDim;
  }
  EXPECT_EQ(view.centres[4], -8.0F);
  EXPECT_NEAR(view.spreads[4], std::sqrt(squares) / 32.0, 1e-3 * view.spreads[4]);
}

TEST_P(ScoringShadowOf, EqualKeysAreHeldExactly) {
  Keys keys;
  std::ranges::fill(keys.data, 2.5F);
  ScoringShadow shadow(shape_of(GetParam()));
  shadow.grow(shadow.shape().capacity);
  shadow.write(0, {0, kTokens}, keys.from(0));
  EXPECT_EQ(shadow.keys(0, 0).spreads[3], 1.0F);
  EXPECT_EQ(stored(shadow.keys(0, 0), 40, 3).value, 2.5);
}

TEST_P(ScoringShadowOf, HoldsHugeAndVanishingKeys) {
  for (const float size : {1e30F, 1e-30F, 1e-42F}) {
    Keys keys;
    for (float& value : keys.data) value *= size;
    ScoringShadow shadow(shape_of(GetParam()));
    shadow.grow(shadow.shape().capacity);
    shadow.write(0, {0, kTokens}, keys.from(0));
    for (std::int64_t t = 0; t < kTokens; ++t) {
      const Stored found = stored(shadow.keys(0, 1), t, 2);
      // Numbers that vanish beside the smallest normal one may be taken for the centre.
      const double allowed = found.half_step * 1.001 + 64.0 * std::numeric_limits<float>::min();
      ASSERT_NEAR(found.value, keys.at(1, t, 2), allowed) << size;
    }
  }
}

TEST_P(ScoringShadowOf, AKeyThatIsNotFiniteHasNoStepAndDisturbsNoOther) {
  Keys keys;
  ScoringShadow clean(shape_of(GetParam()));
  clean.grow(clean.shape().capacity);
  ScoringShadow shadow(shape_of(GetParam()));
  shadow.grow(shadow.shape().capacity);
  clean.calibrate(0, 70, keys.from(0));
  clean.write(0, {0, kTokens}, keys.from(0));
  keys.at(1, 75, 3) = std::numeric_limits<float>::quiet_NaN();
  keys.at(1, 80, 3) = std::numeric_limits<float>::infinity();
  shadow.calibrate(0, 70, keys.from(0));
  shadow.write(0, {0, kTokens}, keys.from(0));
  for (std::int64_t t = 0; t < kTokens; ++t) {
    const bool is_bad = t == 75 || t == 80;
    EXPECT_EQ(std::isnan(stored(shadow.keys(0, 1), t, 0).value), is_bad) << t;
    if (is_bad) continue;
    EXPECT_EQ(stored(shadow.keys(0, 1), t, 5).value, stored(clean.keys(0, 1), t, 5).value) << t;
  }
  // Nor does it enter centres and spreads.
  ScoringShadow calibrated(shape_of(GetParam()));
  calibrated.grow(calibrated.shape().capacity);
  calibrated.calibrate(0, kTokens, keys.from(0));
  EXPECT_TRUE(std::isfinite(calibrated.keys(0, 1).centres[3]));
  EXPECT_TRUE(std::isfinite(calibrated.keys(0, 1).spreads[3]));
}

TEST_P(ScoringShadowOf, RequiredBytesCoverCodesStepsAndChannels) {
  // 100 tokens are rounded up to 128, 10 dimensions to 16.
  const std::int64_t codes = GetParam() == ShadowPrecision::kInt8 ? 16 : 8;
  EXPECT_EQ(ScoringShadow::required_bytes(shape_of(GetParam())),
            2 * kHeads * (128 * (codes + 2) + 2 * kDim * 4));
}

TEST_P(ScoringShadowOf, RejectsWhatLiesOutside) {
  const Keys keys;
  ScoringShadow shadow(shape_of(GetParam()));
  shadow.grow(shadow.shape().capacity);
  const KvRowsView view = keys.from(0);
  EXPECT_THROW(shadow.write(2, {0, 1}, view), ConfigError);
  EXPECT_THROW(shadow.write(0, {-1, 1}, view), ConfigError);
  EXPECT_THROW(shadow.write(0, {2, 1}, view), ConfigError);
  EXPECT_THROW(shadow.write(0, {0, 129}, view), ConfigError);
  EXPECT_THROW(shadow.write_row(0, kHeads, 0, view.data), ConfigError);
  EXPECT_THROW(shadow.write_row(0, 0, 128, view.data), ConfigError);
  EXPECT_THROW(shadow.calibrate(0, 0, view), ConfigError);
  EXPECT_THROW(shadow.calibrate(-1, 1, view), ConfigError);
  EXPECT_THROW(static_cast<void>(shadow.is_calibrated(2)), ConfigError);
  EXPECT_THROW(static_cast<void>(shadow.keys(0, kHeads)), ConfigError);
}

TEST_P(ScoringShadowOf, OverSeveralNodesHoldsTheSame) {
  Keys keys;
  ShadowShape shape = shape_of(GetParam());
  ScoringShadow whole(shape);
  whole.grow(whole.shape().capacity);
  shape.numa_parts = {{0, 0, 2, {}}, {1, 2, 1, {}}};
  ScoringShadow divided(shape);
  divided.grow(divided.shape().capacity);
  for (ScoringShadow* shadow : {&whole, &divided}) {
    shadow->calibrate(1, kTokens, keys.from(0));
    shadow->write(0, {0, kTokens}, keys.from(0));
    shadow->write(1, {0, kTokens}, keys.from(0));
  }
  EXPECT_EQ(bytes_of(divided), bytes_of(whole));
  for (std::int64_t g = 0; g < kHeads; ++g) {
    const float* centres = whole.keys(1, g).centres;
    EXPECT_TRUE(std::equal(centres, centres + 2 * kDim, divided.keys(1, g).centres));
  }
}

TEST_P(ScoringShadowOf, RejectsShapesItCannotHold) {
  for (const auto field : {&ShadowShape::num_layers,
                           &ShadowShape::num_kv_heads,
                           &ShadowShape::head_dim,
                           &ShadowShape::capacity}) {
    ShadowShape shape = shape_of(GetParam());
    shape.*field = 0;
    EXPECT_THROW(ScoringShadow{shape}, ConfigError);
    EXPECT_THROW(ScoringShadow::required_bytes(shape), ConfigError);
  }
  ShadowShape shape = shape_of(GetParam());
  shape.head_dim = kMaxShadowHeadDim + 1;
  EXPECT_THROW(ScoringShadow{shape}, ConfigError);
  shape = shape_of(GetParam());
  shape.capacity = std::int64_t{1} << 50;
  EXPECT_THROW(ScoringShadow{shape}, OutOfMemoryError);
  shape.capacity = std::numeric_limits<std::int64_t>::max();
  EXPECT_THROW(ScoringShadow::required_bytes(shape), OutOfMemoryError);
  shape = shape_of(GetParam());
  shape.numa_node = 1 << 20;
  EXPECT_THROW(ScoringShadow{shape}, ConfigError);
}

INSTANTIATE_TEST_SUITE_P(Every,
                         ScoringShadowOf,
                         testing::Values(ShadowPrecision::kInt8, ShadowPrecision::kInt4),
                         [](const auto& each) {
                           return each.param == ShadowPrecision::kInt8 ? "Int8" : "Int4";
                         });

}  // namespace
}  // namespace hybridgen
