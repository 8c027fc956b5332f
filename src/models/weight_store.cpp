// SPDX-License-Identifier: Apache-2.0
#include "models/weight_store.h"

#include "models/layer_ring.h"
#include "models/mapped_layers.h"

namespace hybridgen {

WeightStore::WeightStore(const Weights& weights,
                         const DeviceContext& device,
                         TraceRecorder& trace,
                         std::int64_t layers_at_a_time)
    : weights_(weights) {
  if (reads_in_files(weights, device)) {
    source_ = std::make_unique<MappedLayers>(weights, trace, layers_at_a_time - 1);
  } else if (weights.streamed().slot_bytes > 0) {
    source_ = std::make_unique<LayerRing>(weights, device, trace, layers_at_a_time);
  }
}

bool WeightStore::reads_in_files(const Weights& weights, const DeviceContext& device) {
  const StreamedLayers& streamed = weights.streamed();
  return device.is_cpu() && streamed.has_disk() && !streamed.is_direct;
}

std::int64_t WeightStore::device_bytes(const Weights& weights,
                                       const DeviceContext& device,
                                       std::int64_t layers_at_a_time) {
  return reads_in_files(weights, device) ? 0 : LayerRing::device_bytes(weights, layers_at_a_time);
}

std::int64_t WeightStore::host_bytes(const Weights& weights,
                                     const DeviceContext& device,
                                     std::int64_t layers_at_a_time) {
  return LayerRing::host_bytes(weights, device, layers_at_a_time);
}

WeightStatistics WeightStore::statistics() const {
  WeightStatistics statistics = source_ == nullptr ? WeightStatistics{} : source_->statistics();
  statistics.device_bytes = weights_.device_bytes();
  statistics.host_bytes = weights_.streamed().host_bytes;
  statistics.disk_bytes = weights_.disk_bytes();
  return statistics;
}

void WeightStore::reset_statistics() {
  if (source_ != nullptr) source_->reset_statistics();
}

}  // namespace hybridgen
