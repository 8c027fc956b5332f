// SPDX-License-Identifier: Apache-2.0
#include "pipeline/lost_mass.h"

#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>

namespace hybridgen {
namespace {

bool is_measured(LossKind kind) { return kind == LossKind::kExact || kind == LossKind::kEstimated; }

}  // namespace

void LossSum::add(const StepLoss& step) {
  ++(step.kind == LossKind::kUnknown ? unknown
     : step.kind == LossKind::kNone  ? complete
                                     : measured);
  if (!is_measured(step.kind)) {
    return;
  }
  sum += step.mass;
  largest = std::max(largest, step.mass);
  is_estimated |= step.kind == LossKind::kEstimated;
}

double share_of_second(double first, double second) {
  return std::isinf(second) && second < 0.0 ? 0.0 : 1.0 / (1.0 + std::exp(first - second));
}

LostMass::LostMass(const ModelConfig& config,
                   const DeviceContext& device,
                   std::int64_t rows,
                   bool has_selector)
    : num_layers_(config.num_layers),
      num_heads_(config.num_heads),
      rows_(rows),
      kinds_(static_cast<std::size_t>(num_layers_ * rows)) {
  if (!has_selector) {
    return;
  }
  merged_ = at::zeros({num_layers_ * rows, num_heads_},
                      at::TensorOptions().dtype(at::kFloat).device(device.device()));
  host_merged_ = device.is_cpu() ? merged_ : device.host_staging(merged_.sizes(), at::kFloat);
  merged_rows_ = merged_.unbind(0);
  unchosen_.resize(static_cast<std::size_t>(merged_.numel()));
}

std::int64_t LostMass::device_bytes(const ModelConfig& config) {
  return config.num_layers * config.num_heads * static_cast<std::int64_t>(sizeof(float));
}

void LostMass::begin_step() { std::ranges::fill(kinds_, LossKind::kNone); }

float* LostMass::unchosen(std::int64_t layer, std::int64_t row) {
  return unchosen_.data() + index(layer, row) * static_cast<std::size_t>(num_heads_);
}

at::Tensor* LostMass::merged(std::int64_t layer, std::int64_t row) {
  return &merged_rows_[index(layer, row)];
}

void LostMass::note(std::int64_t layer, std::int64_t row, LossKind kind) {
  kinds_[index(layer, row)] = kind;
}

void LostMass::send() {
  if (!host_merged_.is_same(merged_) && std::ranges::any_of(kinds_, is_measured)) {
    host_merged_.copy_(merged_, /*non_blocking=*/true);
  }
}

StepLoss LostMass::of(std::int64_t row) const {
  StepLoss loss;
  for (std::int64_t layer = 0; layer < num_layers_; ++layer) {
    const LossKind kind = kinds_[index(layer, row)];
    loss.kind = std::max(loss.kind, kind);
    if (!is_measured(kind)) {
      continue;
    }
    const auto* merged = host_merged_.const_data_ptr<float>();
    const std::size_t first = index(layer, row) * static_cast<std::size_t>(num_heads_);
    for (std::size_t head = first; head < first + static_cast<std::size_t>(num_heads_); ++head) {
      loss.mass += share_of_second(merged[head], unchosen_[head]);
    }
  }
  loss.mass /= static_cast<double>(num_layers_ * num_heads_);
  return loss;
}

}  // namespace hybridgen
