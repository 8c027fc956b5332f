// SPDX-License-Identifier: Apache-2.0
// An emulated device: memory and streams, and what is counted and observed of their use.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <string_view>
#include <vector>

#include "emulated/device_memory.h"
#include "emulated/streams.h"
#include "emulated/timeline.h"

namespace hybridgen::emulated {

/// A wait that is left out, to show that somebody notices. For tests.
enum class Fault : std::uint8_t {
  kNone,
  kStreamIgnoresEvent,   ///< a stream goes on without the event of another
  kWorkerIgnoresEvent,   ///< so does a thread that queues no work
  kWorkerWaitsForOlder,  ///< it waits for the event's record before the last: a slot reused too
                         ///< early
  kDriverIgnoresEvent,   ///< so does a thread that queues work
  kCopyToHostIsNotAwaited,
  kDeviceIsNotAwaited,  ///< a wait for all of the device's work
};

struct DeviceOptions {
  Mode mode = Mode::kEager;
  std::uint64_t seed = 1;                           ///< of random delays
  std::size_t memory_bytes = std::size_t{8} << 30;  ///< what allocations may take
  /// New blocks are filled with NaN, and freed ones as soon as their stream comes to it.
  bool poison = false;
  /// Copies of ordinary host memory to the device wait for nobody: the source is saved when the
  /// copy is queued. CUDA's waits hide a lack of order.
  bool uploads_wait = true;
  Fault fault = Fault::kNone;
};

/// What happened since the last reset.
struct Counters {
  std::int64_t launches = 0;  ///< operations on the device, copies between its own tensors included
  std::int64_t copies_to_device = 0;
  std::int64_t copies_to_host = 0;
  std::int64_t bytes_to_device = 0;
  std::int64_t bytes_to_host = 0;
  /// Waits of threads that queue work, by what they waited for: the device, a stream or an event; a
  /// copy that blocks; a value that decides what follows (item, nonzero).
  std::int64_t explicit_waits = 0;
  std::int64_t blocking_copies = 0;
  std::int64_t value_reads = 0;
  std::int64_t worker_waits = 0;  ///< waits of threads that never queued any

  std::int64_t host_waits() const { return explicit_waits + blocking_copies + value_reads; }
};

/// Memory that an operation reads or writes: on the device, by the host's addresses.
struct ByteRange {
  const std::byte* begin = nullptr;
  std::size_t bytes = 0;
};

struct QueuedOperation {
  std::string_view name;  ///< lives as long as the program
  StreamIndex stream = 0;
  std::vector<ByteRange> reads;
  std::vector<ByteRange> writes;
  TimedOperation cost{};  ///< of a timed device
};

/// Hears what is queued, in that order. Calls come from any thread, one at a time.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void on_operation(const QueuedOperation& operation, Ticket ticket) = 0;
  /// Operations of `stream` queued from now on come after those of `ticket`.
  virtual void on_device_wait(StreamIndex stream, Ticket ticket) = 0;
  /// What the host queues from now on comes after the operations of `ticket`.
  virtual void on_host_wait(Ticket ticket) = 0;
};

class Device;

/// What LibTorch hands out as a stream's native handle.
struct StreamHandle {
  Device* device = nullptr;
  StreamIndex stream = 0;
};

class Device {
 public:
  enum class Wait : std::uint8_t { kEvent, kStream, kBlockingCopy, kValue };

  /// With addresses for `reserved_bytes`; DeviceError if the system refuses.
  explicit Device(std::size_t reserved_bytes);
  /// A timed one: its operations take the time that `profile`, which must outlive it, says, and
  /// compute nothing. Its memory is the profile's and is never touched.
  explicit Device(const MachineProfile& profile);

  bool is_timed() const { return timeline_ != nullptr; }
  /// Null unless it is timed.
  Timeline* timeline() { return timeline_.get(); }

  /// Waits for all work first.
  void configure(const DeviceOptions& options);
  const DeviceOptions& options() const { return options_; }
  /// Not owned; null: none. Only while no work is queued.
  void set_observer(Observer* observer) { observer_ = observer; }
  /// Whether somebody wants to know the ranges of operations.
  bool is_observed() const { return observer_ != nullptr; }

  /// Null if there is no room.
  void* allocate(std::size_t bytes, StreamIndex stream);
  void free(void* address);
  DeviceMemory& memory() { return memory_; }

  void count_launch() { ++launches_; }
  void count_copy(bool to_device, std::size_t bytes);
  Ticket enqueue(const QueuedOperation& operation, std::function<void()> work);
  /// Marks what is queued so far; `time_ns` gets the time at which the stream comes to it.
  Ticket record(StreamIndex stream, const std::shared_ptr<std::atomic<std::int64_t>>& time_ns);
  StreamHandle* handle(StreamIndex stream) { return &handles_.at(stream); }
  /// Queues a kernel that uses raw device addresses, with which the host may touch the device's
  /// memory while it runs. `name` lives as long as the program.
  void launch(StreamIndex stream, std::string_view name, std::function<void()> kernel);
  /// Of a timed device: a kernel that takes its time and computes nothing.
  void launch(StreamIndex stream, std::string_view name, const TimedOperation& cost);
  void wait_on_device(StreamIndex stream, Ticket ticket);
  Ticket end_of(StreamIndex stream) const;
  bool is_done(Ticket ticket);
  /// `older`: of an event, what was recorded before the last time.
  void host_wait(Ticket ticket, Wait kind, Ticket older = {});
  void host_wait_for_all();

  Counters counters() const;
  void reset_counters();

 private:
  DeviceOptions options_;
  DeviceMemory memory_;
  Streams streams_;
  std::unique_ptr<Timeline> timeline_;  ///< a ticket's number is then a time in nanoseconds
  std::array<StreamHandle, Streams::kCount> handles_;
  std::mutex observer_mutex_;
  Observer* observer_ = nullptr;
  std::atomic<std::int64_t> launches_{0};
  std::atomic<std::int64_t> copies_to_device_{0};
  std::atomic<std::int64_t> copies_to_host_{0};
  std::atomic<std::int64_t> bytes_to_device_{0};
  std::atomic<std::int64_t> bytes_to_host_{0};
  std::atomic<std::int64_t> explicit_waits_{0};
  std::atomic<std::int64_t> blocking_copies_{0};
  std::atomic<std::int64_t> value_reads_{0};
  std::atomic<std::int64_t> worker_waits_{0};
};

}  // namespace hybridgen::emulated
