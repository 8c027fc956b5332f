// SPDX-License-Identifier: Apache-2.0
#include "memory/node_read_rate.h"

#include <gtest/gtest.h>

#include "hybridgen/core/error.h"
#include "memory/numa.h"
#include "runtime/cpus.h"

namespace hybridgen {
namespace {

TEST(NodeReadRate, OfANodeWithRoomIsARate) {
  if (!has_numa()) GTEST_SKIP() << "no libnuma, or the kernel forbids its use";
  const NumaNode node = numa_nodes().front();
  if (node.free_bytes < std::int64_t{256} << 20) GTEST_SKIP() << "too little memory is free";
  const double rate = node_read_rate(node.id, available_cpus());
  EXPECT_GT(rate, 1e8);
  EXPECT_LT(rate, 1e13);
}

TEST(NodeReadRate, WithoutCpusThereIsNone) { EXPECT_EQ(node_read_rate(0, {}), 0.0); }

TEST(NodeReadRate, OfAnUnknownNodeIsRefused) {
  if (!has_numa()) GTEST_SKIP() << "no libnuma, or the kernel forbids its use";
  EXPECT_THROW(node_read_rate(1 << 20, available_cpus()), ConfigError);
}

}  // namespace
}  // namespace hybridgen
