// SPDX-License-Identifier: Apache-2.0
#include "models/weight_coding.h"

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include <algorithm>
#include <atomic>

#include "core/option_tables.h"
#include "device/torch_types.h"
#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

constexpr const char* kTable = "embed_tokens.weight";
constexpr const char* kHead = "lm_head.weight";
/// Elements that are widened at a time.
constexpr std::int64_t kPieceElements = std::int64_t{1} << 18;

WeightFormat format_named(const WeightOptions& options, const std::string& name) {
  if (name == kTable) return options.embeddings;
  if (name == kHead) return options.head;
  const bool is_of_a_layer = name.starts_with("layers.") && name.ends_with("_proj.weight");
  return is_of_a_layer ? options.format : WeightFormat::kAuto;
}

kernels::CodedFormat made_format(WeightFormat format,
                                 const WeightOptions& options,
                                 std::int64_t inputs) {
  if (format == WeightFormat::kInt8) return {.bits = 8, .group = inputs};
  return {.bits = 4,
          .group = options.group,
          .has_minima = options.min_max,
          .scale_dtype = DType::kFloat16};
}

}  // namespace

std::optional<kernels::CodedFormat> coded_format(const WeightFormats& formats,
                                                 const std::string& name,
                                                 std::int64_t inputs) {
  const auto found = formats.stored.find(name);
  if (found != formats.stored.end()) {
    const kernels::CodedFormat& format = found->second;
    if (kernels::is_coded_shape(format.bits, inputs, format.group)) return format;
    throw CheckpointError(message("[load weights] tensor '",
                                  name,
                                  "' has ",
                                  format.bits,
                                  " bits in groups of ",
                                  format.group,
                                  " of its ",
                                  inputs,
                                  " inputs; allowed: 8 bits in groups of a multiple of 16, 4 bits "
                                  "in groups of a multiple of 32, or one group"));
  }
  const WeightFormat format = format_named(formats.made, name);
  if (format == WeightFormat::kAuto) return std::nullopt;
  return made_format(format, formats.made, inputs);
}

void check_formats(const WeightOptions& options, const ModelConfig& config) {
  options.validate();
  if (!config.tie_embeddings || options.head == options.embeddings) return;
  weight_table().refuse("WeightConfig",
                        options,
                        "head",
                        "this model's head is its token table: say the same of head and "
                        "embeddings, or nothing of either");
}

LinearWeight allocate_coded(
    const kernels::CodedFormat& format,
    std::int64_t outputs,
    std::int64_t inputs,
    const std::function<at::Tensor(std::vector<std::int64_t>, at::ScalarType)>& allocate) {
  const std::int64_t groups = kernels::coded_groups(inputs, format.group);
  const at::ScalarType scale_type = to_scalar_type(format.scale_dtype);
  LinearWeight weight;
  weight.codes = allocate({outputs, kernels::coded_row_bytes(format.bits, inputs)}, at::kByte);
  weight.scales = allocate({outputs, groups}, scale_type);
  if (format.has_minima) weight.minima = allocate({outputs, groups}, scale_type);
  weight.bits = format.bits;
  weight.group = format.group;
  weight.inputs = inputs;
  return weight;
}

bool code_matrix(const at::Tensor& tensor, LinearWeight& weight) {
  const kernels::CodedFormat format = {.bits = weight.bits,
                                       .group = weight.group,
                                       .has_minima = weight.minima.defined(),
                                       .scale_dtype = to_dtype(weight.scales.scalar_type())};
  const std::int64_t inputs = weight.inputs;
  const std::int64_t most = std::max<std::int64_t>(1, kPieceElements / inputs);
  std::atomic<bool> is_coded = true;
  for (std::int64_t first = 0; first < tensor.size(0); first += most) {
    const std::int64_t count = std::min(most, tensor.size(0) - first);
    const at::Tensor rows = tensor.narrow(0, first, count).to(at::kCPU, at::kFloat).contiguous();
    LinearWeight piece = allocate_coded(
        format, count, inputs, [](const std::vector<std::int64_t>& shape, at::ScalarType type) {
          return at::empty(shape, type);
        });
    const float* values = rows.const_data_ptr<float>();
    auto* codes = piece.codes.mutable_data_ptr<std::uint8_t>();
    const std::int64_t row_bytes = piece.codes.size(1);
    const std::int64_t scale_bytes = piece.scales.size(1) * piece.scales.element_size();
    auto* scales = static_cast<std::byte*>(piece.scales.mutable_data_ptr());
    auto* minima =
        format.has_minima ? static_cast<std::byte*>(piece.minima.mutable_data_ptr()) : nullptr;
    at::parallel_for(0, count, 1, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t r = begin; r < end; ++r) {
        if (!kernels::quantise_row(format,
                                   values + r * inputs,
                                   inputs,
                                   codes + r * row_bytes,
                                   scales + r * scale_bytes,
                                   minima == nullptr ? nullptr : minima + r * scale_bytes)) {
          is_coded = false;
        }
      }
    });
    weight.codes.narrow(0, first, count).copy_(piece.codes);
    weight.scales.narrow(0, first, count).copy_(piece.scales);
    if (format.has_minima) weight.minima.narrow(0, first, count).copy_(piece.minima);
  }
  return is_coded;
}

}  // namespace hybridgen
