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
#include "hybridgen/runtime/trace_recorder.h"
#include "memory/disk_queue.h"
#include "memory/host_buffer.h"
#include "memory/process_memory.h"
#include "models/layer_source.h"
#include "models/weights.h"

namespace hybridgen {

class LayerRing final : public LayerSource {
 public:
  /// All references must outlive it. OutOfMemoryError, DeviceError if threads cannot be had.
  LayerRing(const Weights& weights,
            const DeviceContext& device,
            TraceRecorder& trace,
            std::int64_t num_slots);
  ~LayerRing() override;

  /// Bytes of the device that a ring takes.
  static std::int64_t device_bytes(const Weights& weights, std::int64_t num_slots);
  /// Bytes of pinned host memory that it takes beside: what a disk is read into where that cannot
  /// be the device.
  static std::int64_t host_bytes(const Weights& weights,
                                 const DeviceContext& device,
                                 std::int64_t num_slots);

  const LayerWeights& take(std::int64_t layer) override;
  void give_back(std::int64_t layer) override;
  const LayerWeights& take_query(std::int64_t layer) override;
  void begin_pass() override {}
  void check_pass() override {}  // what is in memory stays
  WeightStatistics statistics() override;
  void reset_statistics() override;

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
