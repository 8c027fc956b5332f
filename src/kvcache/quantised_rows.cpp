// SPDX-License-Identifier: Apache-2.0
#include "kvcache/quantised_rows.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <limits>

#include "kvcache/shadow_codes.h"

namespace hybridgen {

namespace {

constexpr std::uint16_t kNan = 0x7fc0;

float to_float(std::uint16_t bfloat16) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(bfloat16) << 16);
}

std::uint16_t round_down_to_bfloat16(float value) {
  constexpr std::uint32_t kLowest = 0xff7fU;  // finite
  const auto bits = std::bit_cast<std::uint32_t>(value);
  const std::uint32_t down = value < 0.0F ? (bits + 0xffffU) >> 16 : bits >> 16;
  return static_cast<std::uint16_t>(down == 0xff80U ? kLowest : down);
}

/// Minimum and scale of a group, as they are stored.
struct Range {
  std::uint16_t minimum = kNan;
  std::uint16_t scale = kNan;
};

Range range_of(const float* elements, std::int64_t count, int levels) {
  float least = elements[0];
  float most = elements[0];
  bool is_finite = true;
  for (std::int64_t i = 0; i < count; ++i) {
    least = std::min(least, elements[i]);
    most = std::max(most, elements[i]);
    is_finite &= (std::bit_cast<std::uint32_t>(elements[i]) & 0x7f800000U) != 0x7f800000U;
  }
  if (!is_finite) return {};
  const std::uint16_t minimum = round_down_to_bfloat16(least);
  const float extent = most - to_float(minimum);
  if (extent > std::numeric_limits<float>::max() / 2) return {};
  const float step = std::max(extent, 0.0F) / static_cast<float>(levels);
  const bool is_zero = step < std::numeric_limits<float>::min();
  return {minimum, is_zero ? std::uint16_t{0} : round_up_to_bfloat16(step)};
}

}  // namespace

void quantise_row(
    KvPrecision precision, DType dtype, const void* row, std::int64_t head_dim, std::byte* out) {
  const std::int64_t element = static_cast<std::int64_t>(size_of(dtype));
  const int levels = precision == KvPrecision::kInt8 ? 255 : 15;
  std::byte* codes = out;
  std::byte* ranges =
      out + quantised_row_bytes(precision, head_dim) -
      (head_dim + kQuantisedGroup - 1) / kQuantisedGroup * static_cast<std::int64_t>(sizeof(Range));
  for (std::int64_t first = 0; first < head_dim; first += kQuantisedGroup) {
    const std::int64_t count = std::min(kQuantisedGroup, head_dim - first);
    std::array<float, kQuantisedGroup> elements{};
    widen_row(dtype, static_cast<const std::byte*>(row) + first * element, count, elements.data());
    const Range range = range_of(elements.data(), count, levels);
    std::memcpy(ranges, &range, sizeof(range));
    ranges += sizeof(range);
    const float minimum = to_float(range.minimum);
    const bool has_steps = range.scale != 0 && range.scale != kNan;
    const float inverse = has_steps ? 1.0F / to_float(range.scale) : 0.0F;
    std::array<std::uint8_t, kQuantisedGroup> rounded{};
    if (has_steps) {
      for (std::size_t i = 0; i < static_cast<std::size_t>(count); ++i) {
        // Truncation rounds to nearest: the number is not negative, but for the lowest of all.
        const float code = (elements[i] - minimum) * inverse + 0.5F;
        rounded[i] = static_cast<std::uint8_t>(std::clamp(static_cast<int>(code), 0, levels));
      }
    }
    const std::int64_t bytes = code_bytes(precision, count);
    if (precision == KvPrecision::kInt4) {
      const auto half = static_cast<std::size_t>(bytes);
      for (std::size_t i = 0; i < half; ++i) {
        rounded[i] = static_cast<std::uint8_t>(rounded[i] | rounded[i + half] << 4);
      }
    }
    std::memcpy(codes, rounded.data(), static_cast<std::size_t>(bytes));
    codes += bytes;
  }
}

}  // namespace hybridgen
