// SPDX-License-Identifier: Apache-2.0
#include "emulated/boxed_call.h"

#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/mm.h>
#include <c10/core/DeviceGuard.h>

#include <algorithm>
#include <mutex>
#include <unordered_set>

#include "emulated/tensors.h"

namespace hybridgen::emulated {
namespace {

// CUDA alone has it: 16-bit matrices, and a product of another type that is rounded once.
bool is_product_of_a_type(const c10::OperatorHandle& op) {
  return op.schema().overload_name() == "dtype" && op.schema().name() == "aten::mm";
}

std::vector<at::Tensor> results_on(c10::DeviceType type,
                                   const c10::OperatorHandle& op,
                                   c10::ArrayRef<c10::IValue> arguments) {
  torch::jit::Stack stack;
  for (const c10::IValue& each : arguments) {
    stack.push_back(map_tensors(each, [&](const at::Tensor& tensor) {
      if (!is_emulated(tensor)) {
        return tensor;
      }
      at::Tensor like =
          at::empty_strided(tensor.sizes(), tensor.strides(), tensor.options().device(type));
      if (type == c10::kCPU) {
        like.zero_();
      }
      return like;
    }));
  }
  run(op, stack);
  std::vector<at::Tensor> results;
  for (const c10::IValue& each : stack) {
    results.push_back(each.toTensor());
  }
  return results;
}

}  // namespace

void run(const c10::OperatorHandle& op, torch::jit::Stack& stack) {
  const at::NoGradGuard no_grad;
  const at::AutoDispatchBelowADInplaceOrView below;
  if (is_product_of_a_type(op)) {
    const at::ScalarType type = torch::jit::pop(stack).toScalarType();
    const at::Tensor b = torch::jit::pop(stack).toTensor().to(type);
    const at::Tensor a = torch::jit::pop(stack).toTensor().to(type);
    stack.emplace_back(at::mm(a, b));
    return;
  }
  op.callBoxed(stack);
}

std::vector<at::Tensor> shapes_of(const c10::OperatorHandle& op,
                                  c10::ArrayRef<c10::IValue> arguments) {
  if (op.schema().name() == "aten::index_select") {
    // Without a shape function; zeros like a vocabulary's table would take longer than a step.
    const at::Tensor& from = arguments[0].toTensor();
    std::vector<std::int64_t> sizes = from.sizes().vec();
    const std::int64_t dim = arguments[1].toInt();
    sizes.at(static_cast<std::size_t>(dim < 0 ? dim + from.dim() : dim)) =
        arguments[2].toTensor().numel();
    return {at::empty(sizes, from.options().device(c10::kMeta))};
  }
  static std::mutex mutex;
  static std::unordered_set<c10::OperatorName> without_shape_function;
  const c10::OperatorName& name = op.operator_name();
  {
    const std::lock_guard lock(mutex);
    if (without_shape_function.contains(name)) {
      return results_on(c10::kCPU, op, arguments);
    }
  }
  try {
    return results_on(c10::kMeta, op, arguments);
  } catch (const c10::NotImplementedError&) {
    const std::lock_guard lock(mutex);
    without_shape_function.insert(name);
  }
  return results_on(c10::kCPU, op, arguments);
}

void resize(const at::Tensor& tensor, at::IntArrayRef sizes) {
  c10::TensorImpl* const impl = tensor.unsafeGetTensorImpl();
  const std::size_t bytes =
      static_cast<std::size_t>(c10::multiply_integers(sizes)) * tensor.dtype().itemsize() +
      static_cast<std::size_t>(tensor.storage_offset()) * tensor.dtype().itemsize();
  const c10::Storage& storage = impl->unsafe_storage();
  if (storage.nbytes() < bytes) {
    const c10::DeviceGuard guard(tensor.device());
    TORCH_CHECK(storage.nbytes() == 0, "an emulated device grows empty tensors only");
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(storage.allocator()->allocate(bytes));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
  impl->set_sizes_contiguous(sizes);
}

void resize_outputs(const c10::OperatorHandle& op, c10::ArrayRef<c10::IValue> arguments) {
  const auto& declared = op.schema().arguments();
  std::vector<at::Tensor> empty;
  for (std::size_t i = 0; i < declared.size(); ++i) {
    if (declared[i].is_out() && arguments[i].isTensor()) {
      empty.push_back(arguments[i].toTensor());
    }
  }
  if (empty.empty() ||
      std::ranges::none_of(empty, [](const at::Tensor& each) { return each.numel() == 0; })) {
    return;
  }
  const std::vector<at::Tensor> shapes = shapes_of(op, arguments);
  for (std::size_t i = 0; i < empty.size(); ++i) {
    if (empty[i].sizes() != shapes.at(i).sizes()) {
      resize(empty[i], shapes[i].sizes());
    }
  }
}

}  // namespace hybridgen::emulated
