// SPDX-License-Identifier: Apache-2.0
// Bit-for-bit equality with ggml's own restoring is tested in Python, against the library gguf;
// here one block of each layout is worked out by hand.
#include "kernels/gguf_blocks.h"

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <vector>

#include "kernels/float16.h"

namespace hybridgen::kernels {
namespace {

constexpr std::uint32_t kQ8_0 = 8, kQ4_0 = 2, kQ4_1 = 3, kQ4_K = 12, kQ5_K = 13, kQ6_K = 14;

std::vector<std::uint8_t> zeros_of(const GgufFormat& format) {
  return std::vector<std::uint8_t>(static_cast<std::size_t>(format.block_bytes), 0);
}

void put_half(std::vector<std::uint8_t>& block, std::size_t at, float value) {
  const std::uint16_t bits = to_float16(value);
  block[at] = static_cast<std::uint8_t>(bits & 0xff);
  block[at + 1] = static_cast<std::uint8_t>(bits >> 8);
}

std::vector<float> restored(std::uint32_t id, const std::vector<std::uint8_t>& block) {
  const GgufFormat& format = *find_gguf_format(id);
  std::vector<float> values(static_cast<std::size_t>(format.block_values));
  restore_gguf_row(format, block.data(), format.block_values, values.data());
  return values;
}

TEST(GgufBlocks, KnowsTheTypesThatItReadsAndNoOther) {
  EXPECT_EQ(gguf_formats().size(), 9U);
  for (const GgufFormat& format : gguf_formats()) {
    EXPECT_EQ(find_gguf_format(format.id), &format);
    if (format.bits > 0) {
      EXPECT_EQ(format.block_values % format.group, 0) << format.name;
    }
  }
  EXPECT_EQ(find_gguf_format(6), nullptr);  // Q5_0
  EXPECT_EQ(find_gguf_format(0xffffffffU), nullptr);
}

TEST(GgufBlocks, HoldEightBitsInOrderAndFourBitsInTwoHalves) {
  auto block = zeros_of(*find_gguf_format(kQ8_0));
  put_half(block, 0, 0.5F);
  block[2] = 127;
  block[33] = 0x80;  // -128
  EXPECT_EQ(restored(kQ8_0, block).front(), 63.5F);
  EXPECT_EQ(restored(kQ8_0, block).back(), -64.0F);

  block = zeros_of(*find_gguf_format(kQ4_0));
  put_half(block, 0, 2.0F);
  block[2] = 0x1f;  // value 0: 15 - 8; value 16: 1 - 8
  EXPECT_EQ(restored(kQ4_0, block)[0], 14.0F);
  EXPECT_EQ(restored(kQ4_0, block)[16], -14.0F);
  EXPECT_EQ(restored(kQ4_0, block)[1], -16.0F);

  block = zeros_of(*find_gguf_format(kQ4_1));
  put_half(block, 0, 2.0F);
  put_half(block, 2, -3.0F);
  block[4] = 0x1f;
  EXPECT_EQ(restored(kQ4_1, block)[0], 27.0F);
  EXPECT_EQ(restored(kQ4_1, block)[16], -1.0F);
}

TEST(GgufBlocks, OfSuperBlocksHaveSixBitScalesAndMinimaInTwelveBytes) {
  // Scale j is 2 j + 40 and minimum j is 3 j + 33: all six bits of the later ones are used.
  std::array<std::uint8_t, 12> packed{};
  for (std::size_t j = 0; j < 4; ++j) {
    const std::size_t later_scale = 2 * (j + 4) + 40, later_minimum = 3 * (j + 4) + 33;
    packed[j] = static_cast<std::uint8_t>((2 * j + 40) | ((later_scale >> 4) << 6));
    packed[4 + j] = static_cast<std::uint8_t>((3 * j + 33) | ((later_minimum >> 4) << 6));
    packed[8 + j] = static_cast<std::uint8_t>((later_scale & 15) | ((later_minimum & 15) << 4));
  }
  for (const std::uint32_t id : {kQ4_K, kQ5_K}) {
    auto block = zeros_of(*find_gguf_format(id));
    put_half(block, 0, 0.5F);
    put_half(block, 2, 0.25F);
    std::copy(packed.begin(), packed.end(), block.begin() + 4);
    const std::size_t nibbles = id == kQ4_K ? 16 : 48;
    block[nibbles] = 0x3c;              // groups 0 and 1, value 0: 12 and 3
    if (id == kQ5_K) block[16] = 0x81;  // value 0 of groups 0 and 7 is 16 more
    const float fifth = id == kQ5_K ? 16.0F : 0.0F;
    const std::vector<float> values = restored(id, block);
    EXPECT_EQ(values[0], 20.0F * (12.0F + fifth) - 0.25F * 33);
    EXPECT_EQ(values[32], 21.0F * 3.0F - 0.25F * 36);
    EXPECT_EQ(values[7 * 32], 27.0F * fifth - 0.25F * 54);
    EXPECT_EQ(values[255], -0.25F * 54);
  }
}

TEST(GgufBlocks, OfSixBitsHaveSignedScalesOfSixteen) {
  auto block = zeros_of(*find_gguf_format(kQ6_K));
  put_half(block, 208, 0.5F);
  block[192] = static_cast<std::uint8_t>(-4);  // scale of values 0 to 15
  block[192 + 15] = 6;                         // of 240 to 255
  block[0] = 0x0f;                             // value 0: low bits 15
  block[128] = 0x03;                           // and high bits 3: 63 - 32
  block[127] = 0xf0;                           // value 255: low bits 15
  block[191] = 0x80;                           // and high bits 2: 47 - 32
  const std::vector<float> values = restored(kQ6_K, block);
  EXPECT_EQ(values[0], -2.0F * 31);
  EXPECT_EQ(values[1], -2.0F * -32);
  EXPECT_EQ(values[255], 3.0F * 15);
  EXPECT_EQ(values[16], 0.0F);
}

}  // namespace
}  // namespace hybridgen::kernels
