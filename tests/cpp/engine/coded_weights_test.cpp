// SPDX-License-Identifier: Apache-2.0
// Weights that are held as codes: which are, that each is its row's own coding, and what engines
// make of them.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>
#include <map>
#include <string>
#include <vector>

#include "engine/run_plan.h"
#include "hybridgen/core/error.h"
#include "models/decoder_model.h"
#include "support/placed_model.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::prompt;
using testing::tiny_config;

constexpr auto kInt8 = WeightFormat::kInt8;
constexpr auto kInt4 = WeightFormat::kInt4;

/// A tensor of every name that a model expects.
std::map<std::string, at::Tensor> draw_tensors(const ModelConfig& config) {
  at::manual_seed(3);
  std::map<std::string, at::Tensor> tensors;
  const Weights weights(config, DType::kFloat32, at::kCPU);
  for (const auto& [name, shape] : weights.expected_tensors()) {
    tensors[name] = at::randn(shape) * (name.ends_with("norm.weight") ? 1.0 : 0.2);
  }
  return tensors;
}

void load_all(Weights& weights, const std::map<std::string, at::Tensor>& tensors) {
  for (const auto& [name, shape] : weights.expected_tensors()) {
    weights.load_tensor(name, tensors.at(name));
  }
  weights.finish();
}

Weights made(const ModelConfig& config,
             const WeightOptions& options,
             at::Device device = at::kMeta) {
  return {config, DType::kFloat32, device, {}, {.made = options}};
}

/// A tensor as codes, by themselves.
LinearWeight coded(const at::Tensor& tensor, const kernels::CodedFormat& format) {
  LinearWeight weight = allocate_coded(format,
                                       tensor.size(0),
                                       tensor.size(1),
                                       [](const std::vector<std::int64_t>& shape,
                                          at::ScalarType type) { return at::zeros(shape, type); });
  EXPECT_TRUE(code_matrix(tensor, weight));
  return weight;
}

bool same(const LinearWeight& a, const LinearWeight& b) {
  return at::equal(a.restored(at::kFloat), b.restored(at::kFloat)) && a.bits == b.bits &&
         a.group == b.group;
}

std::int64_t planned_bytes(const ModelConfig& config, const WeightFormats& formats) {
  const RunPlan plan = plan_run(config,
                                DType::kFloat32,
                                DeviceContext("cpu"),
                                /*are_loaded=*/false,
                                {},
                                std::nullopt,
                                {.batch_size = 1, .prompt_tokens = 8, .new_tokens = 2},
                                formats);
  return plan.tiers.front().weights;
}

TEST(CodedModel, HoldsTheMatricesOfLayersAsCodesAndTheRestAsItWas) {
  ModelConfig config = tiny_config();
  config.tie_embeddings = false;
  const auto tensors = draw_tensors(config);
  Weights weights = made(config, {.format = kInt4, .group = 32}, at::kCPU);
  load_all(weights, tensors);
  const kernels::CodedFormat format = {4, 32, false, DType::kFloat16};
  const std::string prefix = "layers.2.";
  const LayerWeights& layer = weights.layers[2];
  ASSERT_EQ(layer.qkv.parts.size(), 1U);
  EXPECT_TRUE(same(layer.query.parts[0], coded(tensors.at(prefix + "q_proj.weight"), format)));
  EXPECT_TRUE(
      same(layer.qkv.rows(64, 32).parts[0], coded(tensors.at(prefix + "k_proj.weight"), format)));
  EXPECT_TRUE(same(layer.down.parts[0], coded(tensors.at(prefix + "down_proj.weight"), format)));
  EXPECT_FALSE(weights.embed_tokens.is_coded());
  EXPECT_FALSE(weights.lm_head.is_coded());
  EXPECT_TRUE(at::equal(weights.embed_tokens.dense, tensors.at("embed_tokens.weight")));
  EXPECT_TRUE(at::equal(layer.ffn_norm_weight, tensors.at(prefix + "ffn_norm.weight")));
}

