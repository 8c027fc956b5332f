// SPDX-License-Identifier: Apache-2.0
// Attention that ends on the host, over rows wherever they lie.
#include <gtest/gtest.h>

#include <cstdint>
#include <span>
#include <tuple>
#include <utility>
#include <vector>

#include "cpp/kernels/kernel_test_support.h"
#include "cpp/kvcache/store_on_disk.h"
#include "kernels/cpu_kernels.h"
#include "pipeline/host_task.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kKvHeads = 2;
constexpr std::int64_t kHeads = 6;
constexpr std::int64_t kDim = 16;
constexpr std::int64_t kTokens = 1100;

using Attention = std::pair<std::vector<float>, std::vector<float>>;

/// Output and log-sum-exp of attention to all tokens, or to those that were chosen.
Attention attention(const HostKvStore& store, std::span<const std::int32_t> positions) {
  ModelConfig config;
  config.num_layers = 1;
  config.num_heads = kHeads;
  config.num_kv_heads = kKvHeads;
  config.head_dim = kDim;
  const HostTaskRunner runner(kernels::cpu_kernels(kernels::resolve_isa("auto")), config);
  HostScratch scratch;
  runner.reserve(scratch, kTokens, 0);
  const std::vector<float> query = kernels::test::random_floats(kHeads * kDim, 3);
  std::vector<float> output(kHeads * kDim);
  std::vector<float> lse(kHeads);
  std::vector<float> parts(
      static_cast<std::size_t>(kKvHeads * attended_floats(kTokens, kHeads / kKvHeads, kDim)));
  const std::int64_t count = positions.empty() ? kTokens : std::ssize(positions);
  HostJob job;
  job.store = const_cast<HostKvStore*>(&store);
  job.payload = Payload::kPartialAttention;
  job.chooser = EveryToken{};
  job.query = query.data();
  job.num_offloaded = kTokens;
  job.num_chosen = count;
  job.buffers = {.output = output.data(), .lse = lse.data(), .parts = parts.data()};
  for (std::int64_t g = 0; g < kKvHeads; ++g) {
    HostTaskResult result;
    const HostTask task{job, 0, g, {0, count}, scratch, result};
    runner.prepare(task);
    runner.attend(task, positions.empty() ? nullptr : positions.data());
    runner.join_parts(task, count);
  }
  return {output, lse};
}

using Setting = std::tuple<KvPrecision, KvPrecision, KeyLayout>;

class HostAttention : public testing::TestWithParam<Setting> {
 protected:
  static HostKvStore filled_store() {
    HostKvStore store({.num_layers = 1,
                       .num_kv_heads = kKvHeads,
                       .head_dim = kDim,
                       .capacity = kTokens,
                       .key_layout = std::get<2>(GetParam()),
                       .key_precision = std::get<0>(GetParam()),
                       .value_precision = std::get<1>(GetParam())});
    store.grow(kTokens);
    const std::vector<float> keys = kernels::test::random_floats(kKvHeads * kTokens * kDim, 1);
    const std::vector<float> values = kernels::test::random_floats(kKvHeads * kTokens * kDim, 2);
    store.write(0,
                {0, kTokens},
                {keys.data(), kTokens * kDim, kDim},
                {values.data(), kTokens * kDim, kDim});
    return store;
  }
};

constexpr KvPrecision kFull = KvPrecision::kFull;
constexpr KvPrecision kInt8 = KvPrecision::kInt8;
INSTANTIATE_TEST_SUITE_P(Every,
                         HostAttention,
                         testing::Combine(testing::Values(kFull, kInt8),
                                          testing::Values(kFull, kInt8, KvPrecision::kInt4),
                                          testing::Values(KeyLayout::kRows, KeyLayout::kBlocked)));

TEST_P(HostAttention, IsTheSameBitsWhetherBlocksLieInMemoryOrOnTheDisk) {
  const HostKvStore in_memory = filled_store();
  const StoreOnDisk on_disk(filled_store());
  std::vector<std::int32_t> few{0, 2, 3, 4, 5, 254, 255, 256, 700, 1023, 1024, 1099};
  std::vector<std::int32_t> many;  // in several parts
  for (std::int32_t t = 1; t < kTokens; t += 2) many.push_back(t);
  for (const auto& positions : {std::vector<std::int32_t>{}, few, many}) {
    const Attention expected = attention(in_memory, positions);
    EXPECT_EQ(attention(on_disk.store, positions), expected);
    on_disk.store.disk()->release(0);
  }
  EXPECT_GT(on_disk.queue.statistics().read_bytes, 0);
}

}  // namespace
}  // namespace hybridgen
