// SPDX-License-Identifier: Apache-2.0
// Memory on the device that the matrices of layers come to by turns, as many layers at a time as it
// has slots, because they lie on the host or on a disk. While a layer is used the next ones come.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "device/device_context.h"
#include "device/stretch_timer.h"
#include "hybridgen/models/weight_statistics.h"
#include "hybridgen/runtime/trace_recorder.h"
#include "memory/disk_queue.h"
#include "memory/host_buffer.h"
#include "memory/process_memory.h"
#include "models/weights.h"

namespace hybridgen {

/// Of one engine, whose driver thread alone uses it. Layers are used in their order, again and
/// again; any other order works, and waits.
class LayerRing {
 public:
  /// All references must outlive it. OutOfMemoryError, DeviceError if threads cannot be had.
  LayerRing(const Weights& weights,
            const DeviceContext& device,
            TraceRecorder& trace,
            std::int64_t num_slots);
  ~LayerRing();
  LayerRing(const LayerRing&) = delete;
  LayerRing& operator=(const LayerRing&) = delete;

  /// Bytes of the device that a ring takes.
  static std::int64_t device_bytes(const Weights& weights, std::int64_t num_slots);
  /// Bytes of pinned host memory that it takes beside: what a disk is read into where that cannot
  /// be the device.
  static std::int64_t host_bytes(const Weights& weights,
                                 const DeviceContext& device,
                                 std::int64_t num_slots);

  /// A layer's weights once they are there: for the work that is queued from now on. They stay
  /// until give_back(), to be called once as often. DeviceError if the disk fails; the next call
  /// tries again.
  const LayerWeights& take(std::int64_t layer);
  void give_back(std::int64_t layer);
  /// A layer of which the query's projection is there, and nothing else need be. It stays until the
  /// layer has been taken and given back, if the ring has a slot more than layers are held.
  const LayerWeights& take_query(std::int64_t layer);

  /// What came since the last reset, without the bytes that lie where. What the device has yet to
  /// reach is not in it.
  WeightStatistics statistics();
  void reset_statistics();

 private:
  /// Some of a layer's tensors on their way.
  struct Arrival {
    DiskTransfer transfer;
    std::vector<const StreamedTensor*> tensors;
    bool is_there = true;
    std::optional<c10::Event> copied;
  };
  struct Slot {
    HostBuffer host;     ///< the memory itself on a CPU device, else what the disk is read into
    at::Tensor memory;   ///< uint8 on the device
    at::Tensor staging;  ///< uint8, pinned; of a device that is not the host
    std::int64_t layer = -1;
    int holders = 0;
    LayerWeights weights;
    Arrival query, rest;
    std::optional<c10::Event> released;  ///< what was queued has read it
  };

  Slot* find(std::int64_t layer);
  /// That of a layer, once the query's projection or all of it is there.
  Slot& arrived(std::int64_t layer, bool is_query_enough);
  Slot& slot_for(std::int64_t layer);
  void start(std::int64_t layer, Slot& slot);
  void start(Arrival& arrival, Slot& slot);
  void finish(Arrival& arrival, Slot& slot);
  void copy(const StreamedTensor& tensor, const at::Tensor& from, const Slot& slot);
  void read_ahead(std::int64_t layer);
  void forget(Slot& slot) noexcept;
  /// Layers until `layer` comes after `from`.
  std::int64_t distance(std::int64_t from, std::int64_t layer) const;

  const Weights& weights_;
  const DeviceContext& device_;
  std::unique_ptr<DiskQueue> queue_;  ///< null: nothing lies on a disk
  std::vector<std::unique_ptr<Slot>> slots_;
  HeldWeights held_;  ///< the pinned memory
  std::int64_t copied_bytes_ = 0;
  StretchTimer copying_{device_};  ///< on the copy stream
  StretchTimer waiting_{device_};  ///< of the compute stream, for copies
};

}  // namespace hybridgen
