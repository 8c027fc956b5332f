// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/models/model.h"

#include <ATen/core/grad_mode.h>

#include <utility>

#include "models/decoder_model.h"

namespace hybridgen {

std::shared_ptr<DecoderModel> make_model(const ModelConfig& config,
                                         DType dtype,
                                         const std::string& device) {
  return std::make_shared<DecoderModel>(config, dtype, device);
}

std::vector<TensorShape> expected_tensors(const DecoderModel& model) {
  std::vector<TensorShape> tensors;
  for (auto& [name, shape] : model.weights().expected_tensors()) {
    tensors.push_back({name, std::move(shape)});
  }
  return tensors;
}

void load_tensor(DecoderModel& model, const std::string& name, const at::Tensor& tensor) {
  const at::NoGradGuard no_grad;
  model.weights().load_tensor(name, tensor);
}

void load_dummy(DecoderModel& model, std::uint64_t seed) {
  const at::NoGradGuard no_grad;
  model.weights().load_dummy(seed);
}

}  // namespace hybridgen
