// SPDX-License-Identifier: Apache-2.0
#include "emulated/backend.h"

#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/util/Exception.h>
#include <torch/version.h>

#include <array>
#include <atomic>
#include <cstdlib>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <utility>

#include "emulated/machine_profile.h"
#include "emulated/operators.h"
#include "hybridgen/core/error.h"
#include "memory/numa.h"
#include "runtime/process.h"

// LibTorch asks a backend for a stream's handle since 2.13.
#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 13)
#define HYBRIDGEN_OVERRIDES_HANDLE override
#else
#define HYBRIDGEN_OVERRIDES_HANDLE
#endif

namespace hybridgen::emulated {
namespace {

constexpr std::size_t kMostDevices = kMaxMachines + 1;
constexpr std::size_t kReservedBytes = std::size_t{64} << 30;  // of addresses, of an untimed device
constexpr StreamIndex kPoolStreams = 32;
constexpr std::size_t kPinnedAlignment = 4096;

// The devices of a type. Made when asked for and never destroyed: tensors may outlive static
// objects.
struct Backend {
  MakerProcess maker;  ///< whose memory and threads the devices are
  std::mutex mutex;    ///< of making devices
  std::array<std::atomic<Device*>, kMostDevices> devices{};
  std::array<std::atomic<StreamIndex>, 2> next_in_pool{};
};

// Of the calling thread.
struct Current {
  c10::DeviceIndex device = 0;
  std::array<StreamIndex, kMostDevices> streams{};
};

bool can_be_emulated(c10::DeviceType type) {
  return type == c10::kCUDA || type == c10::kPrivateUse1;
}

std::size_t slot_of(c10::DeviceType type) {
  TORCH_CHECK(can_be_emulated(type), "no emulated device is of type ", type);
  return type == c10::kCUDA ? 0 : 1;
}

std::atomic<Backend*>& backend_slot(c10::DeviceType type) {
  static std::array<std::atomic<Backend*>, 2> backends{};
  return backends[slot_of(type)];
}

Backend& backend(c10::DeviceType type) {
  Backend* const found = backend_slot(type).load();
  TORCH_CHECK(found != nullptr, "no emulated device is registered as ", type);
  return *found;
}

Current& current(c10::DeviceType type) {
  thread_local std::array<Current, 2> here;
  return here[slot_of(type)];
}

struct Event {
  c10::Device device;
  Ticket ticket;
  Ticket older;                                        ///< of the record before
  std::shared_ptr<std::atomic<std::int64_t>> time_ns;  ///< when it was reached; 0: not yet
};

class Guard final : public c10::impl::DeviceGuardImplInterface {
 public:
  explicit Guard(c10::DeviceType type) : type_(type) {}

  c10::DeviceType type() const override { return type_; }
  c10::Device exchangeDevice(c10::Device device) const override {
    return {type_, exchange_device(type_, device.index())};
  }
  c10::Device getDevice() const override { return {type_, current_device(type_)}; }
  void setDevice(c10::Device device) const override { exchangeDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    current(type_).device = device.index();
  }
  c10::DeviceIndex deviceCount() const noexcept override { return device_count(type_); }

  c10::Stream getStream(c10::Device device) const override { return current_stream(device); }
  c10::Stream getDefaultStream(c10::Device device) const override {
    return c10::Stream{c10::Stream::DEFAULT, with_index(device)};
  }
  c10::Stream getStreamFromGlobalPool(c10::Device device, bool is_high_priority) const override {
    const std::size_t pool = is_high_priority ? 0 : 1;
    const StreamIndex next = backend(type_).next_in_pool.at(pool)++ % kPoolStreams;
    return c10::Stream{c10::Stream::UNSAFE,
                       with_index(device),
                       static_cast<c10::StreamId>(1 + pool * kPoolStreams + next)};
  }
  c10::Stream getNewStream(c10::Device device, int priority) const override {
    return getStreamFromGlobalPool(device, priority < 0);
  }
  c10::Stream exchangeStream(c10::Stream stream) const override {
    const c10::Stream old = current_stream(stream.device());
    current(type_).streams.at(static_cast<std::size_t>(stream.device_index())) = index_of(stream);
    return old;
  }
  void* getStreamNativeHandle(const c10::Stream stream) const HYBRIDGEN_OVERRIDES_HANDLE {
    return device_of(stream.device()).handle(index_of(stream));
  }
  bool queryStream(const c10::Stream& stream) const override {
    Device& device = device_of(stream.device());
    return device.is_done(device.end_of(index_of(stream)));
  }
  void synchronizeStream(const c10::Stream& stream) const override {
    Device& device = device_of(stream.device());
    device.host_wait(device.end_of(index_of(stream)), Device::Wait::kStream);
  }
  void synchronizeDevice(c10::DeviceIndex index) const override {
    device_of({type_, index}).host_wait_for_all();
  }

