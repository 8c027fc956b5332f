// SPDX-License-Identifier: Apache-2.0
// Host memory that CUDA pins, with kernels of this build: of a GPU, or of the emulator.
#include "kernels/cuda_host_pins.h"

#include <gtest/gtest.h>

#include <cstdlib>
#include <memory>

#include "kernels/cuda_kernels.h"

namespace hybridgen::kernels {
namespace {

constexpr std::size_t kBytes = 65536;

TEST(HostPinsCuda, HoldUntilTheirEndAndNotTwice) {
  if (cuda_device_count() == 0) GTEST_SKIP() << "there is no CUDA device";
  const auto release = [](void* memory) { std::free(memory); };
  const std::unique_ptr<void, decltype(release)> memory(std::aligned_alloc(kBytes, kBytes));
  EXPECT_EQ(pin_host_cuda(memory.get(), kBytes), nullptr);
  EXPECT_NE(pin_host_cuda(memory.get(), kBytes), nullptr);
  unpin_host_cuda(memory.get());
  EXPECT_EQ(pin_host_cuda(memory.get(), kBytes), nullptr);
  unpin_host_cuda(memory.get());
}

TEST(HostPinsCuda, SayWhyNot) {
  if (!has_cuda_kernels()) GTEST_SKIP() << "this build has no CUDA kernels";
  EXPECT_NE(pin_host_cuda(nullptr, 0), nullptr);
}

}  // namespace
}  // namespace hybridgen::kernels
