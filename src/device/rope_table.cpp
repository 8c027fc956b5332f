// SPDX-License-Identifier: Apache-2.0
#include "device/rope_table.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cos.h>
#include <ATen/ops/full.h>
#include <ATen/ops/sin.h>

#include "device/rope_frequencies.h"

namespace hybridgen {
namespace {

const at::TensorOptions kLengths = at::TensorOptions().dtype(at::kLong);

/// Of positions [N] in passes of lengths [N], or of one length [1].
RopeTable rope_table(const ModelConfig& config,
                     const at::Tensor& positions,
                     const at::Tensor& lengths,
                     at::Device device) {
  const at::Tensor angles =
      positions.to(at::kFloat).unsqueeze(1) * inverse_frequencies(config, lengths);
  RopeTable table{at::cos(angles), at::sin(angles)};
  // Only where it is read: a number that nobody checked is to change nothing.
  const RopeKind kind = config.rope_scaling.kind;
  if (kind == RopeKind::kYarn || kind == RopeKind::kLongRope) {
    table.cosines.mul_(config.rope_scaling.attention_factor);
    table.sines.mul_(config.rope_scaling.attention_factor);
  }
  return {table.cosines.contiguous().to(device), table.sines.contiguous().to(device)};
}

}  // namespace

RopeTable build_rope_table(const ModelConfig& config, std::int64_t positions, at::Device device) {
  if (config.position != PositionKind::kRotary) {
    return {};
  }
  const at::Tensor each = at::arange(positions, kLengths);
  return rope_table(config, each, each + 1, device);
}

RopeTable build_prompt_rope_table(const ModelConfig& config,
                                  std::int64_t first,
                                  std::int64_t count,
                                  std::int64_t length,
                                  at::Device device) {
  if (config.position != PositionKind::kRotary) {
    return {};
  }
  return rope_table(
      config, at::arange(first, first + count, kLengths), at::full({1}, length, kLengths), device);
}

RopeTable inverse_of(const ModelConfig& config, const RopeTable& table) {
  const RopeKind kind = config.rope_scaling.kind;
  const bool is_scaled = kind == RopeKind::kYarn || kind == RopeKind::kLongRope;
  const double factor = is_scaled ? config.rope_scaling.attention_factor : 1.0;
  // The table is the rotation times the factor, and the inverse is its transpose over the factor.
  const double scale = 1.0 / (factor * factor);
  return {table.cosines * scale, table.sines * -scale};
}

}  // namespace hybridgen
