// SPDX-License-Identifier: Apache-2.0
#include "kernels/gguf_blocks.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>

#include "kernels/float16.h"

namespace hybridgen::kernels {
namespace {

enum Id : std::uint32_t {
  kF32 = 0,
  kF16 = 1,
  kQ4_0 = 2,
  kQ4_1 = 3,
  kQ8_0 = 8,
  kQ4_K = 12,
  kQ5_K = 13,
  kQ6_K = 14,
  kBF16 = 30,
};

constexpr std::array<GgufFormat, 9> kFormats = {{
    {kF32, "F32", 1, 4, 0, 0, false},
    {kF16, "F16", 1, 2, 0, 0, false},
    {kBF16, "BF16", 1, 2, 0, 0, false},
    {kQ8_0, "Q8_0", 32, 34, 8, 32, false},
    {kQ4_0, "Q4_0", 32, 18, 4, 32, false},
    {kQ4_1, "Q4_1", 32, 20, 4, 32, true},
    {kQ4_K, "Q4_K", 256, 144, 4, 32, true},
    {kQ5_K, "Q5_K", 256, 176, 8, 32, true},
    {kQ6_K, "Q6_K", 256, 210, 8, 16, false},
}};

static_assert(std::endian::native == std::endian::little, "files are read as they lie in memory");

template <typename T>
T read_as(const std::uint8_t* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(T));
  return value;
}

float read_half(const std::uint8_t* bytes) { return from_float16(read_as<std::uint16_t>(bytes)); }

float read_bfloat16(const std::uint8_t* bytes) {
  return std::bit_cast<float>(static_cast<std::uint32_t>(read_as<std::uint16_t>(bytes)) << 16);
}

constexpr std::int64_t kLargestBlock = 256;
constexpr std::int64_t kLargestGroups = 16;  // of a block

/// Where the parts of one block go.
struct Parts {
  std::int8_t* codes;
  float* scales;
  float* minima;
};

/// The first half of the values lies in the low nibbles of the bytes, the second in the high ones.
void split_nibbles(const std::uint8_t* bytes, std::int64_t count, int less, std::int8_t* codes) {
  for (std::int64_t i = 0; i < count; ++i) {
    codes[i] = static_cast<std::int8_t>((bytes[i] & 15) - less);
    codes[count + i] = static_cast<std::int8_t>((bytes[i] >> 4) - less);
  }
}

void split_q8_0(const std::uint8_t* block, const Parts& parts) {
  parts.scales[0] = read_half(block);
  for (std::int64_t i = 0; i < 32; ++i) {
    parts.codes[i] = static_cast<std::int8_t>(block[2 + i]);
  }
}

void split_q4_0(const std::uint8_t* block, const Parts& parts) {
  parts.scales[0] = read_half(block);
  split_nibbles(block + 2, 16, 8, parts.codes);
}

void split_q4_1(const std::uint8_t* block, const Parts& parts) {
  parts.scales[0] = read_half(block);
  parts.minima[0] = read_half(block + 2);
  split_nibbles(block + 4, 16, 0, parts.codes);
}

/// Eight scales and eight minima of six bits in twelve bytes, over two float16 factors.
void split_k_scales(const std::uint8_t* block, const Parts& parts) {
  const float scale = read_half(block);
  const float minimum = read_half(block + 2);
  const std::uint8_t* packed = block + 4;
  for (int k = 0; k < 4; ++k) {
    const int tail = packed[8 + k];  // the low four bits of the later scale and minimum
    const int later_scale = (tail & 15) | ((packed[k] >> 6) << 4);
    const int later_minimum = (tail >> 4) | ((packed[4 + k] >> 6) << 4);
    parts.scales[k] = scale * static_cast<float>(packed[k] & 63);
    parts.scales[4 + k] = scale * static_cast<float>(later_scale);
    parts.minima[k] = -(minimum * static_cast<float>(packed[4 + k] & 63));
    parts.minima[4 + k] = -(minimum * static_cast<float>(later_minimum));
  }
}

void split_q4_k(const std::uint8_t* block, const Parts& parts) {
  split_k_scales(block, parts);
  for (int chunk = 0; chunk < 4; ++chunk) {
    split_nibbles(block + 16 + 32 * chunk, 32, 0, parts.codes + 64 * chunk);
  }
}

void split_q5_k(const std::uint8_t* block, const Parts& parts) {
  split_k_scales(block, parts);
  const std::uint8_t* fifth_bits = block + 16;  // bit g of byte i belongs to value i of group g
  for (int chunk = 0; chunk < 4; ++chunk) {
    split_nibbles(block + 48 + 32 * chunk, 32, 0, parts.codes + 64 * chunk);
  }
  for (int group = 0; group < 8; ++group) {
    for (int i = 0; i < 32; ++i) {
      const int high = ((fifth_bits[i] >> group) & 1) << 4;
      parts.codes[32 * group + i] = static_cast<std::int8_t>(parts.codes[32 * group + i] | high);
    }
  }
}

void split_q6_k(const std::uint8_t* block, const Parts& parts) {
  const std::uint8_t* high_bits = block + 128;
  const std::uint8_t* scales = block + 192;
  const float scale = read_half(block + 208);
  for (int group = 0; group < 16; ++group) {
    parts.scales[group] = scale * static_cast<float>(static_cast<std::int8_t>(scales[group]));
  }
  for (int half = 0; half < 2; ++half) {
    for (int quarter = 0; quarter < 4; ++quarter) {
      const std::uint8_t* low = block + 64 * half + 32 * (quarter % 2);
      for (int i = 0; i < 32; ++i) {
        const int low_bits = (low[i] >> (quarter < 2 ? 0 : 4)) & 15;
        const int high = (high_bits[32 * half + i] >> (2 * quarter)) & 3;
        parts.codes[128 * half + 32 * quarter + i] =
            static_cast<std::int8_t>((low_bits | (high << 4)) - 32);
      }
    }
  }
}

using SplitBlock = void (*)(const std::uint8_t*, const Parts&);

SplitBlock splitter_of(std::uint32_t id) {
  switch (id) {
    case kQ8_0:
      return split_q8_0;
    case kQ4_0:
      return split_q4_0;
    case kQ4_1:
      return split_q4_1;
    case kQ4_K:
      return split_q4_k;
    case kQ5_K:
      return split_q5_k;
    case kQ6_K:
      return split_q6_k;
    default:
      return nullptr;
  }
}

void restore_plain(const GgufFormat& format,
                   const std::uint8_t* row,
                   std::int64_t inputs,
                   float* values) {
  for (std::int64_t i = 0; i < inputs; ++i) {
    const std::uint8_t* at = row + i * format.block_bytes;
    values[i] = format.id == kF32   ? read_as<float>(at)
                : format.id == kF16 ? read_half(at)
                                    : read_bfloat16(at);
  }
}

}  // namespace

