// SPDX-License-Identifier: Apache-2.0
// A model's weights on a device, from outside: make it, give it its tensors, hand it to engines.
//
//   auto model = make_model(config, DType::kBFloat16, "cpu");
//   for (const TensorShape& tensor : expected_tensors(*model)) {
//     load_tensor(*model, tensor.name, read(tensor.name));
//   }
//   Engine engine(model, options);
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "hybridgen/core/model_config.h"
#include "hybridgen/core/types.h"

namespace at {
class Tensor;
}

namespace hybridgen {

class DecoderModel;

struct TensorShape {
  std::string name;
  std::vector<std::int64_t> shape;
};

/// A model with weights that are allocated and not loaded yet. `device`: "cpu" or "cuda:N".
/// ConfigError for an inconsistent config, DeviceError for a device that is not there,
/// OutOfMemoryError naming the bytes needed.
std::shared_ptr<DecoderModel> make_model(const ModelConfig& config,
                                         DType dtype,
                                         const std::string& device);

/// Names and shapes of all tensors to load, in a fixed order.
std::vector<TensorShape> expected_tensors(const DecoderModel& model);

/// Copies one tensor (any floating dtype, any device) into the model. CheckpointError for an
/// unknown name, a wrong shape, NaN or infinity, a non-floating dtype, or a second load.
void load_tensor(DecoderModel& model, const std::string& name, const at::Tensor& tensor);

/// Random weights, seeded: for trials of a shape without a checkpoint.
void load_dummy(DecoderModel& model, std::uint64_t seed);

}  // namespace hybridgen
