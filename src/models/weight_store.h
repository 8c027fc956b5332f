// SPDX-License-Identifier: Apache-2.0
// How an engine gets at the layers of a model, be they on the device all the time or not: by lease.
#pragma once

#include <cstdint>
#include <memory>
#include <utility>

#include "device/device_context.h"
#include "hybridgen/models/weight_statistics.h"
#include "hybridgen/runtime/trace_recorder.h"
#include "models/layer_source.h"
#include "models/weights.h"

namespace hybridgen {

/// A layer's weights, which stay where they are for all that is queued while this lives. Movable;
/// of the thread that took it.
class LayerLease {
 public:
  LayerLease() = default;
  LayerLease(LayerLease&& other) noexcept
      : weights_(std::exchange(other.weights_, nullptr)),
        source_(std::exchange(other.source_, nullptr)),
        layer_(other.layer_) {}
  LayerLease& operator=(LayerLease&& other) noexcept {
    std::swap(weights_, other.weights_);
    std::swap(source_, other.source_);
    std::swap(layer_, other.layer_);
    return *this;
  }
  ~LayerLease() {
    if (source_ != nullptr) source_->give_back(layer_);
  }

  const LayerWeights& operator*() const { return *weights_; }
  const LayerWeights* operator->() const { return weights_; }

 private:
  friend class WeightStore;
  LayerLease(const LayerWeights& weights, LayerSource* source, std::int64_t layer)
      : weights_(&weights), source_(source), layer_(layer) {}
  const LayerWeights* weights_ = nullptr;
  LayerSource* source_ = nullptr;  ///< null: they are on the device anyway
  std::int64_t layer_ = 0;
};

/// Of one engine, whose driver thread alone uses it; engines share what is resident in a model.
/// Must outlive its leases.
class WeightStore {
 public:
  /// Layers that are there at a time where they are not always: one that is used and one that
  /// comes; one more where queries are guessed for the layer after those under way.
  static constexpr std::int64_t layers_at_a_time(bool guesses) { return guesses ? 3 : 2; }

  /// `weights` must outlive it. `trace` is told of what is read from a disk.
  WeightStore(const Weights& weights,
              const DeviceContext& device,
              TraceRecorder& trace,
              std::int64_t layers_at_a_time);
  WeightStore(const WeightStore&) = delete;
  WeightStore& operator=(const WeightStore&) = delete;

  /// Whether a CPU reads them where their files have them.
  static bool reads_in_files(const Weights& weights, const DeviceContext& device);
  /// Bytes of the device that layers come to, and of pinned host memory beside it.
  static std::int64_t device_bytes(const Weights& weights,
                                   const DeviceContext& device,
                                   std::int64_t layers_at_a_time);
  static std::int64_t host_bytes(const Weights& weights,
                                 const DeviceContext& device,
                                 std::int64_t layers_at_a_time);

  /// Whether layers come to the device again for every pass.
  static bool streams(const Weights& weights, const DeviceContext& device) {
    const StreamedLayers& streamed = weights.streamed();
    return (streamed.slot_bytes > 0 || reads_in_files(weights, device)) && !streamed.stays;
  }
  bool streams() const { return source_ != nullptr && !weights_.streamed().stays; }

  /// Waits until the layer is there; layers after it come meanwhile. DeviceError if the disk fails.
  LayerLease lease(std::int64_t layer) {
    return {source_ == nullptr ? resident(layer) : source_->take(layer), source_.get(), layer};
  }
  /// A layer of which nothing but the norms and the query's projection need be there: valid until
  /// the layer has been leased and that lease has ended.
  const LayerWeights& query(std::int64_t layer) {
    return source_ == nullptr ? resident(layer) : source_->take_query(layer);
  }

  /// Before the first weight of a pass over the layers is used, and after the last: DeviceError if
  /// numbers were lost meanwhile, so that what was computed is nothing.
  void begin_pass() {
    if (source_ != nullptr) source_->begin_pass();
  }
  void check_pass() {
    if (source_ != nullptr) source_->check_pass();
  }

  WeightStatistics statistics() const;
  void reset_statistics();

 private:
  const LayerWeights& resident(std::int64_t layer) const {
    return weights_.layers[static_cast<std::size_t>(layer)];
  }

  const Weights& weights_;
  std::unique_ptr<LayerSource> source_;  ///< null: all layers are resident
};

}  // namespace hybridgen
