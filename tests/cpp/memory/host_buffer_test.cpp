// SPDX-License-Identifier: Apache-2.0
#include "memory/host_buffer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;

class HostBufferOfSize : public testing::TestWithParam<std::size_t> {};

TEST_P(HostBufferOfSize, IsZeroFilledWritableAndAligned) {
  HostBuffer buffer(GetParam());
  ASSERT_EQ(buffer.size_bytes(), GetParam());
  const std::size_t alignment = GetParam() >= 2 * kMiB ? 2 * kMiB : 64;
  EXPECT_EQ(reinterpret_cast<std::uintptr_t>(buffer.data()) % alignment, 0U);
  std::byte* const end = buffer.data() + buffer.size_bytes();
  EXPECT_TRUE(std::all_of(buffer.data(), end, [](std::byte b) { return b == std::byte{0}; }));
  std::fill(buffer.data(), end, std::byte{0xAB});
  EXPECT_EQ(*(end - 1), std::byte{0xAB});
}

INSTANTIATE_TEST_SUITE_P(SmallAndHuge,
                         HostBufferOfSize,
                         testing::Values(1, 4096, 4097, 2 * kMiB - 1, 2 * kMiB, 3 * kMiB + 5));

TEST(HostBuffer, OfZeroBytesHoldsNothing) {
  const HostBuffer buffer(0);
  EXPECT_EQ(buffer.data(), nullptr);
  EXPECT_EQ(buffer.size_bytes(), 0U);
}

TEST(HostBuffer, MovingHandsTheSameBytesOver) {
  HostBuffer first(100);
  first.data()[7] = std::byte{42};
  const std::byte* const place = first.data();
  HostBuffer second(std::move(first));
  EXPECT_EQ(second.data(), place);
  HostBuffer third(5000);
  third = std::move(second);
  EXPECT_EQ(third.data(), place);
  EXPECT_EQ(third.size_bytes(), 100U);
  EXPECT_EQ(third.data()[7], std::byte{42});
}

TEST(HostBuffer, ThatCannotBeHadIsOutOfMemory) {
  EXPECT_THROW(HostBuffer buffer(std::numeric_limits<std::size_t>::max()), OutOfMemoryError);
  EXPECT_THROW(HostBuffer(std::size_t{1} << 60), OutOfMemoryError);
}

}  // namespace
}  // namespace hybridgen
