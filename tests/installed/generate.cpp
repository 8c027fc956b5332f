// SPDX-License-Identifier: Apache-2.0
// Runs a random model twice, all on the device and most of it on the host with every token chosen,
// and fails unless both say the same.
#include <hybridgen/core/error.h>
#include <hybridgen/engine/engine.h>

#include <cstdio>
#include <exception>
#include <utility>
#include <vector>

namespace {

std::shared_ptr<hybridgen::DecoderModel> small_model() {
  hybridgen::ModelConfig config;
  config.num_layers = 3;
  config.hidden_size = 32;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 8;
  config.ffn_size = 48;
  config.vocab_size = 61;
  config.max_positions = 128;
  config.embedding_size = 32;
  auto model = hybridgen::make_model(config, hybridgen::DType::kFloat32, "cpu");
  hybridgen::load_dummy(*model, 7);
  return model;
}

std::vector<std::int64_t> generate(hybridgen::Engine& engine) {
  hybridgen::SamplingOptions sampling;
  sampling.max_tokens = 12;
  engine.add({1, 2, 3, 5, 8, 13, 21, 34, 55, 1, 2, 3}, sampling);
  std::vector<std::int64_t> tokens;
  while (engine.has_work()) {
    for (const hybridgen::TokenEvent& event : engine.step()) {
      if (event.error != nullptr) {
        std::rethrow_exception(event.error);
      }
      tokens.push_back(event.token_id);
    }
  }
  return tokens;
}

}  // namespace

int main() {
  try {
    const auto model = small_model();
    hybridgen::EngineOptions full;
    full.method = "full";
    hybridgen::EngineOptions offloaded;
    offloaded.method = "flexgen";
    offloaded.device_tokens.count = 4;
    hybridgen::Engine first(model, full);
    hybridgen::Engine second(model, offloaded);
    const std::vector<std::int64_t> expected = generate(first);
    for (const std::int64_t token : expected) {
      std::printf("%lld ", static_cast<long long>(token));
    }
    std::printf("\n");
    return expected.size() == 12 && generate(second) == expected ? 0 : 1;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
