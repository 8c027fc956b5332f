// SPDX-License-Identifier: Apache-2.0
// A small grouped-query model with random weights, and a few lines to run it.
#pragma once

#include <gtest/gtest.h>

#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "hybridgen/engine/engine.h"
#include "models/decoder_model.h"

namespace hybridgen::testing {

inline ModelConfig tiny_config() {
  ModelConfig config;
  config.num_layers = 4;
  config.hidden_size = 32;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 16;
  config.ffn_size = 48;
  config.vocab_size = 61;
  config.max_positions = 256;
  config.embedding_size = 32;
  return config;
}

inline void scale(Projection& projection, double factor) {
  for (LinearWeight& part : projection.parts) {
    part.dense.mul_(factor);
  }
}

/// The same weights on any device ("cpu", an EmulatedCuda's name).
inline std::shared_ptr<DecoderModel> tiny_model(const std::string& device,
                                                const ModelConfig& config = tiny_config()) {
  auto model = std::make_shared<DecoderModel>(config, DType::kFloat32, device);
  model->weights().load_dummy(7);
  // Dummy weights of std 0.02 make nearly uniform attention; larger ones make wrong tokens matter.
  for (LayerWeights& layer : model->weights().layers) {
    scale(layer.qkv, 20.0);
    scale(layer.output, 10.0);
    scale(layer.up, 5.0);
    scale(layer.down, 5.0);
  }
  model->weights().embed_tokens.dense.mul_(20.0);
  return model;
}

inline std::shared_ptr<DecoderModel> tiny_model(const ModelConfig& config = tiny_config()) {
  return tiny_model("cpu", config);
}

/// A prompt of `length` tokens that depends on `seed` only.
inline std::vector<std::int64_t> prompt(std::int64_t length, std::uint64_t seed = 1) {
  std::vector<std::int64_t> tokens;
  std::uint64_t state = seed * 0x9E3779B97F4A7C15ULL + 1;
  for (std::int64_t i = 0; i < length; ++i) {
    state = state * 6364136223846793005ULL + 1442695040888963407ULL;
    tokens.push_back(static_cast<std::int64_t>((state >> 33U) % 61U));
  }
  return tokens;
}

struct Generated {
  std::vector<std::int64_t> tokens;
  std::vector<float> logprobs;
  friend bool operator==(const Generated&, const Generated&) = default;
  friend void PrintTo(const Generated& generated, std::ostream* out) {
    *out << ::testing::PrintToString(generated.tokens) << ' '
         << ::testing::PrintToString(generated.logprobs);
  }
};

/// Greedy continuation of every prompt by `count` tokens, all requests in one engine. Throws what a
/// request failed with. `after_step` sees what there is of all after each step.
inline std::vector<Generated> generate(
    Engine& engine,
    const std::vector<std::vector<std::int64_t>>& prompts,
    int count,
    const std::function<void(const std::vector<Generated>&)>& after_step = nullptr) {
  SamplingOptions sampling;
  sampling.max_tokens = count;
  std::map<std::int64_t, std::size_t> index;
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    index[engine.add(prompts[i], sampling)] = i;
  }
  std::vector<Generated> outputs(prompts.size());
  while (engine.has_work()) {
    for (const TokenEvent& event : engine.step()) {
      if (event.error != nullptr) {
        std::rethrow_exception(event.error);
      }
      Generated& output = outputs[index.at(event.request_id)];
      output.tokens.push_back(event.token_id);
      output.logprobs.push_back(event.logprob);
    }
    if (after_step != nullptr) after_step(outputs);
  }
  return outputs;
}

/// The same tokens, and log-probabilities that differ by sums in another order at most: a few
/// float32 roundings of logits of size about 10.
inline void expect_same(const std::vector<Generated>& actual,
                        const std::vector<Generated>& expected) {
  ASSERT_EQ(actual.size(), expected.size());
  for (std::size_t i = 0; i < actual.size(); ++i) {
    EXPECT_EQ(actual[i].tokens, expected[i].tokens) << "request " << i;
    for (std::size_t t = 0; t < actual[i].logprobs.size(); ++t) {
      EXPECT_NEAR(actual[i].logprobs[t], expected[i].logprobs[t], 2e-4F)
          << "request " << i << ", token " << t;
    }
  }
}

inline EngineOptions options(const std::string& method) {
  EngineOptions result;
  result.method = method;
  result.threads = method == "full" ? 0 : 1;
  result.device_threads = 1;
  result.dram_bytes = std::int64_t{1} << 30;
  result.device_bytes = std::int64_t{1} << 30;
  return result;
}

inline std::vector<std::vector<std::int64_t>> ragged_prompts() {
  return {prompt(70, 1), prompt(33, 2), prompt(5, 3), prompt(90, 4), prompt(1, 5)};
}

}  // namespace hybridgen::testing
