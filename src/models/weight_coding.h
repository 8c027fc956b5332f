// SPDX-License-Identifier: Apache-2.0
// Matrices of a checkpoint as codes: which are, how, and the coding itself.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "device/linear_weight.h"
#include "hybridgen/core/model_config.h"
#include "hybridgen/core/weight_options.h"
#include "kernels/coded_rows.h"

namespace hybridgen {

/// Formats that a checkpoint has tensors in already, by canonical names.
using StoredFormats = std::map<std::string, kernels::CodedFormat>;

/// How a model's matrices are held: as the checkpoint has them, else as they are made.
struct WeightFormats {
  WeightOptions made{};
  StoredFormats stored{};
};

/// How the matrix `name` of `inputs` inputs is held; none: dense. CheckpointError for a stored
/// format that rows cannot have.
std::optional<kernels::CodedFormat> coded_format(const WeightFormats& formats,
                                                 const std::string& name,
                                                 std::int64_t inputs);

/// ConfigError for options that do not go together in this model: a token table that is the head
/// too has one format.
void check_formats(const WeightOptions& options, const ModelConfig& config);

/// An uninitialised matrix; `allocate` makes its tensors.
LinearWeight allocate_coded(
    const kernels::CodedFormat& format,
    std::int64_t outputs,
    std::int64_t inputs,
    const std::function<at::Tensor(std::vector<std::int64_t>, at::ScalarType)>& allocate);

/// The tensor [outputs, inputs] (any floating dtype and device) into a matrix of its shape, row by
/// row. False where an element is NaN or infinite, or too large for the scales' dtype.
bool code_matrix(const at::Tensor& tensor, LinearWeight& weight);

}  // namespace hybridgen
