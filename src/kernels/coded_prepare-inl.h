// SPDX-License-Identifier: Apache-2.0
// x to 16-bit integers, and coded rows back to numbers. Plain loops over fixed counts, which
// compilers turn into vectors; compiled without contraction, so that a product and a sum round as
// they do everywhere else.
#pragma once

#include "kernels/coded_shape-inl.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

constexpr float kMostCode = 32767.0F;
/// Below this a block counts as 0: its scale's inverse would overflow.
constexpr float kLeastPeak = 0x1p-100F;

std::int64_t prepared_bytes(const CodedLinearArgs& args) {
  return args.rows * prepared_shape(args.weight).row_bytes(args.weight.bits);
}

/// Codes of `Count` values, their scale, and scale * the codes' sum * `factor`.
template <int Count>
HYBRIDGEN_INLINE void code_block(
    const float* values, float factor, std::int16_t* codes, float& scale, float& sum) {
  std::int32_t peak_bits = 0;  // bits of magnitudes order as they do, NaN above all others
  for (int i = 0; i < Count; ++i) {
    const std::int32_t bits = __builtin_bit_cast(std::int32_t, values[i]) & 0x7fffffff;
    peak_bits = bits > peak_bits ? bits : peak_bits;
  }
  const auto peak = __builtin_bit_cast(float, peak_bits);
  constexpr std::int32_t kInfinity = 0x7f800000;
  const bool is_coded = peak_bits < kInfinity && peak >= kLeastPeak;
  const float inverse = is_coded ? kMostCode / peak : 0.0F;
  // Pushes the fraction out; sums stay below 2^22, where that rounds to nearest even.
  constexpr float kRounding = 12582912.0F;
  std::int32_t total = 0;
  for (int i = 0; i < Count; ++i) {
    const float value = is_coded ? values[i] : 0.0F;
    const auto code = static_cast<std::int32_t>((value * inverse + kRounding) - kRounding);
    codes[i] = static_cast<std::int16_t>(code);
    total += code;
  }
  // Of a row with NaN or infinity every output has to be NaN.
  scale = peak_bits >= kInfinity ? __builtin_nanf("") : is_coded ? peak / kMostCode : 0.0F;
  sum = scale * static_cast<float>(total) * factor;
}

template <int Bits, typename T>
void prepare_row(
    const T* x, std::int64_t inputs, float factor, const PreparedShape& shape, PreparedRow row) {
  constexpr std::int64_t kInputs = kVectorInputs<Bits>;
  for (std::int64_t v = 0; v < shape.chunks * kChunkVectors; ++v) {
    float values[extent(kInputs)];
    for (std::int64_t i = 0; i < kInputs; i += kLanes) {
      const std::int64_t left = inputs - v * kInputs - i;
      store(values + i, left <= 0 ? zero() : load_up_to(x + v * kInputs + i, left));
    }
    std::int16_t codes[extent(kInputs)];
    for (std::int64_t b = 0; b < 2; ++b) {
      const std::int64_t lane = v / kChunkVectors * kChunkBlocks + v % kChunkVectors + 4 * b;
      static_assert(block_of_lane(1 + 4) == 2 * 1 + 1);
      code_block<kBlock<Bits>>(values + b * kBlock<Bits>,
                               factor,
                               codes + b * kBlock<Bits>,
                               row.scales[lane],
                               row.sums[lane]);
    }
    std::int16_t* to = row.codes + v * kInputs;
    for (std::int64_t part = 0; part < kParts<Bits>; ++part) {
#pragma GCC unroll 16
      for (std::int64_t word = 0; word < kVectorWords; ++word) {
        to[part * kVectorWords + word] = codes[input_at<Bits>(part, word)];
      }
    }
  }
}

void prepare_rows(const CodedLinearArgs& args,
                  std::int64_t begin,
                  std::int64_t end,
                  void* prepared) {
  const CodedWeightView& weight = args.weight;
  const PreparedShape shape = prepared_shape(weight);
  with_element_type(args.dtype, [&]<typename T>(const T*) {
    for (std::int64_t r = begin; r < end; ++r) {
      const T* x = static_cast<const T*>(args.x) + r * args.x_stride;
      const PreparedRow row = shape.row(weight.bits, prepared, r);
      if (weight.bits == 8) {
        prepare_row<8>(x, weight.inputs, 1.0F, shape, row);
      } else {
        prepare_row<4>(x, weight.inputs, weight.minima == nullptr ? -8.0F : 1.0F, shape, row);
      }
    }
  });
}

HYBRIDGEN_INLINE float scale_at(DType dtype, const void* scales, std::int64_t at) {
  return dtype == DType::kFloat32 ? load_one(static_cast<const float*>(scales) + at)
                                  : load_one(static_cast<const Half*>(scales) + at);
}

/// One row of weights as numbers.
template <int Bits, typename T>
void restore_one(const CodedWeightView& weight, T* values) {
  constexpr int kCount = kBlock<Bits>;
  const float zero_code = Bits == 4 && weight.minima == nullptr ? 8.0F : 0.0F;
  float scale = 0.0F;
  float minimum = 0.0F;
  std::int64_t group = -1;
  for (std::int64_t first = 0; first < weight.inputs; first += kCount) {
    if (first / weight.group != group) {
      group = first / weight.group;
      scale = scale_at(weight.scale_dtype, weight.scales, group);
      if (weight.minima != nullptr) minimum = scale_at(weight.scale_dtype, weight.minima, group);
    }
    const std::uint8_t* bytes = weight.codes + first * Bits / 8;
    float numbers[extent(kCount)];
    for (int j = 0; j < 16; ++j) {
      if constexpr (Bits == 8) {
        numbers[j] = static_cast<float>(static_cast<std::int8_t>(bytes[j]));
      } else {
        numbers[j] = static_cast<float>(bytes[j] & 0xf) - zero_code;
        numbers[j + 16] = static_cast<float>(bytes[j] >> 4) - zero_code;
      }
    }
    for (int j = 0; j < kCount; ++j) numbers[j] *= scale;
    if (weight.minima != nullptr) {
      for (int j = 0; j < kCount; ++j) numbers[j] += minimum;
    }
    for (int j = 0; j < kCount; j += kLanes) {
      const std::int64_t left = weight.inputs - first - j;
      if (left > 0) store_up_to(values + first + j, left, load(numbers + j));
    }
  }
}

void restore_rows(const RestoreRowsArgs& args) {
  with_element_type(args.dtype, [&]<typename T>(const T*) {
    for (std::int64_t n = 0; n < args.count; ++n) {
      const CodedWeightView row = args.weight.from(args.first + n);
      T* values = static_cast<T*>(args.values) + n * row.inputs;
      if (row.bits == 8) {
        restore_one<8>(row, values);
      } else {
        restore_one<4>(row, values);
      }
    }
  });
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