std::span<const GgufFormat> gguf_formats() { return kFormats; }

const GgufFormat* find_gguf_format(std::uint32_t id) {
  const auto* found = std::ranges::find(kFormats, id, &GgufFormat::id);
  return found == kFormats.end() ? nullptr : found;
}

void split_gguf_row(const GgufFormat& format,
                    const std::uint8_t* row,
                    std::int64_t inputs,
                    std::int8_t* codes,
                    float* scales,
                    float* minima) {
  const SplitBlock split = splitter_of(format.id);
  const std::int64_t groups = format.block_values / format.group;
  for (std::int64_t block = 0; block < inputs / format.block_values; ++block) {
    split(row + block * format.block_bytes,
          {.codes = codes + block * format.block_values,
           .scales = scales + block * groups,
           .minima = format.has_minima ? minima + block * groups : nullptr});
  }
}

void restore_gguf_row(const GgufFormat& format,
                      const std::uint8_t* row,
                      std::int64_t inputs,
                      float* values) {
  if (format.bits == 0) {
    restore_plain(format, row, inputs, values);
    return;
  }
  std::array<std::int8_t, kLargestBlock> codes;
  std::array<float, kLargestGroups> scales;
  std::array<float, kLargestGroups> minima{};  // stays zero where a format has none
  const SplitBlock split = splitter_of(format.id);
  for (std::int64_t block = 0; block < inputs / format.block_values; ++block) {
    split(row + block * format.block_bytes,
          {.codes = codes.data(), .scales = scales.data(), .minima = minima.data()});
    float* out = values + block * format.block_values;
    for (std::int64_t i = 0; i < format.block_values; ++i) {
      const auto group = static_cast<std::size_t>(i / format.group);
      const float product = scales[group] * static_cast<float>(codes[static_cast<std::size_t>(i)]);
      out[i] = format.has_minima ? product + minima[group] : product;
    }
  }
}

}  // namespace hybridgen::kernels
