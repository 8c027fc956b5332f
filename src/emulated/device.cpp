// SPDX-License-Identifier: Apache-2.0
#include "emulated/device.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <utility>

namespace hybridgen::emulated {
namespace {

constexpr int kPoison = 0xFF;                             // NaN in every type
constexpr std::size_t kMostKept = std::size_t{64} << 20;  // bytes, where less is in use

thread_local bool thread_queues = false;  ///< whether this thread ever queued work

std::int64_t now_ns() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

Ticket ticket_at(StreamIndex stream, std::int64_t time_ns) {
  return {stream, static_cast<std::uint64_t>(time_ns)};
}

std::int64_t time_of(Ticket ticket) { return static_cast<std::int64_t>(ticket.number); }

}  // namespace

Device::Device(std::size_t reserved_bytes) : memory_(reserved_bytes) {
  for (StreamIndex stream = 0; stream < Streams::kCount; ++stream) {
    handles_[stream] = {this, stream};
  }
}

Device::Device(const MachineProfile& profile)
    : Device(static_cast<std::size_t>(profile.mem_gb * 1e9)) {
  timeline_ = std::make_unique<Timeline>(profile);
}

void Device::configure(const DeviceOptions& options) {
  streams_.set_mode(options.mode, options.seed);
  memory_.release_cached();
  memory_.set_capacity(options.memory_bytes);
  options_ = options;
}

void* Device::allocate(std::size_t bytes, StreamIndex stream) {
  // Blocks that nobody asks for again take the host's memory. In other modes freed ones may have
  // work before them, and those of a timed device take none.
  const DeviceMemory::Use use = memory_.use();
  if (options_.mode == Mode::kEager && !is_timed() &&
      use.taken - use.now > std::max(use.now, kMostKept)) {
    memory_.release_cached();
  }
  DeviceMemory::Allocated block = memory_.allocate(bytes, stream);
  if (block.address == nullptr) {
    // As CUDA's allocator: what streams keep goes back, once all their work is done.
    host_wait_for_all();
    memory_.release_cached();
    block = memory_.allocate(bytes, stream);
  }
  if (block.is_new && options_.poison) {
    std::memset(memory_.alias(block.address), kPoison, block.bytes);
  }
  return block.address;
}

void Device::free(void* address) {
  const auto [bytes, stream] = memory_.free(address);
  if (!options_.poison) {
    return;
  }
  // As if the next to get the block wrote to it at once.
  const QueuedOperation operation{.name = "free",
                                  .stream = stream,
                                  .reads = {},
                                  .writes = {{static_cast<const std::byte*>(address), bytes}}};
  enqueue(operation,
          [at = memory_.alias(address), bytes = bytes] { std::memset(at, kPoison, bytes); });
}

void Device::count_copy(bool to_device, std::size_t bytes) {
  ++(to_device ? copies_to_device_ : copies_to_host_);
  (to_device ? bytes_to_device_ : bytes_to_host_) += static_cast<std::int64_t>(bytes);
}

Ticket Device::enqueue(const QueuedOperation& operation, std::function<void()> work) {
  thread_queues = true;
  if (is_timed()) {
    return ticket_at(operation.stream, timeline_->queue(operation.stream, operation.cost));
  }
  if (observer_ == nullptr) {
    return streams_.enqueue(operation.stream, std::move(work));
  }
  const std::lock_guard lock(observer_mutex_);
  const Ticket ticket = streams_.enqueue(operation.stream, std::move(work));
  observer_->on_operation(operation, ticket);
  return ticket;
}

void Device::launch(StreamIndex stream, std::string_view name, std::function<void()> kernel) {
  count_launch();
  enqueue({.name = name, .stream = stream, .reads = {}, .writes = {}},
          [this, kernel = std::move(kernel)] {
            const DeviceMemory::Opened opened(memory_);
            kernel();
          });
}

void Device::launch(StreamIndex stream, std::string_view name, const TimedOperation& cost) {
  count_launch();
  enqueue({.name = name, .stream = stream, .reads = {}, .writes = {}, .cost = cost}, {});
}

Ticket Device::record(StreamIndex stream,
                      const std::shared_ptr<std::atomic<std::int64_t>>& time_ns) {
  if (is_timed()) {
    *time_ns = timeline_->record(stream);
    return ticket_at(stream, *time_ns);
  }
  return enqueue({.name = "record", .stream = stream, .reads = {}, .writes = {}},
                 [time_ns] { *time_ns = now_ns(); });
}

Ticket Device::end_of(StreamIndex stream) const {
  return is_timed() ? ticket_at(stream, timeline_->record(stream)) : streams_.end_of(stream);
}

bool Device::is_done(Ticket ticket) {
  return is_timed() ? timeline_->is_done(time_of(ticket)) : streams_.is_done(ticket);
}

void Device::wait_on_device(StreamIndex stream, Ticket ticket) {
  if (is_timed()) {
    timeline_->wait_on_device(stream, time_of(ticket));
    return;
  }
  if (options_.fault == Fault::kStreamIgnoresEvent) {
    return;
  }
  streams_.wait_on_device(stream, ticket);
  if (observer_ != nullptr) {
    const std::lock_guard lock(observer_mutex_);
    observer_->on_device_wait(stream, ticket);
  }
}

void Device::host_wait(Ticket ticket, Wait kind, Ticket older) {
  const bool is_driver = thread_queues;
  if (!is_driver) {
    ++worker_waits_;
  } else {
    ++(kind == Wait::kBlockingCopy ? blocking_copies_
       : kind == Wait::kValue      ? value_reads_
                                   : explicit_waits_);
  }
  if (is_timed()) {
    timeline_->host_wait(time_of(ticket), is_driver);
    return;
  }
  const Fault ignored = kind == Wait::kBlockingCopy ? Fault::kCopyToHostIsNotAwaited
                        : kind != Wait::kEvent      ? Fault::kNone
                        : is_driver                 ? Fault::kDriverIgnoresEvent
                                                    : Fault::kWorkerIgnoresEvent;
  if (ignored != Fault::kNone && options_.fault == ignored) {
    return;
  }
  if (options_.fault == Fault::kWorkerWaitsForOlder && kind == Wait::kEvent && !is_driver) {
    ticket = older;
  }
  streams_.host_wait(ticket);
  if (observer_ != nullptr) {
    const std::lock_guard lock(observer_mutex_);
    observer_->on_host_wait(ticket);
  }
}

void Device::host_wait_for_all() {
  ++explicit_waits_;
  if (options_.fault == Fault::kDeviceIsNotAwaited) {
    return;
  }
  for (StreamIndex stream = 0; stream < Streams::kCount; ++stream) {
    const Ticket ticket = end_of(stream);
    if (is_timed()) {
      timeline_->host_wait(time_of(ticket), thread_queues);
      continue;
    }
    if (ticket.number == 0) {
      continue;
    }
    streams_.host_wait(ticket);
    if (observer_ != nullptr) {
      const std::lock_guard lock(observer_mutex_);
      observer_->on_host_wait(ticket);
    }
  }
}

Counters Device::counters() const {
  Counters counters;
  counters.launches = launches_;
  counters.copies_to_device = copies_to_device_;
  counters.copies_to_host = copies_to_host_;
  counters.bytes_to_device = bytes_to_device_;
  counters.bytes_to_host = bytes_to_host_;
  counters.explicit_waits = explicit_waits_;
  counters.blocking_copies = blocking_copies_;
  counters.value_reads = value_reads_;
  counters.worker_waits = worker_waits_;
  return counters;
}

void Device::reset_counters() {
  for (auto* each : {&launches_,
                     &copies_to_device_,
                     &copies_to_host_,
                     &bytes_to_device_,
                     &bytes_to_host_,
                     &explicit_waits_,
                     &blocking_copies_,
                     &value_reads_,
                     &worker_waits_}) {
    *each = 0;
  }
}

}  // namespace hybridgen::emulated
