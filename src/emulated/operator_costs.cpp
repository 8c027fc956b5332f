// SPDX-License-Identifier: Apache-2.0
#include "emulated/operator_costs.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <optional>
#include <string_view>

namespace hybridgen::emulated {
namespace {

// Which argument is the left factor of a matrix product.
struct Product {
  std::string_view name;
  std::size_t left;
};
constexpr std::array<Product, 8> kProducts{{{"aten::mm", 0},
                                            {"aten::bmm", 0},
                                            {"aten::mv", 0},
                                            {"aten::dot", 0},
                                            {"aten::linear", 0},
                                            {"aten::addmm", 1},
                                            {"aten::addmv", 1},
                                            {"aten::baddbmm", 1}}};

// Operators that read a choice of their first tensor.
constexpr std::array<std::string_view, 6> kChoices{"aten::index_select",
                                                   "aten::index",
                                                   "aten::gather",
                                                   "aten::embedding",
                                                   "aten::take",
                                                   "aten::take_along_dim"};

std::int64_t distinct_bytes(const at::Tensor& tensor) {
  std::int64_t count = 1;
  for (std::int64_t dim = 0; dim < tensor.dim(); ++dim) {
    if (tensor.stride(dim) != 0 || tensor.size(dim) == 0) count *= tensor.size(dim);
  }
  return count * static_cast<std::int64_t>(tensor.element_size());
}

DType dtype_of(const at::Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      return DType::kFloat32;
  }
}

template <typename Visit>
void for_each_tensor(const c10::IValue& value, const Visit& visit) {
  if (value.isTensor()) {
    if (value.toTensor().defined()) visit(value.toTensor());
  } else if (value.isList()) {
    for (const c10::IValue& each : value.toListRef()) for_each_tensor(each, visit);
  }
}

std::optional<std::size_t> left_factor(std::string_view name) {
  const auto* const found = std::ranges::find(kProducts, name, &Product::name);
  return found == kProducts.end() ? std::nullopt : std::optional(found->left);
}

}  // namespace

TimedOperation cost_of(const c10::OperatorHandle& op,
                       c10::ArrayRef<c10::IValue> arguments,
                       c10::ArrayRef<at::Tensor> results) {
  const auto& schema = op.schema();
  const bool is_choice = std::ranges::find(kChoices, schema.name()) != kChoices.end();
  TimedOperation operation;
  std::int64_t most_elements = 0;
  std::int64_t elements_written = 0;
  const auto write = [&](const at::Tensor& tensor) {
    operation.bytes_written += distinct_bytes(tensor);
    elements_written += tensor.numel();
  };
  for (std::size_t i = 0; i < arguments.size(); ++i) {
    const c10::Argument& declared = schema.arguments()[i];
    const bool writes = declared.alias_info() != nullptr && declared.alias_info()->isWrite();
    for_each_tensor(arguments[i], [&](const at::Tensor& tensor) {
      if (writes) write(tensor);
      if (declared.is_out() || (is_choice && i == 0)) return;
      operation.bytes_read += distinct_bytes(tensor);
      most_elements = std::max(most_elements, tensor.numel());
    });
  }
  for (const at::Tensor& result : results) write(result);
  if (is_choice) operation.bytes_read += operation.bytes_written;
  operation.flops = static_cast<double>(std::max(most_elements, elements_written));
  if (const auto left = left_factor(schema.name())) {
    const at::Tensor& factor = arguments[*left].toTensor();
    operation.kind = OperationKind::kDense;
    operation.dtype = dtype_of(factor);
    operation.flops =
        2.0 * static_cast<double>(elements_written) * static_cast<double>(factor.size(-1));
  }
  return operation;
}

TimedOperation device_copy(const at::Tensor& to, const at::Tensor& from) {
  return {.kind = OperationKind::kDeviceCopy,
          .bytes_read = distinct_bytes(from),
          .bytes_written = distinct_bytes(to)};
}

}  // namespace hybridgen::emulated
