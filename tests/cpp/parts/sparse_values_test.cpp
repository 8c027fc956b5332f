// SPDX-License-Identifier: Apache-2.0
// FlexGen's sparse attention on an example worked by hand: one head of one dimension, query 1, keys
// (0, ln 2, 2 ln 2 | 0) and values (8, 0, 2 | 16), the last token new and resident. The weights are
// (1, 2, 4, 1) / 8.
#include "parts/parts.h"

#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <cmath>

#include "hybridgen/core/error.h"
#include "kernels/cpu_kernels.h"
#include "pipeline/staged_values.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

struct Result {
  double output = 0.0;
  PipelineStatistics bytes;
};

Result attend(double attn_sparsity) {
  ModelConfig config = testing::tiny_config();
  config.num_layers = 1;
  config.hidden_size = config.embedding_size = 1;
  config.num_heads = config.num_kv_heads = config.head_dim = 1;
  config.position = PositionKind::kLearned;
  const DecoderModel model(config, DType::kFloat32, "cpu");
  EngineOptions options = testing::options("flexgen");
  options.method_config["attn_sparsity"] = attn_sparsity;
  const Method method = make_method(options);
  const AttendedTokens attended{TokenCount::all(), std::nullopt};
  const RequestPlan plan = plan_request(config,
                                        DType::kFloat32,
                                        /*device_is_host=*/true,
                                        method,
                                        attended,
                                        {0, 3, 8},
                                        /*window=*/1);
  Budgets budgets;
  budgets.add(TierKind::kDevice, 1 << 20, "device");
  budgets.add(TierKind::kDram, 1 << 20, "dram");
  TraceRecorder trace;
  TierStatistics tier_statistics;
  KvTiers tiers(KvPlacement::kSemantic, {}, budgets, trace, tier_statistics);
  RequestState request(model, method, attended, plan, budgets, tiers, /*numa_node=*/-1);
  MicroBatch batch(model, method, {&request});

  const float ln2 = std::log(2.0F);
  const std::vector<float> keys = {0.0F, ln2, 2.0F * ln2};
  const std::vector<float> values = {8.0F, 0.0F, 2.0F};
  request.host->grow(3);
  request.host->write(0, {0, 3}, {keys.data(), 3, 1}, {values.data(), 3, 1});
  request.tokens.append(4);
  request.tokens.offload({0, 3});
  HostJob job;
  job.payload = Payload::kKeys;
  job.num_offloaded = job.num_chosen = 3;
  job.buffers = request.staging[0].buffers();
  std::copy(keys.begin(), keys.end(), static_cast<float*>(job.buffers.keys));
  job.buffers.union_sizes[0] = 3;
  request.staging[0].ship(job);

  batch.ws.query.fill_(1.0);
  request.resident.values(0).fill_(16.0);
  request.logits.resident.fill_(0.0);  // of the new token, whose key is 0
  AttentionItem& item = batch.items[0];
  item.keys = &request.resident.keys(0);
  item.values = &request.resident.values(0);
  item.num_resident = 1;
  item.resident_logits = &request.logits.resident;
  item.merged_logits = &request.logits.merged;
  item.payload = &request.staging[0].payload();
  batch.send_inputs();
  Result result;
  const std::unique_ptr<DeviceOps> ops = make_aten_ops();
  LoopContext loop{.model = model,
                   .ops = *ops,
                   .method = method,
                   .pool = nullptr,
                   .trace = trace,
                   .statistics = result.bytes,
                   .probe = nullptr,
                   .kernels = &kernels::cpu_kernels(kernels::resolve_isa("auto"))};
  attend_by_parts(loop, 0, batch);
  result.output = batch.ws.attended_heads.item<double>();
  return result;
}

TEST(SparseValues, KeepTheLargestWeightsAndTheNewTokenWithoutRenormalising) {
  // int(0.67 * 3) = 2 old tokens: (4 * 2 + 2 * 0 + 1 * 16) / 8. Renormalised it would be 24 / 7.
  const Result result = attend(0.67);
  EXPECT_NEAR(result.output, 3.0, 1e-6);
  EXPECT_EQ(result.bytes.h2d_bytes, 2 * 4);  // two values of one float each
  EXPECT_EQ(result.bytes.d2h_bytes, 2 * 4);  // their positions
}

TEST(SparseValues, OfOneOldTokenTakeTheOneWithTheLargestWeight) {
  EXPECT_NEAR(attend(0.34).output, (4.0 * 2.0 + 16.0) / 8.0, 1e-6);
}

TEST(SparseValues, OfNoOldTokenLeaveTheNewOne) {
  const Result result = attend(0.1);
  EXPECT_NEAR(result.output, 2.0, 1e-6);
  EXPECT_EQ(result.bytes.h2d_bytes, 0);
}

}  // namespace
}  // namespace hybridgen
