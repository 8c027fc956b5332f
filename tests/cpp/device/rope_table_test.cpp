// SPDX-License-Identifier: Apache-2.0
// A table that grows must not change what earlier requests saw.
#include "device/rope_table.h"

#include <ATen/ops/equal.h>
#include <gtest/gtest.h>

namespace hybridgen {
namespace {

TEST(RopeTable, OfMorePositionsBeginsAsOneOfFewer) {
  ModelConfig config;
  config.head_dim = 80;
  config.rope_scaling = {8.0, 1.0, 4.0, 64};
  const RopeTable large = build_rope_table(config, 9000, at::kCPU);
  for (const std::int64_t positions : {1, 3, 257, 4096}) {
    const RopeTable small = build_rope_table(config, positions, at::kCPU);
    EXPECT_TRUE(at::equal(small.cosines, large.cosines.narrow(0, 0, positions))) << positions;
    EXPECT_TRUE(at::equal(small.sines, large.sines.narrow(0, 0, positions))) << positions;
  }
}

}  // namespace
}  // namespace hybridgen
