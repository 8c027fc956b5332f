// SPDX-License-Identifier: Apache-2.0
#include "device/rope_frequencies.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/logical_and.h>
#include <ATen/ops/pow.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/where.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace hybridgen {
namespace {

/// 0, 2 / D, 4 / D, ...: [D / 2].
at::Tensor exponents(std::int64_t head_dim) {
  return at::arange(0, head_dim, 2, at::TensorOptions().dtype(at::kLong)).to(at::kFloat) /
         static_cast<double>(head_dim);
}

// Of a base that grows with the length; up to the original positions the base itself.
// Not by LibTorch's power of a tensor, whose last bit depends on how many there are.
at::Tensor dynamic(const ModelConfig& config, const at::Tensor& lengths) {
  const RopeScaling& scaling = config.rope_scaling;
  const auto original = static_cast<float>(scaling.original_max_positions);
  const auto factor = static_cast<float>(scaling.factor);
  const auto theta = static_cast<float>(config.rope_theta);
  const auto head_dim = static_cast<float>(config.head_dim);
  const std::int64_t half = config.head_dim / 2;
  at::Tensor frequencies = at::empty({lengths.size(0), half}, at::kFloat);
  auto* out = frequencies.mutable_data_ptr<float>();
  const auto* length = lengths.const_data_ptr<std::int64_t>();
  for (std::int64_t row = 0; row < lengths.size(0); ++row) {
    float base = theta;
    if (length[row] > scaling.original_max_positions) {
      const float growth = factor * static_cast<float>(length[row]) / original - (factor - 1.0F);
      base *= std::pow(growth, head_dim / (head_dim - 2.0F));
    }
    for (std::int64_t i = 0; i < half; ++i) {
      *out++ = 1.0F / std::pow(base, static_cast<float>(2 * i) / head_dim);
    }
  }
  return frequencies;
}

/// The dimensions between which yarn blends, as it counts them: pairs of the first and last turns.
std::pair<double, double> yarn_bounds(const ModelConfig& config) {
  const RopeScaling& scaling = config.rope_scaling;
  const auto head_dim = static_cast<double>(config.head_dim);
  const auto original = static_cast<double>(scaling.original_max_positions);
  const auto dimension = [&](double turns) {
    return head_dim * std::log(original / (turns * 2.0 * std::numbers::pi)) /
           (2.0 * std::log(config.rope_theta));
  };
  double low = dimension(scaling.beta_fast);
  double high = dimension(scaling.beta_slow);
  if (scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  return {std::max(low, 0.0), std::min(high, head_dim - 1.0)};
}

at::Tensor yarn(const ModelConfig& config) {
  const at::Tensor wavelengths = at::pow(config.rope_theta, exponents(config.head_dim));
  const at::Tensor kept = 1.0 / wavelengths;
  const at::Tensor stretched = 1.0 / (config.rope_scaling.factor * wavelengths);
  const auto [low, high] = yarn_bounds(config);
  const double width = low == high ? 0.001 : high - low;  // no division by 0
  const at::Tensor place =
      at::arange(config.head_dim / 2, at::TensorOptions().dtype(at::kFloat)) - low;
  const at::Tensor keeps = 1.0 - (place / width).clamp(0.0, 1.0);
  return stretched * (1.0 - keeps) + kept * keeps;
}

at::Tensor longrope(const ModelConfig& config, const at::Tensor& lengths) {
  const RopeScaling& scaling = config.rope_scaling;
  const at::Tensor wavelengths = at::pow(config.rope_theta, exponents(config.head_dim));
  const auto frequencies = [&](const std::vector<double>& factors) {
    return 1.0 / (at::tensor(factors, at::TensorOptions().dtype(at::kFloat)) * wavelengths);
  };
  return at::where(lengths.unsqueeze(1) > scaling.original_max_positions,
                   frequencies(scaling.long_factors),
                   frequencies(scaling.short_factors));
}

// Long wavelengths are stretched by `factor`, short ones kept, those between blended.
at::Tensor llama3(const at::Tensor& frequencies, const RopeScaling& scaling) {
  const auto original = static_cast<double>(scaling.original_max_positions);
  const double low_wavelength = original / scaling.low_freq_factor;
  const double high_wavelength = original / scaling.high_freq_factor;
  const at::Tensor wavelength = 2.0 * std::numbers::pi / frequencies;
  const at::Tensor stretched =
      at::where(wavelength > low_wavelength, frequencies / scaling.factor, frequencies);
  const at::Tensor smooth = (original / wavelength - scaling.low_freq_factor) /
                            (scaling.high_freq_factor - scaling.low_freq_factor);
  const at::Tensor blended = (1.0 - smooth) * stretched / scaling.factor + smooth * stretched;
  const at::Tensor is_medium =
      at::logical_and(wavelength >= high_wavelength, wavelength <= low_wavelength);
  return at::where(is_medium, blended, stretched);
}

}  // namespace

at::Tensor inverse_frequencies(const ModelConfig& config, const at::Tensor& lengths) {
  const RopeScaling& scaling = config.rope_scaling;
  const auto unscaled = [&] {
    return 1.0 / at::pow(config.rope_theta, exponents(config.head_dim));
  };
  switch (scaling.kind) {
    case RopeKind::kNone:
      break;
    case RopeKind::kLinear:
      return (unscaled() / scaling.factor).unsqueeze(0);
    case RopeKind::kDynamic:
      return dynamic(config, lengths);
    case RopeKind::kYarn:
      return yarn(config).unsqueeze(0);
    case RopeKind::kLongRope:
      return longrope(config, lengths);
    case RopeKind::kLlama3:
      return llama3(unscaled(), scaling).unsqueeze(0);
  }
  return unscaled().unsqueeze(0);
}

}  // namespace hybridgen
