// SPDX-License-Identifier: Apache-2.0
#include "kernels/coded_rows.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <vector>

#include "kernels/float16.h"

namespace hybridgen::kernels {

namespace {

float read_scale(DType dtype, const void* scales, std::int64_t at) {
  if (dtype == DType::kFloat32) return static_cast<const float*>(scales)[at];
  return from_float16(static_cast<const std::uint16_t*>(scales)[at]);
}

/// Stores `value` and returns what is read back.
float write_scale(DType dtype, void* scales, std::int64_t at, float value) {
  if (dtype == DType::kFloat32) {
    static_cast<float*>(scales)[at] = value;
  } else {
    static_cast<std::uint16_t*>(scales)[at] = to_float16(value);
  }
  return read_scale(dtype, scales, at);
}

/// The code of the number 0.
int zero_of(int bits, const void* minima) { return bits == 4 && minima == nullptr ? 8 : 0; }

/// What the numbers of a group are steps of, and where they start.
struct Steps {
  float scale = 0.0F;
  float minimum = 0.0F;
  int least = 0;  ///< number
  int most = 0;
};

Steps steps_of(const CodedFormat& format, const float* values, std::int64_t count) {
  float least = values[0];
  float most = values[0];
  for (std::int64_t i = 1; i < count; ++i) {
    least = std::min(least, values[i]);
    most = std::max(most, values[i]);
  }
  if (format.has_minima) {
    // Divided first: the range of two large numbers may exceed float32.
    return {.scale = most / 15 - least / 15, .minimum = least, .least = 0, .most = 15};
  }
  if (format.bits == 8) {
    return {.scale = std::max(most, -least) / 127, .least = -127, .most = 127};
  }
  return {.scale = (most > -least ? most : least) / -8, .least = -8, .most = 7};
}

bool are_finite(const float* values, std::int64_t count) {
  std::uint32_t peak = 0;  // bits of magnitudes order as they do
  for (std::int64_t i = 0; i < count; ++i) {
    peak = std::max(peak, std::bit_cast<std::uint32_t>(values[i]) & 0x7fffffffU);
  }
  return peak < 0x7f800000U;
}

/// To the nearest whole number, ties to even; below 2^22.
float rounded(float value) { return (value + 12582912.0F) - 12582912.0F; }

}  // namespace

CodedWeightView CodedWeightView::from(std::int64_t first) const {
  CodedWeightView view = *this;
  const std::int64_t skipped =
      first * coded_groups(inputs, group) * static_cast<std::int64_t>(size_of(scale_dtype));
  view.codes += first * coded_row_bytes(bits, inputs);
  view.scales = static_cast<const std::byte*>(scales) + skipped;
  if (minima != nullptr) view.minima = static_cast<const std::byte*>(minima) + skipped;
  return view;
}

void pack_row(int bits, const std::int8_t* codes, std::int64_t inputs, std::uint8_t* row) {
  std::memset(row, 0, static_cast<std::size_t>(coded_row_bytes(bits, inputs)));
  if (bits == 8) {
    std::memcpy(row, codes, static_cast<std::size_t>(inputs));
    return;
  }
  for (std::int64_t first = 0; first < inputs; first += 32) {
    std::uint8_t* block = row + first / 2;
    for (std::int64_t j = 0; j < std::min<std::int64_t>(16, inputs - first); ++j) {
      block[j] = static_cast<std::uint8_t>(codes[first + j] & 0xf);
    }
    for (std::int64_t j = 0; j < std::min<std::int64_t>(16, inputs - first - 16); ++j) {
      block[j] = static_cast<std::uint8_t>(block[j] | (codes[first + 16 + j] & 0xf) << 4);
    }
  }
}

void unpack_row(int bits, const std::uint8_t* row, std::int64_t inputs, std::int8_t* codes) {
  if (bits == 8) {
    std::memcpy(codes, row, static_cast<std::size_t>(inputs));
    return;
  }
  for (std::int64_t i = 0; i < inputs; ++i) {
    const int byte = row[i / 32 * 16 + i % 16];
    codes[i] = static_cast<std::int8_t>(i % 32 < 16 ? byte & 0xf : byte >> 4);
  }
}

void restore_row(const CodedWeightView& weight, std::int64_t output, float* values) {
  const CodedWeightView row = weight.from(output);
  const int zero = zero_of(row.bits, row.minima);
  std::vector<std::int8_t> codes(static_cast<std::size_t>(row.inputs));
  unpack_row(row.bits, row.codes, row.inputs, codes.data());
  for (std::int64_t i = 0; i < row.inputs; ++i) {
    const float scale = read_scale(row.scale_dtype, row.scales, i / row.group);
    const float product = scale * static_cast<float>(codes[static_cast<std::size_t>(i)] - zero);
    values[i] = row.minima == nullptr
                    ? product
                    : product + read_scale(row.scale_dtype, row.minima, i / row.group);
  }
}

bool quantise_row(const CodedFormat& format,
                  const float* row,
                  std::int64_t inputs,
                  std::uint8_t* codes,
                  void* scales,
                  void* minima) {
  if (!are_finite(row, inputs)) return false;
  std::vector<std::int8_t> codes_of_row(static_cast<std::size_t>(inputs));
  for (std::int64_t first = 0; first < inputs; first += format.group) {
    const std::int64_t g = first / format.group;
    const std::int64_t count = std::min(format.group, inputs - first);
    const Steps steps = steps_of(format, row + first, count);
    const float scale = write_scale(format.scale_dtype, scales, g, steps.scale);
    const float minimum =
        format.has_minima ? write_scale(format.scale_dtype, minima, g, steps.minimum) : 0.0F;
    if (!std::isfinite(scale) || !std::isfinite(minimum)) return false;
    const auto least = static_cast<float>(steps.least);
    const auto most = static_cast<float>(steps.most);
    for (std::int64_t i = first; i < first + count; ++i) {
      const float number = scale == 0.0F ? 0.0F : (row[i] - minimum) / scale;
      const float nearest = rounded(std::clamp(number, least, most));
      codes_of_row[static_cast<std::size_t>(i)] =
          static_cast<std::int8_t>(static_cast<int>(nearest) + zero_of(format.bits, minima));
    }
  }
  pack_row(format.bits, codes_of_row.data(), inputs, codes);
  return true;
}

}  // namespace hybridgen::kernels