  void record(void** event,
              const c10::Stream& stream,
              c10::DeviceIndex /*index*/,
              c10::EventFlag /*flag*/) const override {
    if (*event == nullptr) {
      *event = new Event{stream.device(), {}, {}, {}};
    }
    auto& recorded = *static_cast<Event*>(*event);
    recorded.device = stream.device();
    recorded.older = recorded.ticket;
    recorded.time_ns = std::make_shared<std::atomic<std::int64_t>>(0);
    recorded.ticket = device_of(stream.device()).record(index_of(stream), recorded.time_ns);
  }
  void block(void* event, const c10::Stream& stream) const override {
    if (event != nullptr) {
      device_of(stream.device())
          .wait_on_device(index_of(stream), static_cast<Event*>(event)->ticket);
    }
  }
  bool queryEvent(void* event) const override {
    if (event == nullptr) {
      return true;
    }
    const Event& recorded = *static_cast<Event*>(event);
    return device_of(recorded.device).is_done(recorded.ticket);
  }
  void synchronizeEvent(void* event) const override {
    if (event != nullptr) {
      const Event& recorded = *static_cast<Event*>(event);
      device_of(recorded.device).host_wait(recorded.ticket, Device::Wait::kEvent, recorded.older);
    }
  }
  void destroyEvent(void* event, c10::DeviceIndex /*index*/) const noexcept override {
    delete static_cast<Event*>(event);
  }
  double elapsedTime(void* from, void* to, c10::DeviceIndex /*index*/) const override {
    const std::int64_t begin = *static_cast<Event*>(from)->time_ns;
    const std::int64_t end = *static_cast<Event*>(to)->time_ns;
    TORCH_CHECK(begin != 0 && end != 0,
                "elapsedTime: an event was not reached yet; wait for it first");
    return static_cast<double>(end - begin) * 1e-6;  // milliseconds
  }

 private:
  c10::Device with_index(c10::Device device) const {
    return {type_, device.has_index() ? device.index() : current_device(type_)};
  }

  c10::DeviceType type_;
};

class DeviceAllocator final : public c10::DeviceAllocator {
 public:
  explicit DeviceAllocator(c10::DeviceType type) : type_(type) {}

  c10::DataPtr allocate(std::size_t bytes) override {
    const c10::Device where(type_, current_device(type_));
    if (bytes == 0) {
      return {nullptr, where};
    }
    Device& device = device_of(where);
    void* const address = device.allocate(bytes, index_of(current_stream(where)));
    TORCH_CHECK_WITH(OutOfMemoryError,
                     address != nullptr,
                     "emulated device out of memory: ",
                     human_bytes(static_cast<double>(bytes)),
                     " were asked for, ",
                     human_bytes(static_cast<double>(device.memory().free_bytes())),
                     " of ",
                     human_bytes(static_cast<double>(device.memory().capacity())),
                     " are free");
    return {address, new Block{&device, address}, &free_block, where};
  }
  void copy_data(void* /*to*/, const void* /*from*/, std::size_t /*bytes*/) const override {
    TORCH_CHECK(false, "an emulated device's blocks are copied by operators only");
  }
  c10::DeleterFnPtr raw_deleter() const override { return nullptr; }

