// SPDX-License-Identifier: Apache-2.0
// Layers that a CPU reads where their files have them, in the page cache: nothing is copied, and
// processes that use the same files share them.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "hybridgen/runtime/trace_recorder.h"
#include "memory/disk_queue.h"
#include "models/layer_source.h"
#include "models/weights.h"

namespace hybridgen {

/// A layer is asked for before every use, which costs next to nothing while the page cache keeps
/// it; those that are to stay, once, and again if some of them have not stayed.
class MappedLayers final : public LayerSource {
 public:
  /// All references must outlive it. At least `layers_ahead` layers come before they are taken.
  /// DeviceError if files cannot be memory, or threads cannot be had.
  MappedLayers(const Weights& weights, TraceRecorder& trace, std::int64_t layers_ahead);
  ~MappedLayers() override;

  const LayerWeights& take(std::int64_t layer) override;
  void give_back(std::int64_t layer) override;
  const LayerWeights& take_query(std::int64_t layer) override;
  void begin_pass() override;
  void check_pass() override;
  WeightStatistics statistics() override;
  void reset_statistics() override;

 private:
  struct Layer {
    LayerWeights weights;
    DiskTransfer query, rest;
    std::int64_t bytes = 0;
    bool is_coming = false;  ///< or there
    int holders = 0;
  };
  /// What the readers of a queue do to memory that a file is.
  class Fetching final : public DiskTarget {
   public:
    explicit Fetching(WeightFiles& files) : files_(files) {}
    void read(std::span<const DiskRange> ranges) override { files_.fetch(ranges); }
    void write(std::span<const DiskRange> ranges) override { files_.write(ranges); }

   private:
    WeightFiles& files_;
  };

  Layer& layer_at(std::int64_t layer) { return layers_[static_cast<std::size_t>(layer)]; }
  Layer& arrived(std::int64_t layer, bool is_query_enough);
  void start(Layer& layer);
  void forget(Layer& layer) noexcept;
  void read_ahead(std::int64_t layer);

  WeightFiles& files_;
  Fetching fetching_{files_};
  DiskQueue queue_;
  std::int64_t layers_ahead_;
  bool stays_;
  std::deque<Layer> layers_;
  std::vector<DiskRange> tables_;  ///< of what is shared
  std::int64_t found_bytes_ = 0;   ///< that nobody had to fetch
  std::int64_t zero_reads_ = 0;    ///< of the files, when the pass began
};

}  // namespace hybridgen