TEST(CodedModel, CountsTheBytesThatItHolds) {
  const ModelConfig config = tiny_config();
  const Weights dense(config, DType::kFloat32, at::kMeta);
  const Weights coded8 = made(config, {.format = kInt8});
  std::int64_t elements = 0;
  std::int64_t outputs = 0;
  std::int64_t row_bytes = 0;
  for (const auto& [name, shape] : dense.expected_tensors()) {
    if (!name.ends_with("_proj.weight")) continue;
    elements += shape[0] * shape[1];
    outputs += shape[0];
    row_bytes += shape[0] * ((shape[1] + 31) / 32 * 32);
  }
  EXPECT_EQ(dense.bytes() - coded8.bytes(), 4 * elements - row_bytes - 4 * outputs);
  EXPECT_EQ(planned_bytes(config, {.made = {.format = kInt8}}), coded8.bytes());
}

TEST(CodedModel, PlansTheBytesOfWhatTheCheckpointHasAsCodes) {
  const ModelConfig config = tiny_config();
  const WeightFormats formats = {
      .stored = {{"layers.1.down_proj.weight", {4, 32, true, DType::kFloat32}}}};
  const Weights held(config, DType::kFloat32, at::kMeta, {}, formats);
  EXPECT_LT(held.bytes(), Weights(config, DType::kFloat32, at::kMeta).bytes());
  EXPECT_EQ(planned_bytes(config, formats), held.bytes());
}

TEST(CodedModel, ATokenTableThatIsTheHeadTooIsCodedIfBothAreNamed) {
  ModelConfig config = tiny_config();
  config.tie_embeddings = true;
  const Weights both = made(config, {.head = kInt8, .embeddings = kInt8});
  EXPECT_EQ(both.lm_head.bits, 8);
  EXPECT_EQ(both.embed_tokens.bits, 8);
  EXPECT_THROW(made(config, {.head = kInt8}), ConfigError);
  EXPECT_THROW(made(config, {.head = kInt4, .embeddings = kInt8}), ConfigError);
  config.tie_embeddings = false;
  const Weights head = made(config, {.head = kInt4});
  EXPECT_EQ(head.lm_head.bits, 4);
  EXPECT_FALSE(head.embed_tokens.is_coded());
  EXPECT_FALSE(head.layers[0].down.parts[0].is_coded());
}

TEST(CodedModel, TakesCodesOfACheckpointAsTheyAre) {
  const ModelConfig config = tiny_config();
  const auto tensors = draw_tensors(config);
  // Queries in other groups than keys and values, as files may have them.
  const kernels::CodedFormat wide = {8, 32, false, DType::kFloat16};
  const kernels::CodedFormat narrow = {4, 32, true, DType::kFloat32};
  StoredFormats stored;
  for (const auto& [name, tensor] : tensors) {
    if (name.ends_with("q_proj.weight")) stored[name] = wide;
    if (name.ends_with("v_proj.weight")) stored[name] = narrow;
  }
  Weights weights(config, DType::kFloat32, at::kCPU, {}, {.stored = stored});
  for (const auto& [name, shape] : weights.expected_tensors()) {
    if (stored.contains(name)) {
      weights.load_coded(name, coded(tensors.at(name), stored.at(name)));
    } else {
      weights.load_tensor(name, tensors.at(name));
    }
  }
  weights.finish();
  const Projection& qkv = weights.layers[1].qkv;
  ASSERT_EQ(qkv.parts.size(), 3U);
  EXPECT_TRUE(same(qkv.parts[0], coded(tensors.at("layers.1.q_proj.weight"), wide)));
  EXPECT_TRUE(at::equal(qkv.parts[1].dense, tensors.at("layers.1.k_proj.weight")));
  EXPECT_TRUE(same(qkv.parts[2], coded(tensors.at("layers.1.v_proj.weight"), narrow)));
}