  bool initialized() override { return true; }
  void emptyCache(c10::MempoolId_t /*pool*/) override {
    for (c10::DeviceIndex i = 0; i < device_count(type_); ++i) {
      device_of({type_, i}).host_wait_for_all();
      device_of({type_, i}).memory().release_cached();
    }
  }
  // Nothing defers the reuse of a block: who uses one on another stream orders the streams.
  void recordStream(const c10::DataPtr& /*block*/, c10::Stream /*stream*/) override {
    TORCH_CHECK(false, "an emulated device has no record_stream; order the streams by events");
  }
  c10::CachingDeviceAllocator::DeviceStats getDeviceStats(c10::DeviceIndex index) override {
    constexpr auto kAll = static_cast<std::size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    const DeviceMemory::Use use = device_of({type_, index}).memory().use();
    c10::CachingDeviceAllocator::DeviceStats stats;
    stats.allocated_bytes[kAll].current = static_cast<std::int64_t>(use.now);
    stats.allocated_bytes[kAll].peak = static_cast<std::int64_t>(use.peak);
    stats.reserved_bytes[kAll].current = static_cast<std::int64_t>(use.taken);
    return stats;
  }
  void resetAccumulatedStats(c10::DeviceIndex /*index*/) override {}
  void resetPeakStats(c10::DeviceIndex index) override {
    device_of({type_, index}).memory().reset_peak();
  }
  std::pair<std::size_t, std::size_t> getMemoryInfo(c10::DeviceIndex index) override {
    const DeviceMemory& memory = device_of({type_, index}).memory();
    return {memory.free_bytes(), memory.capacity()};
  }

 private:
  struct Block {
    Device* device;
    void* address;
  };
  static void free_block(void* context) {
    const std::unique_ptr<Block> block(static_cast<Block*>(context));
    block->device->free(block->address);
  }

  c10::DeviceType type_;
};

// A copy holds the tensor whose memory it uses, so that a block is reused only afterwards.
class PinnedAllocator final : public c10::Allocator {
 public:
  c10::DataPtr allocate(std::size_t bytes) override {
    if (bytes == 0) {
      return {nullptr, c10::kCPU};
    }
    const std::size_t size = (bytes + kPinnedAlignment - 1) / kPinnedAlignment * kPinnedAlignment;
    void* const address = std::aligned_alloc(kPinnedAlignment, size);
    TORCH_CHECK_WITH(OutOfMemoryError, address != nullptr, "pinned memory: ", bytes, " bytes");
    const std::lock_guard lock(mutex_);
    blocks_[static_cast<std::byte*>(address)] = size;
    return {address, address, &free_block, c10::kCPU};
  }
  bool add(std::byte* address, std::size_t bytes) {
    const std::lock_guard lock(mutex_);
    const auto after = blocks_.lower_bound(address + bytes);
    if (after != blocks_.begin() && std::prev(after)->first + std::prev(after)->second > address) {
      return false;
    }
    blocks_[address] = bytes;
    ++num_added_;
    return true;
  }
  void remove(std::byte* address) {
    const std::lock_guard lock(mutex_);
    num_added_ -= blocks_.erase(address);
  }
  std::size_t num_added() {
    const std::lock_guard lock(mutex_);
    return num_added_;
  }
  c10::DeleterFnPtr raw_deleter() const override { return &free_block; }
  void copy_data(void* to, const void* from, std::size_t bytes) const override {
    default_copy_data(to, from, bytes);
  }
  bool contains(const void* address) {
    const auto* at = static_cast<const std::byte*>(address);
    const std::lock_guard lock(mutex_);
    auto after = blocks_.upper_bound(const_cast<std::byte*>(at));
    return after != blocks_.begin() && at < std::prev(after)->first + std::prev(after)->second;
  }

 private:
  static void free_block(void* address);

  std::mutex mutex_;
  std::map<std::byte*, std::size_t> blocks_;
  std::size_t num_added_ = 0;  ///< of them: not allocated here
};

PinnedAllocator& pinned() {
  static auto* const allocator = new PinnedAllocator;  // tensors may outlive static objects
  return *allocator;
}

void PinnedAllocator::free_block(void* address) {
  {
    const std::lock_guard lock(pinned().mutex_);
    pinned().blocks_.erase(static_cast<std::byte*>(address));
  }
  std::free(address);
}

class Hooks final : public at::PrivateUse1HooksInterface {
 public:
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex /*index*/) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return device_count(c10::kPrivateUse1); }
  c10::DeviceIndex getCurrentDevice() const override { return current_device(c10::kPrivateUse1); }
  void setCurrentDevice(c10::DeviceIndex index) const override {
    exchange_device(c10::kPrivateUse1, index);
  }
  c10::DeviceIndex exchangeDevice(c10::DeviceIndex index) const override {
    return exchange_device(c10::kPrivateUse1, index);
  }
  c10::DeviceIndex maybeExchangeDevice(c10::DeviceIndex index) const override {
    return exchange_device(c10::kPrivateUse1, index);
  }
  bool isPinnedPtr(const void* address) const override { return is_pinned(address); }
  c10::Allocator* getPinnedMemoryAllocator() const override { return &pinned_allocator(); }
};

