// SPDX-License-Identifier: Apache-2.0
#include "emulated/operators.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/_local_scalar_dense.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <deque>
#include <iterator>
#include <memory>
#include <mutex>
#include <optional>

#include <string>
#include <string_view>
#include <unordered_set>
#include <utility>
#include <vector>

#include "emulated/backend.h"
#include "emulated/byte_ranges.h"
#include "emulated/operator_costs.h"
#include "hybridgen/core/token_counts.h"

#if defined(__SANITIZE_THREAD__)
extern "C" void __tsan_read_range(void* address, std::size_t bytes);
extern "C" void __tsan_write_range(void* address, std::size_t bytes);
#endif

namespace hybridgen::emulated {
namespace {

// LibTorch is not instrumented: the thread sanitizer hears here that a stream uses the host's
// memory.
void note_host_access([[maybe_unused]] const at::Tensor& host, [[maybe_unused]] bool writes) {
#if defined(__SANITIZE_THREAD__)
  std::vector<ByteRange> ranges;
  add_ranges(host, ranges);
  for (const ByteRange& range : ranges) {
    auto* const begin = const_cast<std::byte*>(range.begin);
    writes ? __tsan_write_range(begin, range.bytes) : __tsan_read_range(begin, range.bytes);
  }
#endif
}

bool is_emulated(const at::Tensor& tensor) {
  return tensor.defined() && (tensor.is_cuda() || tensor.is_privateuseone());
}

// The same elements as a CPU tensor, for an operation that runs later. It owns nothing: as on CUDA,
// a block may be freed before the operations that use it have run.
at::Tensor alias_of(const at::Tensor& tensor) {
  const auto options = tensor.options().device(c10::kCPU);
  if (tensor.numel() == 0) {
    return at::empty_strided(tensor.sizes(), tensor.strides(), options);
  }
  return at::from_blob(device_of(tensor.device()).memory().alias(tensor.const_data_ptr()),
                       tensor.sizes(),
                       tensor.strides(),
                       options);
}

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

// `value` with `map` done to each tensor in it.
template <typename Map>
c10::IValue map_tensors(const c10::IValue& value, const Map& map) {
  if (value.isTensor()) {
    return value.toTensor().defined() ? c10::IValue(map(value.toTensor())) : value;
  }
  if (value.isTensorList()) {
    std::vector<at::Tensor> mapped;
    for (const at::Tensor& each : value.toTensorVector()) {
      mapped.push_back(each.defined() ? map(each) : each);
    }
    return mapped;
  }
  if (value.isList()) {
    c10::List<c10::IValue> source = value.toList();
    c10::impl::GenericList mapped(source.elementType());
    for (const c10::IValue& each : value.toListRef()) {
      mapped.push_back(map_tensors(each, map));
    }
    return mapped;
  }
  return value;
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

// CUDA alone has it: 16-bit matrices, and a product of another type that is rounded once.
bool is_product_of_a_type(const c10::OperatorHandle& op) {
  return op.schema().overload_name() == "dtype" && op.schema().name() == "aten::mm";
}

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

// Shapes that the operation gives, without its data: by LibTorch's shape functions or, for the few
// operators that have none, by its CPU kernel on zeros.
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

// out= tensors that are still empty take the result's shape before the operation is queued.
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
  // Results that are arguments, or new tensors.
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
      stack->push_back(given.at(static_cast<std::size_t>(same - schema.arguments().begin())));
      continue;
    }
    if (shapes.empty()) {
      shapes = shapes_of(op, given);
    }
    made.push_back(at::empty_strided(
        shapes.at(i).sizes(), shapes[i].strides(), shapes[i].options().device(device)));
    add_ranges(made.back(), operation.writes);
    stack->push_back(made.back());
  }
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

// What a timed device's memory holds for the host: places in order for whole numbers, which are all
// there and differ, and for others any that are finite.
void fill_with_anything(const at::Tensor& host) {
  if (at::isFloatingType(host.scalar_type())) {
    constexpr std::int64_t kPool = 1 << 16;
    static const at::Tensor pool =
        at::randn({kPool}, at::detail::createCPUGenerator(1), at::kFloat);
    static std::atomic<std::int64_t> shift{0};
    const at::Tensor same_type = pool.to(host.scalar_type());
    const at::Tensor flat =
        host.is_contiguous() ? host.view({-1}) : at::empty({host.numel()}, host.options());
    std::int64_t from = (shift += 7919) % kPool;
    for (std::int64_t done = 0; done < flat.numel();) {
      const std::int64_t count = std::min(kPool - from, flat.numel() - done);
      flat.narrow(0, done, count).copy_(same_type.narrow(0, from, count));
      done += count;
      from = 0;
    }
    if (!host.is_contiguous()) {
      host.copy_(flat.view(host.sizes()));
    }
  } else if (host.scalar_type() == at::kBool || host.dim() == 0) {
    host.zero_();
  } else {
    host.copy_(at::arange(host.size(-1), host.options()).expand(host.sizes()));
  }
}

void copy_in_time(Device& device, QueuedOperation operation, const at::Tensor& to, bool waits) {
  const bool to_device = is_emulated(to);
  const auto bytes = static_cast<std::int64_t>(to.nbytes());
  operation.cost = {.kind = to_device ? OperationKind::kHostToDevice : OperationKind::kDeviceToHost,
                    .bytes_read = bytes,
                    .bytes_written = bytes};
  const Ticket ticket = device.enqueue(operation, {});
  if (!to_device) {
    fill_with_anything(to);
  }
  if (waits) {
    device.host_wait(ticket, Device::Wait::kBlockingCopy);
  }
}

// CUDA's rules: a copy between host and device lets the host go on if it is asked to, the host's
// memory is pinned and no conversion happens on the host; else the host waits.
at::Tensor& copy_(at::Tensor& self, const at::Tensor& source, bool non_blocking) {
  const at::Tensor from = source.expand_as(self);
  if (self.numel() == 0 || self.is_same(source)) {
    return self;
  }
  const c10::Device where = is_emulated(self) ? self.device() : source.device();
  Device& device = device_of(where);
  QueuedOperation operation{
      .name = "aten::copy_", .stream = index_of(current_stream(where)), .reads = {}, .writes = {}};
  if (device.is_observed()) {
    add_ranges(is_emulated(from) ? from : at::Tensor{}, operation.reads);
    add_ranges(is_emulated(self) ? self : at::Tensor{}, operation.writes);
  }
  if (is_emulated(self) && is_emulated(from)) {
    TORCH_CHECK(self.device() == from.device(), "copies between emulated devices are not there");
    device.count_launch();
    if (device.is_timed()) {
      operation.cost = device_copy(self, from);
    }
    device.enqueue(operation, [to = alias_of(self), what = alias_of(from)] { to.copy_(what); });
    return self;
  }
  const bool to_device = is_emulated(self);
  const at::Tensor& host = to_device ? from : self;
  device.count_copy(to_device, self.nbytes());
  const bool is_async = non_blocking && host.is_non_overlapping_and_dense() &&
                        (!to_device || self.scalar_type() == from.scalar_type()) &&
                        is_pinned(host.const_data_ptr());
  if (device.is_timed()) {
    copy_in_time(device, operation, self, /*waits=*/!is_async);
    return self;
  }
  if (is_async) {
    // The copy holds the host's tensor, as CUDA's pinned allocator holds its block until then.
    if (to_device) {
      device.enqueue(operation, [to = alias_of(self), from] {
        note_host_access(from, /*writes=*/false);
        to.copy_(from);
      });
    } else {
      device.enqueue(operation, [to = self, what = alias_of(from)] {
        note_host_access(to, /*writes=*/true);
        to.copy_(what);
      });
    }
    return self;
  }
  if (to_device && !device.options().uploads_wait) {
    device.enqueue(operation, [to = alias_of(self), saved = from.clone()] { to.copy_(saved); });
    return self;
  }
  const Ticket ticket =
      to_device ? device.enqueue(operation, [to = alias_of(self), from] { to.copy_(from); })
                : device.enqueue(operation, [to = self, what = alias_of(from)] { to.copy_(what); });
  device.host_wait(ticket, Device::Wait::kBlockingCopy);
  return self;
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
    // What depends on scores, such as how many are near the highest, is as much as there may be.
    return self.scalar_type() == at::kBool ? at::Scalar(last_conjunction == self.const_data_ptr())
           : self.scalar_type() == at::kDouble ? at::Scalar(static_cast<double>(kMaxTokens))
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
