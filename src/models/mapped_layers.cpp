// SPDX-License-Identifier: Apache-2.0
#include "models/mapped_layers.h"

#include <algorithm>
#include <iterator>

#include "hybridgen/core/error.h"
#include "memory/huge_pages.h"

namespace hybridgen {
namespace {

// What comes beside the layer in use: small layers would leave a disk idle between them.
constexpr std::int64_t kAheadBytes = std::int64_t{32} << 20;

}  // namespace

MappedLayers::MappedLayers(const Weights& weights, TraceRecorder& trace, std::int64_t layers_ahead)
    : files_(*weights.streamed().files),
      queue_(fetching_, trace, kWeightReaders, kHugePageBytes),
      layers_ahead_(std::min(layers_ahead, std::ssize(weights.layers) - 1)),
      stays_(weights.streamed().stays),
      zero_reads_(files_.zero_reads()) {
  const auto range_of = [this](const StreamedTensor& tensor) {
    return DiskRange{.memory = files_.address_of(tensor.file_offset),
                     .offset = tensor.file_offset,
                     .bytes = tensor.bytes};
  };
  std::ranges::transform(weights.streamed().tables, std::back_inserter(tables_), range_of);
  for (std::int64_t i = 0; i < std::ssize(weights.layers); ++i) {
    Layer& layer = layers_.emplace_back();
    layer.weights = weights.layer_in_files(i);
    layer.query.layer = layer.rest.layer = static_cast<std::int32_t>(i);
    for (const StreamedTensor& tensor : weights.streamed().layers[static_cast<std::size_t>(i)]) {
      (tensor.is_query ? layer.query : layer.rest).ranges.push_back(range_of(tensor));
      layer.bytes += tensor.bytes;
    }
    // As they lie, which is how the system reads ahead.
    std::ranges::sort(layer.rest.ranges, {}, &DiskRange::offset);
  }
}

MappedLayers::~MappedLayers() {
  for (Layer& layer : layers_) forget(layer);
}

MappedLayers::Layer& MappedLayers::arrived(std::int64_t index, bool is_query_enough) {
  check_pass();
  Layer& layer = layer_at(index);
  const bool was_read_ahead = layer.is_coming;
  start(layer);
  try {
    queue_.wait(layer.query);
    if (!is_query_enough) queue_.wait(layer.rest);
  } catch (const Error&) {
    forget(layer);
    if (!was_read_ahead) throw;
    return arrived(index, is_query_enough);  // it may have failed long ago
  }
  return layer;
}

const LayerWeights& MappedLayers::take(std::int64_t layer) {
  Layer& taken = arrived(layer, /*is_query_enough=*/false);
  ++taken.holders;
  read_ahead(layer);
  return taken.weights;
}

const LayerWeights& MappedLayers::take_query(std::int64_t layer) {
  return arrived(layer, /*is_query_enough=*/true).weights;
}

void MappedLayers::give_back(std::int64_t layer) {
  Layer& held = layer_at(layer);
  HYBRIDGEN_DCHECK(held.holders > 0, "(a layer that nobody holds)");
  if (--held.holders == 0 && !stays_) forget(held);  // asked for again before its next use
}

void MappedLayers::begin_pass() {
  files_.restore();
  zero_reads_ = files_.zero_reads();
  if (!stays_) return;
  if (!files_.is_there()) {
    for (Layer& layer : layers_) forget(layer);
  }
  files_.fetch(tables_);
}

void MappedLayers::check_pass() { files_.check_reads(zero_reads_); }

void MappedLayers::read_ahead(std::int64_t layer) {
  const auto layers = std::ssize(layers_);
  std::int64_t bytes = 0;
  for (std::int64_t ahead = 1; ahead < layers; ++ahead) {
    Layer& next = layer_at((layer + ahead) % layers);
    bytes += next.bytes;
    if (ahead > layers_ahead_ && bytes > kAheadBytes) return;
    start(next);
  }
}

void MappedLayers::start(Layer& layer) {
  if (layer.is_coming) return;
  layer.is_coming = true;
  // Threads that would find it there take time from who multiplies.
  if (files_.have(layer.query.ranges) && files_.have(layer.rest.ranges)) {
    found_bytes_ += layer.bytes;
    return;
  }
  queue_.submit(layer.query);
  queue_.submit(layer.rest);
}

void MappedLayers::forget(Layer& layer) noexcept {
  queue_.cancel(layer.query);
  queue_.cancel(layer.rest);
  layer.is_coming = false;
}

WeightStatistics MappedLayers::statistics() {
  const DiskStatistics disk = queue_.statistics();
  return {.read_bytes = disk.read_bytes + found_bytes_,
          .read_s = disk.read_s,
          .wait_s = disk.read_wait_s};
}

void MappedLayers::reset_statistics() {
  queue_.reset_statistics();
  found_bytes_ = 0;
}

}  // namespace hybridgen