// Its memory is the host's: half of what is free now.
Device* untimed_device() {
  auto device = std::make_unique<Device>(kReservedBytes);
  DeviceOptions options = device->options();
  const auto free = static_cast<std::size_t>(std::max<std::int64_t>(available_node_bytes(-1), 2));
  options.memory_bytes = std::min(kReservedBytes, free / 2);
  device->configure(options);
  return device.release();
}

}  // namespace

void register_backend(c10::DeviceType type) {
  static std::mutex mutex;
  const std::lock_guard lock(mutex);
  if (const Backend* const made = backend_slot(type)) {
    if (!made->maker.is_this_one()) {
      throw DeviceError(
          "[device] 'emulated' was used before this process was forked, and its memory would be "
          "shared with the parent's; start the process with spawn instead of fork, or use "
          "device='cpu'");
    }
    return;
  }
  if (type == c10::kPrivateUse1) {
    try {
      c10::register_privateuse1_backend("emulated");
      at::RegisterPrivateUse1HooksInterface(new Hooks);
    } catch (const c10::Error& error) {
      throw DeviceError(
          message("[device] 'emulated' is not there: something else in this process "
                  "has LibTorch's private device type (",
                  error.what_without_backtrace(),
                  "); use device='cpu', or a process of its own"));
    }
  }
  backend_slot(type) = new Backend;
  const c10::impl::DeviceGuardImplRegistrar registrar(type, new Guard(type));
  c10::SetAllocator(type, new DeviceAllocator(type));
  register_operators(type);
}

bool is_registered(c10::DeviceType type) {
  return can_be_emulated(type) && backend_slot(type).load() != nullptr;
}

Device& device_of(c10::Device device) {
  Backend& found = backend(device.type());
  const c10::DeviceIndex index =
      device.has_index() ? device.index() : current_device(device.type());
  TORCH_CHECK(
      index >= 0 && index < device_count(device.type()), "there is no emulated device ", device);
  std::atomic<Device*>& slot = found.devices.at(static_cast<std::size_t>(index));
  if (Device* const made = slot.load()) {
    return *made;
  }
  const std::lock_guard lock(found.mutex);
  if (slot.load() == nullptr) {
    slot = index == 0 ? untimed_device() : new Device(machine(index));
  }
  return *slot.load();
}

StreamIndex index_of(c10::Stream stream) { return static_cast<StreamIndex>(stream.id()); }

c10::Allocator& pinned_allocator() { return pinned(); }

bool is_pinned(const void* address) { return pinned().contains(address); }

bool pin(void* address, std::size_t bytes) {
  return pinned().add(static_cast<std::byte*>(address), bytes);
}

void unpin(void* address) { pinned().remove(static_cast<std::byte*>(address)); }

std::size_t num_pinned() { return pinned().num_added(); }

at::Tensor empty_pinned(at::IntArrayRef shape, at::ScalarType type) {
  return at::detail::empty_generic(
      shape, &pinned(), c10::DispatchKeySet(c10::DispatchKey::CPU), type, std::nullopt);
}

c10::DeviceIndex device_count(c10::DeviceType type) {
  if (backend_slot(type).load() == nullptr) {
    return 0;
  }
  return static_cast<c10::DeviceIndex>(type == c10::kPrivateUse1 ? 1 + num_machines() : 1);
}

c10::DeviceIndex current_device(c10::DeviceType type) { return current(type).device; }

c10::DeviceIndex exchange_device(c10::DeviceType type, c10::DeviceIndex index) {
  const c10::DeviceIndex old = current(type).device;
  if (index >= 0) {
    TORCH_CHECK(index < device_count(type), "there is no emulated device of index ", index);
    current(type).device = index;
  }
  return old;
}

c10::Stream current_stream(c10::Device device) {
  const c10::DeviceIndex index =
      device.has_index() ? device.index() : current_device(device.type());
  return c10::Stream{c10::Stream::UNSAFE,
                     {device.type(), index},
                     static_cast<c10::StreamId>(
                         current(device.type()).streams.at(static_cast<std::size_t>(index)))};
}

}  // namespace hybridgen::emulated
