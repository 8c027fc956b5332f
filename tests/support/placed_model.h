// SPDX-License-Identifier: Apache-2.0
// A small model whose weights lie in several places, with the same numbers wherever that is.
#pragma once

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>

#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "cpp/memory/faulty_disk.h"
#include "models/decoder_model.h"
#include "support/tiny_model.h"

namespace hybridgen::testing {

/// Where they are packed that no file has.
inline const TestFolder& folder() {
  static const TestFolder shared;
  return shared;
}

inline at::Tensor drawn(const std::string& name,
                        const std::vector<std::int64_t>& shape,
                        std::uint64_t seed) {
  if (name.ends_with("norm.weight")) return at::ones(shape);
  return at::randn(shape, at::detail::createCPUGenerator(seed))
      .mul_(name.starts_with("embed") ? 0.4 : 0.25);
}

inline std::shared_ptr<DecoderModel> placed_model(const std::string& device,
                                                  PlaceShares shares,
                                                  std::optional<bool> reads_direct = {},
                                                  const ModelConfig& config = tiny_config()) {
  WeightHomes homes{.layers = place_layer(config, shares, device == "cpu"),
                    .folder = folder().string(),
                    .reads_direct = reads_direct};
  auto model = std::make_shared<DecoderModel>(config, DType::kFloat32, device, std::move(homes));
  std::uint64_t seed = 1;
  for (const auto& [name, shape] : model->weights().expected_tensors()) {
    model->weights().load_tensor(name, drawn(name, shape, ++seed));
  }
  return model;
}

}  // namespace hybridgen::testing
