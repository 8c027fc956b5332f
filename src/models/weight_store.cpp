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
  WeightStatistics statistics = ring_ == nullptr ? WeightStatistics{} : ring_->statistics();
  statistics.device_bytes = weights_.device_bytes();
  statistics.host_bytes = weights_.streamed().host_bytes;
  statistics.disk_bytes = weights_.streamed().disk_bytes;
  return statistics;
}

void WeightStore::reset_statistics() {
  if (ring_ != nullptr) ring_->reset_statistics();
}

}  // namespace hybridgen
