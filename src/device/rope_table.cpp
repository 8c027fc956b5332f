// SPDX-License-Identifier: Apache-2.0
#include "device/rope_table.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/logical_and.h>
#include <ATen/ops/outer.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/sin.h>
#include <ATen/ops/where.h>

#include <numbers>

namespace hybridgen {
namespace {

// Llama 3.x: long wavelengths are stretched by `factor`, short ones kept, those between blended.
at::Tensor scale_llama3(const at::Tensor& inverse_frequencies, const RopeScaling& scaling) {
  const double original = static_cast<double>(scaling.original_max_positions);
  const double low_wavelength = original / scaling.low_freq_factor;
  const double high_wavelength = original / scaling.high_freq_factor;
  const at::Tensor wavelength = 2.0 * std::numbers::pi / inverse_frequencies;
  const at::Tensor stretched = at::where(
      wavelength > low_wavelength, inverse_frequencies / scaling.factor, inverse_frequencies);
  const at::Tensor smooth = (original / wavelength - scaling.low_freq_factor) /
                            (scaling.high_freq_factor - scaling.low_freq_factor);
  const at::Tensor blended = (1.0 - smooth) * stretched / scaling.factor + smooth * stretched;
  const at::Tensor is_medium =
      at::logical_and(wavelength >= high_wavelength, wavelength <= low_wavelength);
  return at::where(is_medium, blended, stretched);
}

}  // namespace

RopeTable build_rope_table(const ModelConfig& config, std::int64_t positions, at::Device device) {
  if (config.position != PositionKind::kRotary) {
    return {};
  }
  const at::Tensor exponent =
      at::arange(0, config.head_dim, 2, at::TensorOptions().dtype(at::kLong)).to(at::kFloat) /
      static_cast<double>(config.head_dim);
  at::Tensor inverse_frequencies = 1.0 / at::pow(config.rope_theta, exponent);
  if (config.rope_scaling.factor != 1.0) {
    inverse_frequencies = scale_llama3(inverse_frequencies, config.rope_scaling);
  }
  const at::Tensor position = at::arange(positions, at::TensorOptions().dtype(at::kFloat));
  const at::Tensor angles = at::outer(position, inverse_frequencies);
  return {at::cos(angles).contiguous().to(device), at::sin(angles).contiguous().to(device)};
}

}  // namespace hybridgen
