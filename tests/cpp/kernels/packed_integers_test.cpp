// SPDX-License-Identifier: Apache-2.0
#include "kernels/packed_integers.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <vector>

#include "hybridgen/core/error.h"

namespace hybridgen::kernels {
namespace {

/// Codes and zero points that differ everywhere, packed as the two formats do.
struct Example {
  PackedLayout layout;
  int bits;
  std::int64_t inputs = 16, outputs = 16, groups = 2;
  std::vector<std::int32_t> codes, zeros;
  std::vector<float> scales;
  std::vector<std::int32_t> group_of_input;

  Example(PackedLayout packed_layout, int code_bits) : layout(packed_layout), bits(code_bits) {
    const std::int64_t per = 32 / bits;
    codes.assign(static_cast<std::size_t>(inputs * outputs / per), 0);
    zeros.assign(static_cast<std::size_t>(groups * outputs / per), 0);
    for (std::int64_t o = 0; o < outputs; ++o) {
      for (std::int64_t i = 0; i < inputs; ++i) {
        const std::int64_t place = layout == PackedLayout::kAwq ? place_in_word(o) : i % per;
        const std::int64_t word =
            layout == PackedLayout::kAwq ? i * (outputs / per) + o / per : i / per * outputs + o;
        put(codes, word, place, code(o, i));
      }
      for (std::int64_t g = 0; g < groups; ++g) {
        const std::int64_t place = layout == PackedLayout::kAwq ? place_in_word(o) : o % per;
        put(zeros, g * (outputs / per) + o / per, place, zero(o, g));
      }
    }
    for (std::int64_t g = 0; g < groups; ++g) {
      for (std::int64_t o = 0; o < outputs; ++o) {
        scales.push_back(static_cast<float>(1 + g) / static_cast<float>(1 << (o % 4)));
      }
    }
    for (std::int64_t i = 0; i < inputs; ++i) {
      group_of_input.push_back(static_cast<std::int32_t>((i / 8 + i) % 2));  // in no order
    }
  }

  std::uint32_t mask() const { return (1U << bits) - 1; }
  std::uint32_t code(std::int64_t o, std::int64_t i) const {
    return static_cast<std::uint32_t>(o * 5 + i * 3 + 1) & mask();
  }
  std::uint32_t zero(std::int64_t o, std::int64_t g) const {
    return static_cast<std::uint32_t>(o * 3 + g * 7 + 2) & mask();
  }
  /// AWQ writes outputs 0 2 4 6 1 3 5 7 into a word, the lowest bits first.
  static std::int64_t place_in_word(std::int64_t o) {
    constexpr std::array<std::int64_t, 8> order = {0, 2, 4, 6, 1, 3, 5, 7};
    for (std::int64_t place = 0; place < 8; ++place) {
      if (order[static_cast<std::size_t>(place)] == o % 8) return place;
    }
    return -1;
  }
  void put(std::vector<std::int32_t>& words,
           std::int64_t word,
           std::int64_t place,
           std::uint32_t value) const {
    auto& slot = words[static_cast<std::size_t>(word)];
    slot = static_cast<std::int32_t>(static_cast<std::uint32_t>(slot) |
                                     value << static_cast<std::uint32_t>(place * bits));
  }
  PackedIntegers view(int zero_offset = 0) const {
    return {.layout = layout,
            .bits = bits,
            .inputs = inputs,
            .outputs = outputs,
            .groups = groups,
            .codes = codes.data(),
            .zeros = zeros.data(),
            .zero_offset = zero_offset,
            .scales = scales.data(),
            .group_of_input = group_of_input.data()};
  }
};

class Packed : public ::testing::TestWithParam<std::pair<PackedLayout, int>> {
 protected:
  Example example_{GetParam().first, GetParam().second};
};

TEST_P(Packed, CodesAndZeroPointsComeBackInTheirRows) {
  const PackedIntegers view = example_.view();
  check(view);
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(5 * view.inputs));
  unpack_codes(view, 7, 5, codes.data());
  for (std::int64_t row = 0; row < 5; ++row) {
    for (std::int64_t i = 0; i < view.inputs; ++i) {
      EXPECT_EQ(codes[static_cast<std::size_t>(row * view.inputs + i)], example_.code(7 + row, i));
    }
  }
  std::vector<std::uint8_t> zeros(2);
  for (std::int64_t o = 0; o < view.outputs; ++o) {
    unpack_zeros(view, o, zeros.data());
    EXPECT_EQ(zeros[0], example_.zero(o, 0));
    EXPECT_EQ(zeros[1], example_.zero(o, 1));
    unpack_zeros(example_.view(/*zero_offset=*/1), o, zeros.data());
    EXPECT_EQ(zeros[0], (example_.zero(o, 0) + 1) & example_.mask());
  }
}

TEST_P(Packed, RowsAreScalesTimesCodesLessZeroPointsOfEachInputsGroup) {
  const PackedIntegers view = example_.view();
  std::vector<std::uint8_t> codes(static_cast<std::size_t>(view.inputs)), zeros(2);
  std::vector<float> values(static_cast<std::size_t>(view.inputs));
  for (std::int64_t o = 0; o < view.outputs; ++o) {
    unpack_codes(view, o, 1, codes.data());
    unpack_zeros(view, o, zeros.data());
    restore_packed_row(view, o, codes.data(), zeros.data(), values.data());
    for (std::int64_t i = 0; i < view.inputs; ++i) {
      const std::int64_t g = view.group_of_input[i];
      const float expected =
          view.scales[g * view.outputs + o] *
          (static_cast<float>(example_.code(o, i)) - static_cast<float>(example_.zero(o, g)));
      EXPECT_EQ(values[static_cast<std::size_t>(i)], expected);
    }
  }
}

TEST_P(Packed, SizesAndGroupsThatDoNotFitAreRefused) {
  PackedIntegers view = example_.view();
  std::vector<std::int32_t> groups = example_.group_of_input;
  view.group_of_input = groups.data();
  for (const std::int32_t wrong : {-1, 2, 0x7fffffff}) {
    groups[5] = wrong;
    EXPECT_THROW(check(view), CheckpointError);
  }
  groups[5] = 1;
  check(view);
  for (const int bits : {0, 2, 3, 5, 16, 32, -4}) {
    PackedIntegers other = view;
    other.bits = bits;
    EXPECT_THROW(check(other), CheckpointError);
  }
  PackedIntegers other = view;
  other.outputs = 15;
  EXPECT_THROW(check(other), CheckpointError);
  other = view;
  other.groups = 0;
  EXPECT_THROW(check(other), CheckpointError);
}

INSTANTIATE_TEST_SUITE_P(Layouts,
                         Packed,
                         ::testing::Values(std::pair{PackedLayout::kGptq, 4},
                                           std::pair{PackedLayout::kGptq, 8},
                                           std::pair{PackedLayout::kAwq, 4}));

}  // namespace
}  // namespace hybridgen::kernels
