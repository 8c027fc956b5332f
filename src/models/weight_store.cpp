// SPDX-License-Identifier: Apache-2.0
#include "models/weight_store.h"

namespace hybridgen {

WeightStore::WeightStore(const Weights& weights,
                         const DeviceContext& device,
                         TraceRecorder& trace,
                         std::int64_t ring_layers)
    : weights_(weights) {
  if (weights.streamed().slot_bytes > 0) {
    ring_ = std::make_unique<LayerRing>(weights, device, trace, ring_layers);
  }
}

WeightStatistics WeightStore::statistics() const {
  WeightStatistics statistics{.device_bytes = weights_.device_bytes(),
                              .host_bytes = weights_.streamed().host_bytes,
                              .disk_bytes = weights_.streamed().disk_bytes};
  if (ring_ != nullptr) {
    const DiskStatistics disk = ring_->statistics();
    statistics.copied_bytes = ring_->copied_bytes();
    statistics.read_bytes = disk.read_bytes;
    statistics.read_s = disk.read_s;
    statistics.wait_s = disk.read_wait_s;
  }
  return statistics;
}

void WeightStore::reset_statistics() {
  if (ring_ != nullptr) ring_->reset_statistics();
}

}  // namespace hybridgen