TEST(CodedModel, RefusesCodesThatDoNotFitAndNumbersThatAreNone) {
  const ModelConfig config = tiny_config();
  const auto tensors = draw_tensors(config);
  const std::string name = "layers.0.q_proj.weight";
  const kernels::CodedFormat format = {4, 32, false, DType::kFloat16};
  const LinearWeight good = coded(tensors.at(name), format);
  Weights weights(config, DType::kFloat32, at::kCPU, {}, {.stored = {{name, format}}});
  LinearWeight odd = good;
  odd.bits = 8;
  EXPECT_THROW(weights.load_coded(name, odd), CheckpointError);
  odd = good;
  odd.codes = good.codes.narrow(0, 0, 3);
  EXPECT_THROW(weights.load_coded(name, odd), CheckpointError);
  odd = good;
  odd.scales = good.scales.to(at::kFloat);
  EXPECT_THROW(weights.load_coded(name, odd), CheckpointError);
  odd = good;
  odd.minima = good.scales;
  EXPECT_THROW(weights.load_coded(name, odd), CheckpointError);
  for (const double number :
       {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    odd = good;
    odd.scales = good.scales.clone();
    odd.scales[1][0] = number;
    EXPECT_THROW(weights.load_coded(name, odd), CheckpointError);
    at::Tensor dense = tensors.at(name).clone();
    dense[2][2] = number;
    EXPECT_THROW(weights.load_tensor(name, dense), CheckpointError);
  }
  EXPECT_THROW(weights.load_tensor(name, tensors.at(name) * 1e8), CheckpointError);
  EXPECT_THROW(weights.load_coded("layers.0.k_proj.weight", good), CheckpointError);
  EXPECT_THROW(weights.load_coded("nothing", good), CheckpointError);
  weights.load_coded(name, good);
  EXPECT_THROW(weights.load_coded(name, good), CheckpointError);
  EXPECT_THROW(
      Weights(
          config, DType::kFloat32, at::kCPU, {}, {.stored = {{name, {.bits = 4, .group = 20}}}}),
      CheckpointError);
}

using Tokens = std::map<std::uint64_t, std::vector<std::int64_t>>;  // by seed of the prompt

Tokens tokens_of(const std::shared_ptr<DecoderModel>& model,
                 const std::vector<std::uint64_t>& seeds) {
  Engine engine(model, {});
  SamplingOptions sampling;
  sampling.max_tokens = 12;
  std::map<std::int64_t, std::uint64_t> seed_of;
  for (const std::uint64_t seed : seeds) seed_of[engine.add(prompt(40, seed), sampling)] = seed;
  Tokens tokens;
  while (engine.has_work()) {
    for (const TokenEvent& event : engine.step()) {
      if (event.error != nullptr) std::rethrow_exception(event.error);
      tokens[seed_of.at(event.request_id)].push_back(event.token_id);
    }
  }
  return tokens;
}

TEST(CodedModel, GivesARequestTheSameTokensAloneBesideOthersAndWithItsWeightsOnDisk) {
  ModelConfig config = tiny_config();
  config.tie_embeddings = false;
  const auto tensors = draw_tensors(config);
  const WeightHomes on_disk = {.layers = place_layer(config, {.device = 0.3}, true),
                               .folder = testing::folder().string()};
  ASSERT_FALSE(on_disk.layers.all_on_device());
  for (const WeightOptions& options :
       {WeightOptions{.format = kInt8},
        WeightOptions{.format = kInt4, .group = 32, .min_max = true},
        WeightOptions{.format = kInt4, .head = kInt4, .embeddings = kInt4}}) {
    const WeightFormats formats = {options, {}};
    const auto model =
        std::make_shared<DecoderModel>(config, DType::kFloat32, "cpu", WeightHomes{}, formats);
    load_all(model->weights(), tensors);
    const Tokens together = tokens_of(model, {1, 2, 3});
    for (const std::uint64_t seed : {1U, 2U, 3U}) {
      EXPECT_EQ(tokens_of(model, {seed}).at(seed), together.at(seed));
      EXPECT_EQ(together.at(seed).size(), 12U);
    }
    const auto streamed =
        std::make_shared<DecoderModel>(config, DType::kFloat32, "cpu", on_disk, formats);
    load_all(streamed->weights(), tensors);
    EXPECT_EQ(streamed->weights().bytes(), model->weights().bytes());
    EXPECT_GT(streamed->weights().streamed().disk_bytes, 0);
    EXPECT_EQ(tokens_of(streamed, {1, 2, 3}), together);
  }
}

}  // namespace
}  // namespace hybridgen
