// SPDX-License-Identifier: Apache-2.0
// What a device that is not the host sends during a step and the host reads after its wait: rows
// that leave and softmax weights. Here both are the host, which changes no copy.
#include <ATen/ops/arange.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "hybridgen/methods/method.h"
#include "pipeline/lost_mass.h"
#include "pipeline/request_plan.h"
#include "pipeline/rows_to_host.h"
#include "pipeline/shifted_keys.h"
#include "pipeline/weights_to_host.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

float at_row(const KvRowsView& rows, std::int64_t kv_head, std::int64_t row) {
  return static_cast<const float*>(rows.data)[kv_head * rows.head_stride + row * rows.token_stride];
}

TEST(RowsToHost, AreThoseOfAllLayersAndHeadsOnceTheyHaveArrived) {
  const ModelConfig config = testing::tiny_config();
  const DeviceContext device("cpu");
  ResidentCache resident(config, at::TensorOptions().dtype(at::kFloat), 10);
  resident.set_rows(8);
  // Element 0 of a row says where it is: layer, KV head, slot.
  for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
    for (std::int64_t g = 0; g < config.num_kv_heads; ++g) {
      for (std::int64_t slot = 0; slot < 8; ++slot) {
        const auto name = static_cast<double>(layer * 100 + g * 10 + slot);
        resident.keys(layer).select(0, g).select(0, slot).fill_(name);
        resident.values(layer).select(0, g).select(0, slot).fill_(-name);
      }
    }
  }
  RowsToHost rows(config, DType::kFloat32, device, 4);
  EXPECT_FALSE(rows.has(0, 0));
  for (const std::int64_t count : {4, 2, 3}) {
    rows.send(resident, 5 - count, count);
    EXPECT_FALSE(rows.has(5 - count, count));
    rows.arrive();
    EXPECT_TRUE(rows.has(5 - count, count));
    EXPECT_FALSE(rows.has(5 - count, count - 1));
    for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
      for (std::int64_t g = 0; g < config.num_kv_heads; ++g) {
        for (std::int64_t row = 0; row < count; ++row) {
          const auto name = static_cast<float>(layer * 100 + g * 10 + 5 - count + row);
          EXPECT_EQ(at_row(rows.keys(layer), g, row), name);
          EXPECT_EQ(at_row(rows.values(layer), g, row), -name);
        }
      }
    }
  }
}

TEST(WeightsToHost, StandBesideTheTokensThatWereChosenThenAndAreTakenOnce) {
  const ModelConfig config = testing::tiny_config();  // 4 query heads, 2 KV heads
  const DeviceContext device("cpu");
  WeightsToHost weights(config, device, /*max_resident=*/3, /*max_chosen=*/2);
  at::Tensor merged = at::arange(20, at::TensorOptions().dtype(at::kFloat));  // stride 5
  std::vector<std::int32_t> positions = {1, 2, 3, 4, 5, 6, 7, 8};             // [4, 2]
  std::vector<std::int64_t> counts = {2, 2};
  weights.send(1, merged, 5, {positions.data(), 4, 2, counts.data()});
  std::vector<std::int32_t> shared = {7, 0, 0, 8, 9, 0};  // [2, 3] of which 1 and 2 are in use
  std::vector<std::int64_t> shared_counts = {1, 2};
  weights.send(2, merged, 5, {shared.data(), 3, 0, shared_counts.data()});
  // All of it is used for the next layer.
  merged.fill_(-1.0);
  for (auto* of_host : {&positions, &shared}) std::ranges::fill(*of_host, -1);
  for (auto* of_host : {&counts, &shared_counts}) std::ranges::fill(*of_host, -1);

  const SoftmaxWeights own = weights.take(1);
  ASSERT_EQ(own.stride, 5);
  for (std::int64_t i = 0; i < 20; ++i) {
    EXPECT_EQ(own.data[i], static_cast<float>(i));
  }
  ASSERT_EQ(own.chosen.row_stride, 2);
  for (std::int64_t g = 0; g < 2; ++g) {
    EXPECT_EQ(own.chosen.counts[g], 2);
    for (std::int64_t i = 0; i < 4; ++i) {
      EXPECT_EQ(own.chosen.positions[g * own.chosen.head_stride + i], 1 + g * 4 + i);
    }
  }
  const ChosenTokens of_all = weights.take(2).chosen;
  EXPECT_EQ(of_all.row_stride, 0);
  EXPECT_EQ(of_all.counts[0], 1);
  EXPECT_EQ(of_all.positions[0], 7);
  EXPECT_EQ(of_all.counts[1], 2);
  EXPECT_EQ(of_all.positions[of_all.head_stride], 8);
  EXPECT_EQ(of_all.positions[of_all.head_stride + 1], 9);
  EXPECT_EQ(weights.take(1).data, nullptr);
  EXPECT_EQ(weights.take(0).data, nullptr);
}

std::int64_t host_bytes(const EngineOptions& options, bool device_is_host) {
  return plan_request(testing::tiny_config(),
                      DType::kFloat32,
                      device_is_host,
                      make_method(options),
                      {TokenCount::count(4), std::nullopt},
                      {0, 50, 80},
                      /*window=*/20)
      .dram_bytes;
}

TEST(APlan, CountsOnTheHostWhatAnotherDeviceSendsDuringAStep) {
  const ModelConfig config = testing::tiny_config();
  const auto more = [](const EngineOptions& options) {
    return host_bytes(options, false) - host_bytes(options, true);
  };
  const std::int64_t one_row = RowsToHost::required_bytes(config, DType::kFloat32, 1);
  EXPECT_EQ(one_row, 2 * 4 * 2 * 16 * 4);  // K and V of 4 layers, 2 KV heads of 16 floats
  EXPECT_EQ(more(testing::options("full")), 0);
  EXPECT_EQ(more(testing::options("moe_lightning")), 0);  // the host job appends the new token
  // Of a method that scores tokens two log-sum-exps for each of 4 layers and 4 query heads.
  const std::int64_t sums = LostMass::host_bytes(config);
  EXPECT_EQ(sums, 2 * 4 * 4 * 4);
  EXPECT_EQ(more(testing::options("hybridgen")), one_row + sums);
  EngineOptions scored = testing::options("hybridgen");
  scored.hybridgen.selector = "h2o";
  EXPECT_EQ(more(scored), one_row + sums + WeightsToHost::required_bytes(config, 20, 4));
  EngineOptions blocks = testing::options("hgca");
  blocks.method_config = {{"block", std::int64_t{4}}};
  EXPECT_EQ(more(blocks), 4 * one_row + WeightsToHost::required_bytes(config, 20, 0));
  EngineOptions heavy = testing::options("h2o");
  heavy.method_config = {{"heavy", std::int64_t{6}}, {"recent", std::int64_t{3}}};
  EXPECT_EQ(row_move_bytes(config), 4 * 2 * 4);
  const std::int64_t retained =
      WeightsToHost::required_bytes(config, 10, 0) + row_move_bytes(config);
  EXPECT_EQ(more(heavy), retained);
  heavy.method_config["positions"] = std::string("shift");
  EXPECT_EQ(more(heavy), retained + ShiftedKeys::place_bytes(config, /*device_is_host=*/false, 10));
}

}  // namespace
}  // namespace hybridgen
