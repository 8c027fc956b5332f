// SPDX-License-Identifier: Apache-2.0
#include "device/host_tensors.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "hybridgen/core/error.h"
#include "memory/huge_pages.h"

namespace hybridgen {
namespace {

TEST(HostTensors, LieOneBehindTheOtherAtCacheLinesAndApart) {
  HostTensors tensors;
  std::vector<at::Tensor> all;
  for (const std::int64_t rows : {1, 3, 1000, 7, 5000}) {
    all.push_back(tensors.allocate({rows, 33}, at::kBFloat16));
    all.back().fill_(static_cast<double>(rows));
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(all.back().data_ptr()) % 64, 0U);
    EXPECT_TRUE(all.back().is_contiguous());
  }
  for (const at::Tensor& tensor : all) {
    EXPECT_TRUE(tensor.eq(static_cast<double>(tensor.size(0))).all().item<bool>());
  }
}

TEST(HostTensors, ATensorOutlivesWhoeverMadeIt) {
  at::Tensor kept;
  {
    HostTensors tensors;
    const at::Tensor gone = tensors.allocate({10}, at::kFloat);
    kept = tensors.allocate({1 << 20}, at::kFloat).narrow(0, 5, 100);
  }
  kept.fill_(2.0);
  EXPECT_EQ(kept.sum().item<float>(), 200.0F);
}

TEST(HostTensors, SmallMatricesShareHugePages) {
  const std::int64_t before = huge_pages().asked_bytes;
  HostTensors tensors;
  std::vector<at::Tensor> all;
  constexpr std::int64_t kBytes = std::int64_t{512} << 10;
  for (int i = 0; i < 64; ++i) all.push_back(tensors.allocate({kBytes / 4}, at::kFloat));
  // All but the first blocks, which are smaller than a huge page.
  EXPECT_GE(huge_pages().asked_bytes - before, 60 * kBytes);
}

TEST(HostTensors, ThatDoNotFitAreOutOfMemory) {
  HostTensors tensors;
  EXPECT_THROW(tensors.allocate({std::int64_t{1} << 58}, at::kFloat), OutOfMemoryError);
}

}  // namespace
}  // namespace hybridgen
