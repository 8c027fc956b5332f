// SPDX-License-Identifier: Apache-2.0
#include "emulated/operators.h"

#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "emulated/backend.h"
#include "emulated/boxed_call.h"
#include "emulated/byte_ranges.h"
#include "emulated/copies.h"
#include "emulated/operator_costs.h"
#include "emulated/tensors.h"

namespace hybridgen::emulated {
namespace {

c10::Device device_with_tensors(c10::ArrayRef<c10::IValue> arguments) {
  for (const c10::IValue& each : arguments) {
    if (each.isTensor() && is_emulated(each.toTensor())) {
      return each.toTensor().device();
    }
    if (each.isList()) {
      for (const c10::IValue& element : each.toListRef()) {
        if (element.isTensor() && is_emulated(element.toTensor())) {
          return element.toTensor().device();
        }
      }
    }
  }
  return c10::kCPU;
}

// What the operation runs with: aliases of the device's tensors. A number that lies in a tensor on
// the host is saved; other tensors of the host are refused, as CUDA does.
at::Tensor argument_of(const at::Tensor& tensor, c10::Device device, const std::string& name) {
  if (!is_emulated(tensor)) {
    TORCH_CHECK(tensor.is_cpu() && tensor.dim() == 0,
                name,
                ": expected all tensors to be on the same device, but found at least two devices, ",
                device,
                " and ",
                tensor.device());
    at::Tensor copy = tensor.clone();
    copy.unsafeGetTensorImpl()->set_wrapped_number(
        tensor.unsafeGetTensorImpl()->is_wrapped_number());
    return copy;
  }
  TORCH_CHECK(tensor.device() == device,
              name,
              ": expected all tensors to be on the same device, but found at least two devices, ",
              device,
              " and ",
              tensor.device());
  return alias_of(tensor);
}

// What the checker of orders needs to know of an operation.
QueuedOperation describe(const c10::OperatorHandle& op,
                         c10::ArrayRef<c10::IValue> arguments,
                         StreamIndex stream,
                         bool is_observed) {
  QueuedOperation operation{
      .name = op.schema().name(), .stream = stream, .reads = {}, .writes = {}};
  if (!is_observed) {
    return operation;
  }
  const auto& declared = op.schema().arguments();
  for (std::size_t i = 0; i < declared.size(); ++i) {
    const bool writes = declared[i].alias_info() != nullptr && declared[i].alias_info()->isWrite();
    const bool reads = !declared[i].is_out();
    map_tensors(arguments[i], [&](const at::Tensor& tensor) {
      if (is_emulated(tensor)) {
        if (reads) {
          add_ranges(tensor, operation.reads);
        }
        if (writes) {
          add_ranges(tensor, operation.writes);
        }
      }
      return tensor;
    });
  }
  return operation;
}

bool has_known_results(const c10::OperatorHandle& op) {
  static const std::array<std::string_view, 4> by_value = {
      "aten::nonzero", "aten::masked_select", "aten::_unique2", "aten::unique_dim"};
  const auto& schema = op.schema();
  return std::ranges::find(by_value, schema.name()) == by_value.end() &&
         std::ranges::all_of(schema.returns(), [](const c10::Argument& each) {
           return each.type()->isSubtypeOf(*c10::TensorType::get());
         });
}

// A timed device knows no values: all places count as nonzero.
at::Tensor every_place(const c10::OperatorHandle& op,
                       const torch::jit::Stack& arguments,
                       c10::Device device) {
  TORCH_CHECK(op.schema().name() == "aten::nonzero",
              op.schema().name(),
              " depends on values, which a timed device does not compute");
  const at::Tensor& of = arguments.front().toTensor();
  return at::empty({of.numel(), of.dim()}, at::TensorOptions().dtype(at::kLong).device(device));
}

// An operation whose result's shape or value the host must know: it waits, as on CUDA.
void run_and_wait(const c10::OperatorHandle& op,
                  torch::jit::Stack arguments,
                  const QueuedOperation& operation,
                  c10::Device device,
                  torch::jit::Stack* stack) {
  if (device_of(device).is_timed()) {
    device_of(device).host_wait(device_of(device).enqueue(operation, {}), Device::Wait::kValue);
    stack->push_back(every_place(op, arguments, device));
    return;
  }
  auto results = std::make_shared<torch::jit::Stack>(std::move(arguments));
  Device& emulated = device_of(device);
  const Ticket ticket = emulated.enqueue(operation, [op, results] { run(op, *results); });
  emulated.host_wait(ticket, Device::Wait::kValue);
  for (const c10::IValue& each : *results) {
    stack->push_back(map_tensors(each, [&](const at::Tensor& host) {
      at::Tensor result =
          at::empty_strided(host.sizes(), host.strides(), host.options().device(device));
      if (host.numel() > 0) {
        QueuedOperation writes{
            .name = operation.name, .stream = operation.stream, .reads = {}, .writes = {}};
        add_ranges(result, writes.writes);
        emulated.enqueue(writes, [to = alias_of(result), host] { to.copy_(host); });
      }
      return result;
    }));
  }
}

// Where the last conjunction left its result. A timed device answers every question about values so
// that all is well: all of them are finite, none is NaN.
std::atomic<const void*> last_conjunction{nullptr};

void remember_if_all(const c10::OperatorHandle& op,
                     c10::ArrayRef<c10::IValue> arguments,
                     const std::vector<at::Tensor>& made) {
  const at::Tensor* result = made.empty() ? nullptr : &made.front();
  if (result == nullptr && !arguments.empty() && arguments.back().isTensor()) {
    result = &arguments.back().toTensor();  // out=
  }
  if (result == nullptr || result->numel() != 1) {
    return;
  }
  const void* const at = result->const_data_ptr();
  if (op.schema().name() == "aten::all") {
    last_conjunction = at;
  } else if (last_conjunction == at) {
    last_conjunction = nullptr;
  }
}

// Pushes the results, which are arguments, or new tensors: these come back.
std::vector<at::Tensor> push_results(const c10::OperatorHandle& op,
                                     const torch::jit::Stack& given,
                                     c10::Device device,
                                     QueuedOperation& operation,
                                     torch::jit::Stack& stack) {
  const auto& schema = op.schema();
  std::vector<at::Tensor> made;
  std::vector<at::Tensor> shapes;
  for (std::size_t i = 0; i < schema.returns().size(); ++i) {
    const c10::AliasInfo* const alias = schema.returns()[i].alias_info();
    if (alias != nullptr) {
      TORCH_CHECK(alias->isWrite(),
                  schema.name(),
                  " makes a view, which is not there for an emulated device");
      const auto same = std::ranges::find_if(schema.arguments(), [&](const c10::Argument& each) {
        return each.alias_info() != nullptr && *each.alias_info() == *alias;
      });
      stack.push_back(given.at(static_cast<std::size_t>(same - schema.arguments().begin())));
      continue;
    }
    if (shapes.empty()) {
      shapes = shapes_of(op, given);
    }
    made.push_back(at::empty_strided(
        shapes.at(i).sizes(), shapes[i].strides(), shapes[i].options().device(device)));
    add_ranges(made.back(), operation.writes);
    stack.push_back(made.back());
  }
  return made;
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const std::size_t count = schema.arguments().size();
  torch::jit::Stack given(
      std::make_move_iterator(stack->end() - static_cast<std::ptrdiff_t>(count)),
      std::make_move_iterator(stack->end()));
  torch::jit::drop(*stack, count);
  const c10::Device device = device_with_tensors(given);
  TORCH_CHECK(!device.is_cpu(), schema.name(), " is not there for an emulated device");
  const c10::DeviceGuard guard(device);
  Device& emulated = device_of(device);

  resize_outputs(op, given);
  torch::jit::Stack arguments;
  for (const c10::IValue& each : given) {
    arguments.push_back(map_tensors(each, [&](const at::Tensor& tensor) {
      return argument_of(tensor, device, schema.name());
    }));
  }
  QueuedOperation operation =
      describe(op, given, index_of(current_stream(device)), emulated.is_observed());
  emulated.count_launch();
  if (!has_known_results(op)) {
    if (emulated.is_timed()) {
      operation.cost = cost_of(op, given, {});
    }
    run_and_wait(op, std::move(arguments), operation, device, stack);
    return;
  }
  const std::vector<at::Tensor> made = push_results(op, given, device, operation, *stack);
  if (emulated.is_timed()) {
    operation.cost = cost_of(op, given, made);
    remember_if_all(op, given, made);
    emulated.enqueue(operation, {});
    return;
  }
  given.clear();  // texts and lists in it have one owner from here on, on the stream's thread
  std::vector<at::Tensor> targets;
  targets.reserve(made.size());
  for (const at::Tensor& each : made) {
    targets.push_back(alias_of(each));
  }
  emulated.enqueue(operation,
                   [op, arguments = std::move(arguments), targets = std::move(targets)]() mutable {
                     run(op, arguments);
                     for (std::size_t i = 0; i < targets.size(); ++i) {
                       targets[i].copy_(arguments[i].toTensor());
                     }
                   });
}

c10::Device named(const std::optional<at::Device>& device) {
  TORCH_CHECK(device.has_value(), "an emulated device's tensor is made without its device");
  return *device;
}

at::Tensor empty(at::IntArrayRef sizes,
                 std::optional<at::ScalarType> type,
                 std::optional<at::Layout> /*layout*/,
                 std::optional<at::Device> device,
                 std::optional<bool> /*pinned*/,
                 std::optional<at::MemoryFormat> format) {
  const c10::Device where = named(device);
  const c10::DeviceGuard guard(where);
  return at::detail::empty_generic(sizes,
                                   c10::GetAllocator(where.type()),
                                   c10::DispatchKeySet(c10::computeDispatchKey({}, {}, where)),
                                   type.value_or(at::kFloat),
                                   format);
}

at::Tensor empty_strided(at::IntArrayRef sizes,
                         at::IntArrayRef strides,
                         std::optional<at::ScalarType> type,
                         std::optional<at::Layout> /*layout*/,
                         std::optional<at::Device> device,
                         std::optional<bool> /*pinned*/) {
  const c10::Device where = named(device);
  const c10::DeviceGuard guard(where);
  return at::detail::empty_strided_generic(
      sizes,
      strides,
      c10::GetAllocator(where.type()),
      c10::DispatchKeySet(c10::computeDispatchKey({}, {}, where)),
      type.value_or(at::kFloat));
}

const at::Tensor& resize_(const at::Tensor& self,
                          at::IntArrayRef sizes,
                          std::optional<at::MemoryFormat> /*format*/) {
  resize(self, sizes);
  return self;  // NOLINT(bugprone-return-const-ref-from-parameter): LibTorch's signature
}

at::Scalar local_scalar(const at::Tensor& self) {
  const c10::Device device = self.device();
  Device& emulated = device_of(device);
  QueuedOperation operation{.name = "aten::_local_scalar_dense",
                            .stream = index_of(current_stream(device)),
                            .reads = {},
                            .writes = {}};
  add_ranges(self, operation.reads);
  if (emulated.is_timed()) {
    operation.cost = {.kind = OperationKind::kDeviceToHost,
                      .bytes_read = static_cast<std::int64_t>(self.nbytes())};
    emulated.host_wait(emulated.enqueue(operation, {}), Device::Wait::kValue);
    return self.scalar_type() == at::kBool ? at::Scalar(last_conjunction == self.const_data_ptr())
                                           : at::Scalar(0);
  }
  auto value = std::make_shared<at::Scalar>();
  const Ticket ticket = emulated.enqueue(
      operation, [value, from = alias_of(self)] { *value = at::_local_scalar_dense(from); });
  emulated.host_wait(ticket, Device::Wait::kValue);
  return *value;
}

}  // namespace

void register_operators(c10::DeviceType type) {
  const auto key = type == c10::kCUDA ? c10::DispatchKey::CUDA : c10::DispatchKey::PrivateUse1;
  // Never destroyed: operators stay for the life of the process.
  static auto* const libraries = new std::deque<torch::Library>;
  libraries->emplace_back(torch::Library::IMPL, "_", key, __FILE__, __LINE__)
      .fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
  torch::Library* const own =
      &libraries->emplace_back(torch::Library::IMPL, "aten", key, __FILE__, __LINE__);
  own->impl("empty.memory_format", TORCH_FN(empty));
  own->impl("empty_strided", TORCH_FN(empty_strided));
  own->impl("resize_", TORCH_FN(resize_));
  own->impl("copy_", TORCH_FN(copy_));
  own->impl("_local_scalar_dense", TORCH_FN(local_scalar));
  own->impl("view", TORCH_FN(at::native::view));
  own->impl("as_strided", TORCH_FN(at::native::as_strided_tensorimpl));
  own->impl("_reshape_alias", TORCH_FN(at::native::_reshape_alias));
  own->impl("unfold", TORCH_FN(at::native::unfold));
  // LibTorch would compose these of others, with other roundings than its CPU kernels, or has none.
  for (const char* name : {"native_layer_norm", "isnan", "silu", "mm.dtype"}) {
    own->impl(name, torch::CppFunction::makeFromBoxedFunction<&fallback>());
  }
}

}  // namespace hybridgen::emulated
