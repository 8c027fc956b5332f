// SPDX-License-Identifier: Apache-2.0
#include "kvcache/shadow_codes.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/float16.h"
#include "kvcache/scoring_shadow.h"

namespace hybridgen {

namespace {

constexpr float kSmallestNormal = std::numeric_limits<float>::min();
constexpr std::uint16_t kNan = 0x7fc0;

constexpr std::int32_t kInfinityBits = 0x7f800000;

/// Bits of the largest magnitude: they order as magnitudes do, infinity and NaN above all others,
/// and a maximum of integers vectorises.
std::int32_t peak_bits(const float* row, std::int64_t count) {
  std::int32_t peak = 0;
  for (std::int64_t d = 0; d < count; ++d) {
    peak = std::max(peak, std::bit_cast<std::int32_t>(row[d]) & 0x7fffffff);
  }
  return peak;
}

}  // namespace

std::uint16_t round_up_to_bfloat16(float value) {
  return static_cast<std::uint16_t>((std::bit_cast<std::uint32_t>(value) + 0xffffU) >> 16);
}

void widen_row(DType dtype, const void* row, std::int64_t count, float* out) {
  if (dtype == DType::kFloat32) {
    std::memcpy(out, row, static_cast<std::size_t>(count) * sizeof(float));
    return;
  }
  const auto* bits = static_cast<const std::uint16_t*>(row);
  if (dtype == DType::kFloat16) {
    for (std::int64_t d = 0; d < count; ++d) out[d] = from_float16(bits[d]);
  } else {
    for (std::int64_t d = 0; d < count; ++d) {
      out[d] = std::bit_cast<float>(static_cast<std::uint32_t>(bits[d]) << 16);
    }
  }
}

namespace {

/// Key rows of any type, measured.
class KeyRows {
 public:
  KeyRows(DType dtype, const void* rows, std::int64_t stride, std::int64_t head_dim)
      : dtype_(dtype),
        rows_(static_cast<const std::byte*>(rows)),
        stride_(stride),
        dim_(head_dim) {}

  /// Mean and standard deviation of each channel over the rows that `counts(row)`; neither is
  /// written where fewer than `least_rows` do.
  template <typename Counts>
  void measure(std::int64_t count,
               std::int64_t least_rows,
               const Counts& counts,
               float* centres,
               float* spreads) const {
    Sums sums{};
    std::int64_t counted = 0;
    for_each_row(count, counts, [&](const float* row) {
      ++counted;
      for (std::size_t d = 0; d < size(); ++d) sums[d] += row[d];
    });
    if (counted < least_rows) return;
    const double share = 1.0 / static_cast<double>(std::max<std::int64_t>(counted, 1));
    for (double& sum : sums) sum *= share;
    // A second pass: the difference of large sums would lose a small spread around a large centre.
    Sums squares{};
    for_each_row(count, counts, [&](const float* row) {
      for (std::size_t d = 0; d < size(); ++d) {
        const double offset = row[d] - sums[d];
        squares[d] += offset * offset;
      }
    });
    double all = 0.0;
    for (std::size_t d = 0; d < size(); ++d) {
      centres[d] = static_cast<float>(sums[d]);
      spreads[d] = static_cast<float>(std::sqrt(squares[d] * share));
      all += squares[d] * share / static_cast<double>(size());
    }
    const auto least = static_cast<float>(std::sqrt(all) / 32.0);
    for (std::size_t d = 0; d < size(); ++d) {
      spreads[d] = least >= kSmallestNormal ? std::max(spreads[d], least) : 1.0F;
    }
  }

 private:
  using Sums = std::array<double, kMaxShadowHeadDim>;

  std::size_t size() const { return static_cast<std::size_t>(dim_); }

  template <typename Counts, typename Visit>
  void for_each_row(std::int64_t count, const Counts& counts, const Visit& visit) const {
    const std::int64_t row_bytes = stride_ * static_cast<std::int64_t>(size_of(dtype_));
    std::array<float, kMaxShadowHeadDim> row;
    for (std::int64_t t = 0; t < count; ++t) {
      widen_row(dtype_, rows_ + t * row_bytes, dim_, row.data());
      if (counts(row.data())) visit(row.data());
    }
  }

  DType dtype_;
  const std::byte* rows_;
  std::int64_t stride_;
  std::int64_t dim_;
};

// Beyond that many spreads a row is of another kind than the rest, like the keys of a text's first
// tokens; rows of one kind never reach it.
constexpr float kFar = 8.0F;

}  // namespace

void measure_channels(DType dtype,
                      const void* rows,
                      std::int64_t count,
                      std::int64_t stride,
                      std::int64_t head_dim,
                      float* centres,
                      float* spreads) {
  const KeyRows keys(dtype, rows, stride, head_dim);
  const auto is_finite = [&](const float* row) { return peak_bits(row, head_dim) < kInfinityBits; };
  keys.measure(count, 0, is_finite, centres, spreads);
  std::array<float, kMaxShadowHeadDim> first_centres;
  std::array<float, kMaxShadowHeadDim> limits;
  const auto size = static_cast<std::size_t>(head_dim);
  for (std::size_t d = 0; d < size; ++d) {
    first_centres[d] = centres[d];
    limits[d] = kFar * spreads[d];
  }
  const auto is_near = [&](const float* row) {
    bool is_far = !is_finite(row);
    for (std::size_t d = 0; d < size; ++d) {
      is_far |= std::abs(row[d] - first_centres[d]) > limits[d];
    }
    return !is_far;
  };
  // Where most rows are far, as with keys of one large element each, there is no kind to keep to.
  keys.measure(count, count / 2, is_near, centres, spreads);
}

std::uint16_t encode_row(const float* row,
                         const float* centres,
                         const float* spreads,
                         std::int64_t count,
                         int largest,
                         std::uint8_t* codes) {
  std::array<float, kMaxShadowHeadDim> normal;
  for (std::int64_t d = 0; d < count; ++d) {
    normal[static_cast<std::size_t>(d)] = (row[d] - centres[d]) / spreads[d];
  }
  const auto most = static_cast<float>(largest);
  std::uint16_t step = kNan;
  float inverse = 0.0F;
  if (const std::int32_t bits = peak_bits(normal.data(), count); bits < kInfinityBits) {
    const float least = std::bit_cast<float>(bits) / most;
    // A key as near to the centre as that is the centre.
    step = least >= kSmallestNormal ? round_up_to_bfloat16(least) : std::uint16_t{0};
    if (step != 0) inverse = 1.0F / std::bit_cast<float>(static_cast<std::uint32_t>(step) << 16);
  } else {
    normal.fill(0.0F);
  }
  for (std::int64_t d = 0; d < count; ++d) {
    // (x / step + largest) / 2, rounded to nearest by truncation, which a positive number allows.
    const float code = (normal[static_cast<std::size_t>(d)] * inverse + (most + 1.0F)) * 0.5F;
    codes[d] = static_cast<std::uint8_t>(std::clamp(static_cast<int>(code), 0, largest));
  }
  return step;
}

}  // namespace hybridgen
