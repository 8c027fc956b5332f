// SPDX-License-Identifier: Apache-2.0
#include "kernels/packed_integers.h"

#include <array>

#include "hybridgen/core/error.h"

namespace hybridgen::kernels {
namespace {

/// The place of output o % 8 in a word of AWQ.
constexpr std::array<std::int64_t, 8> kAwqPlaces = {0, 4, 1, 5, 2, 6, 3, 7};

std::uint32_t field(std::int32_t word, std::int64_t place, int bits) {
  const std::uint32_t mask = (1U << bits) - 1;
  return (static_cast<std::uint32_t>(word) >> static_cast<std::uint32_t>(place * bits)) & mask;
}

std::int64_t per_word(const PackedIntegers& packed) { return 32 / packed.bits; }

/// Where a word of several outputs holds one of them.
std::int64_t place_of_output(const PackedIntegers& packed, std::int64_t output) {
  const std::int64_t place = output % per_word(packed);
  return packed.layout == PackedLayout::kAwq ? kAwqPlaces[static_cast<std::size_t>(place)] : place;
}

void unpack_gptq(const PackedIntegers& packed,
                 std::int64_t first,
                 std::int64_t count,
                 std::uint8_t* codes) {
  const std::int64_t per = per_word(packed);
  for (std::int64_t word_row = 0; word_row < packed.inputs / per; ++word_row) {
    const std::int32_t* words = packed.codes + word_row * packed.outputs + first;
    for (std::int64_t row = 0; row < count; ++row) {
      for (std::int64_t place = 0; place < per; ++place) {
        codes[row * packed.inputs + word_row * per + place] =
            static_cast<std::uint8_t>(field(words[row], place, packed.bits));
      }
    }
  }
}

void unpack_awq(const PackedIntegers& packed,
                std::int64_t first,
                std::int64_t count,
                std::uint8_t* codes) {
  const std::int64_t per = per_word(packed);
  const std::int64_t words_per_input = packed.outputs / per;
  for (std::int64_t input = 0; input < packed.inputs; ++input) {
    const std::int32_t* words = packed.codes + input * words_per_input;
    for (std::int64_t row = 0; row < count; ++row) {
      const std::int64_t output = first + row;
      codes[row * packed.inputs + input] = static_cast<std::uint8_t>(
          field(words[output / per], place_of_output(packed, output), packed.bits));
    }
  }
}

}  // namespace

void check(const PackedIntegers& packed) {
  const bool is_known =
      packed.bits == 4 || (packed.bits == 8 && packed.layout == PackedLayout::kGptq);
  if (!is_known) {
    throw CheckpointError(
        message("[unpack] bits is ", packed.bits, "; allowed: 4, and 8 in the layout of GPTQ"));
  }
  const std::int64_t per = per_word(packed);
  const bool fits_words = packed.layout == PackedLayout::kAwq || packed.inputs % per == 0;
  if (packed.inputs <= 0 || packed.outputs <= 0 || packed.groups <= 0 || !fits_words ||
      packed.outputs % per != 0) {
    throw CheckpointError(message("[unpack] a matrix of ",
                                  packed.outputs,
                                  " x ",
                                  packed.inputs,
                                  " in ",
                                  packed.groups,
                                  " groups does not fill words of ",
                                  per,
                                  "; allowed: positive multiples of that"));
  }
  for (std::int64_t i = 0; i < packed.inputs; ++i) {
    if (packed.group_of_input[i] < 0 || packed.group_of_input[i] >= packed.groups) {
      throw CheckpointError(message("[unpack] g_idx is ",
                                    packed.group_of_input[i],
                                    " for input ",
                                    i,
                                    "; allowed: 0 to ",
                                    packed.groups - 1,
                                    "; the checkpoint is damaged, download it again"));
    }
  }
}

void unpack_codes(const PackedIntegers& packed,
                  std::int64_t first,
                  std::int64_t count,
                  std::uint8_t* codes) {
  if (packed.layout == PackedLayout::kAwq) {
    unpack_awq(packed, first, count, codes);
  } else {
    unpack_gptq(packed, first, count, codes);
  }
}

void unpack_zeros(const PackedIntegers& packed, std::int64_t output, std::uint8_t* zeros) {
  const std::int64_t per = per_word(packed);
  const std::int64_t words = packed.outputs / per;
  const std::uint32_t mask = (1U << packed.bits) - 1;
  for (std::int64_t group = 0; group < packed.groups; ++group) {
    const std::uint32_t stored = field(
        packed.zeros[group * words + output / per], place_of_output(packed, output), packed.bits);
    // Writers of the first format store 0 as -1, cut to its bits.
    zeros[group] =
        static_cast<std::uint8_t>((stored + static_cast<std::uint32_t>(packed.zero_offset)) & mask);
  }
}

void restore_packed_row(const PackedIntegers& packed,
                        std::int64_t output,
                        const std::uint8_t* codes,
                        const std::uint8_t* zeros,
                        float* values) {
  for (std::int64_t i = 0; i < packed.inputs; ++i) {
    const std::int64_t group = packed.group_of_input[i];
    values[i] = packed.scales[group * packed.outputs + output] *
                static_cast<float>(static_cast<int>(codes[i]) - static_cast<int>(zeros[group]));
  }
}

}  // namespace hybridgen::kernels
