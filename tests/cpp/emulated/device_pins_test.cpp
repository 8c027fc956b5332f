// SPDX-License-Identifier: Apache-2.0
#include "device/device_pins.h"

#include <gtest/gtest.h>

#include <cstddef>
#include <string>
#include <vector>

#include "device/device_context.h"
#include "emulated/backend.h"
#include "hybridgen/core/error.h"
#include "support/emulated_cuda.h"

namespace hybridgen {
namespace {

class DevicePinsOfEmulated : public ::testing::Test {
 protected:
  testing::EmulatedCuda emulated_;
  DeviceContext device_{emulated_.name()};
  std::vector<std::byte> memory_ = std::vector<std::byte>(4 * page_bytes());
  PageSpan first_{memory_.data(), page_bytes()};
  PageSpan second_{memory_.data() + page_bytes(), page_bytes()};
};

TEST(DevicePins, AreNoneOfADeviceThatIsTheHost) { EXPECT_EQ(DeviceContext("cpu").pins(), nullptr); }

TEST_F(DevicePinsOfEmulated, AreThoseThatItsCopiesKnow) {
  ASSERT_NE(device_.pins(), nullptr);
  EXPECT_TRUE(device_.pins()->pin(first_));
  EXPECT_TRUE(emulated::is_pinned(first_.data));
  EXPECT_FALSE(emulated::is_pinned(second_.data));
  device_.pins()->unpin(first_);
  EXPECT_FALSE(emulated::is_pinned(first_.data));
}

TEST_F(DevicePinsOfEmulated, RefusedOnceThereWereSomeAreAnError) {
  EXPECT_TRUE(device_.pins()->pin(first_));
  try {
    device_.pins()->pin(first_);
    FAIL() << "it is pinned already";
  } catch (const OutOfMemoryError& error) {
    EXPECT_EQ(std::string(error.what()).find("[pin host memory] pinning "), 0U) << error.what();
  }
  EXPECT_TRUE(device_.pins()->pin(second_));
  device_.pins()->unpin(first_);
  device_.pins()->unpin(second_);
}

TEST_F(DevicePinsOfEmulated, RefusedAtFirstAreNoneFromThenOn) {
  ASSERT_TRUE(emulated::pin(first_.data, first_.bytes));
  EXPECT_FALSE(device_.pins()->pin(first_));
  EXPECT_FALSE(device_.pins()->pin(second_));
  EXPECT_FALSE(emulated::is_pinned(second_.data));
  emulated::unpin(first_.data);
}

}  // namespace
}  // namespace hybridgen
