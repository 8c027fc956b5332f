// SPDX-License-Identifier: Apache-2.0
#include "device/linear_weight.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>

#include <algorithm>

#include "device/device_ops.h"

namespace hybridgen {
namespace {

/// Elements of a coded weight that are there as dense ones at a time: 16 MiB of float32.
constexpr std::int64_t kRestoredElements = std::int64_t{1} << 22;

std::int64_t bytes_of(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<std::int64_t>(tensor.nbytes()) : 0;
}

/// float32 [outputs, inputs].
at::Tensor wide_codes(const LinearWeight& weight) {
  if (weight.bits == 8) {
    return weight.codes.view(at::kChar).narrow(1, 0, weight.inputs).to(at::kFloat);
  }
  // Blocks of 16 bytes: the low halves of all of them, then the high ones.
  const at::Tensor blocks = weight.codes.view({weight.outputs(), -1, 16});
  const at::Tensor codes = at::cat({blocks.bitwise_and(15), blocks.bitwise_right_shift(4)}, -1)
                               .view({weight.outputs(), -1})
                               .narrow(1, 0, weight.inputs)
                               .to(at::kFloat);
  return weight.minima.defined() ? codes : codes - 8.0;
}

/// Numbers of groups [outputs, groups] as float32 [outputs, inputs].
at::Tensor of_inputs(const at::Tensor& groups, const LinearWeight& weight) {
  return groups.to(at::kFloat)
      .unsqueeze(-1)
      .expand({-1, -1, weight.group})
      .reshape({weight.outputs(), -1})
      .narrow(1, 0, weight.inputs);
}

}  // namespace

std::int64_t LinearWeight::bytes() const {
  return bytes_of(dense) + bytes_of(codes) + bytes_of(scales) + bytes_of(minima);
}

std::vector<at::Tensor*> LinearWeight::tensors() {
  std::vector<at::Tensor*> found;
  for (at::Tensor* tensor : {&dense, &codes, &scales, &minima}) {
    if (tensor->defined()) found.push_back(tensor);
  }
  return found;
}

LinearWeight LinearWeight::rows(std::int64_t first, std::int64_t count) const {
  LinearWeight part = *this;
  for (at::Tensor* tensor : part.tensors()) *tensor = tensor->narrow(0, first, count);
  return part;
}

LinearWeight LinearWeight::select(const at::Tensor& ids) const {
  LinearWeight part = *this;
  for (at::Tensor* tensor : {&part.dense, &part.codes, &part.scales, &part.minima}) {
    if (tensor->defined()) *tensor = tensor->index_select(0, ids);
  }
  return part;
}

at::Tensor LinearWeight::restored(at::ScalarType type) const {
  if (!is_coded()) return dense.to(type);
  at::Tensor values = wide_codes(*this) * of_inputs(scales, *this);
  if (minima.defined()) values = values + of_inputs(minima, *this);
  return values.to(type);
}

std::int64_t Projection::outputs() const {
  std::int64_t sum = 0;
  for (const LinearWeight& part : parts) sum += part.outputs();
  return sum;
}

std::int64_t Projection::bytes() const {
  std::int64_t sum = bytes_of(bias);
  for (const LinearWeight& part : parts) sum += part.bytes();
  return sum;
}

Projection Projection::rows(std::int64_t first, std::int64_t count) const {
  Projection cut;
  if (bias.defined()) cut.bias = bias.narrow(0, first, count);
  std::int64_t before = 0;
  for (const LinearWeight& part : parts) {
    const std::int64_t begin = std::max(first, before);
    const std::int64_t end = std::min(first + count, before + part.outputs());
    if (begin < end) cut.parts.push_back(part.rows(begin - before, end - begin));
    before += part.outputs();
  }
  return cut;
}

void DeviceOps::project(const at::Tensor& x, const Projection& projection, at::Tensor& y) const {
  if (projection.parts.size() == 1) {
    linear(x, projection.parts.front(), projection.bias, y);
    return;
  }
  std::int64_t first = 0;
  for (const LinearWeight& part : projection.parts) {
    const std::int64_t count = part.outputs();
    at::Tensor columns = y.narrow(1, first, count);
    linear(x,
           part,
           projection.bias.defined() ? projection.bias.narrow(0, first, count) : at::Tensor(),
           columns);
    first += count;
  }
}

void DeviceOps::linear_restored(const at::Tensor& x,
                                const LinearWeight& weight,
                                const at::Tensor& bias,
                                at::Tensor& y) const {
  const std::int64_t piece = std::max<std::int64_t>(1, kRestoredElements / weight.inputs);
  for (std::int64_t first = 0; first < weight.outputs(); first += piece) {
    const std::int64_t count = std::min(piece, weight.outputs() - first);
    at::Tensor columns = y.narrow(1, first, count);
    linear(x,
           LinearWeight(weight.rows(first, count).restored(x.scalar_type())),
           bias.defined() ? bias.narrow(0, first, count) : at::Tensor(),
           columns);
  }
}

}  // namespace hybridgen
