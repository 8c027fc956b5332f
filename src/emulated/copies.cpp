// SPDX-License-Identifier: Apache-2.0
#include "emulated/copies.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/randn.h>

#include <algorithm>
#include <atomic>

#include "emulated/backend.h"
#include "emulated/byte_ranges.h"
#include "emulated/operator_costs.h"
#include "emulated/tensors.h"

namespace hybridgen::emulated {
namespace {

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

}  // namespace

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

}  // namespace hybridgen::emulated
