// SPDX-License-Identifier: Apache-2.0
#include "models/layer_ring.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/from_blob.h>

#include <algorithm>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

at::Tensor bytes_at(std::byte* data, std::int64_t bytes) {
  return at::from_blob(data, {bytes}, at::TensorOptions().dtype(at::kByte));
}

}  // namespace

LayerRing::LayerRing(const Weights& weights,
                     const DeviceContext& device,
                     TraceRecorder& trace,
                     std::int64_t num_slots)
    : weights_(weights), device_(device) {
  const StreamedLayers& streamed = weights.streamed();
  if (streamed.files != nullptr && streamed.has_disk()) {
    queue_ = std::make_unique<DiskQueue>(*streamed.files, trace, kWeightReaders);
  }
  held_ = HeldWeights(host_bytes(weights, device, num_slots));
  const std::int64_t bytes = streamed.slot_bytes;
  const auto count = std::min<std::int64_t>(num_slots, std::ssize(weights.layers));
  for (std::int64_t i = 0; i < count; ++i) {
    Slot& slot = *slots_.emplace_back(std::make_unique<Slot>());
    if (device.is_cpu()) {
      slot.host = HostBuffer(static_cast<std::size_t>(bytes));
      slot.memory = bytes_at(slot.host.data(), bytes);
    } else {
      slot.memory =
          at::empty({bytes}, at::TensorOptions().dtype(at::kByte).device(device.device()));
      if (queue_ != nullptr) slot.staging = device.host_staging({bytes}, at::kByte);
      device.record_compute(slot.released);
    }
  }
}

LayerRing::~LayerRing() {
  for (const auto& slot : slots_) forget(*slot);
  if (!device_.is_cpu()) device_.drain();
}

std::int64_t LayerRing::device_bytes(const Weights& weights, std::int64_t num_slots) {
  return std::min<std::int64_t>(num_slots, std::ssize(weights.layers)) *
         weights.streamed().slot_bytes;
}

std::int64_t LayerRing::host_bytes(const Weights& weights,
                                   const DeviceContext& device,
                                   std::int64_t num_slots) {
  const bool has_staging = weights.streamed().has_disk() && !device.is_cpu();
  return has_staging ? device_bytes(weights, num_slots) : 0;
}

LayerRing::Slot* LayerRing::find(std::int64_t layer) {
  const auto found =
      std::ranges::find_if(slots_, [&](const auto& slot) { return slot->layer == layer; });
  return found == slots_.end() ? nullptr : found->get();
}

std::int64_t LayerRing::distance(std::int64_t from, std::int64_t layer) const {
  const auto layers = std::ssize(weights_.layers);
  if (layer < 0) return 2 * layers;  // nothing: gone before all others
  return (layer - from + layers - 1) % layers + 1;
}

// One that nobody holds; of these, whose layer comes last.
LayerRing::Slot& LayerRing::slot_for(std::int64_t layer) {
  Slot* best = nullptr;
  for (const auto& slot : slots_) {
    if (slot->holders > 0) continue;
    if (best == nullptr || distance(layer, slot->layer) > distance(layer, best->layer)) {
      best = slot.get();
    }
  }
  HYBRIDGEN_DCHECK(best != nullptr, "(more layers held than the ring has slots)");
  return *best;
}

LayerRing::Slot& LayerRing::arrived(std::int64_t layer, bool is_query_enough) {
  Slot* slot = find(layer);
  const bool was_read_ahead = slot != nullptr;
  if (slot == nullptr) {
    slot = &slot_for(layer);
    start(layer, *slot);
  }
  try {
    finish(slot->query, *slot);
    if (!is_query_enough) finish(slot->rest, *slot);
  } catch (const Error&) {
    forget(*slot);
    if (!was_read_ahead) throw;
    return arrived(layer, is_query_enough);  // it may have failed long ago
  }
  return *slot;
}

const LayerWeights& LayerRing::take(std::int64_t layer) {
  Slot& slot = arrived(layer, /*is_query_enough=*/false);
  ++slot.holders;
  read_ahead(layer);
  return slot.weights;
}

const LayerWeights& LayerRing::take_query(std::int64_t layer) {
  return arrived(layer, /*is_query_enough=*/true).weights;
}

void LayerRing::give_back(std::int64_t layer) {
  Slot* const slot = find(layer);
  HYBRIDGEN_DCHECK(slot != nullptr && slot->holders > 0, "(a layer that nobody holds)");
  if (--slot->holders > 0) return;
  device_.record_compute(slot->released);
  read_ahead(layer);
}

// The next layers, into slots whose own ones come later.
void LayerRing::read_ahead(std::int64_t layer) {
  const auto layers = std::ssize(weights_.layers);
  for (std::int64_t ahead = 1; ahead < std::ssize(slots_); ++ahead) {
    const std::int64_t next = (layer + ahead) % layers;
    if (find(next) != nullptr) continue;
    const bool is_free = std::ranges::any_of(slots_, [&](const auto& slot) {
      return slot->holders == 0 && distance(layer, slot->layer) > ahead;
    });
    if (!is_free) return;
    start(next, slot_for(layer));
  }
}

void LayerRing::start(std::int64_t layer, Slot& slot) {
  forget(slot);
  slot.layer = layer;
  slot.weights = weights_.layer_in(layer, slot.memory);
  for (Arrival* arrival : {&slot.query, &slot.rest}) arrival->tensors.clear();
  for (const StreamedTensor& tensor : weights_.streamed().layers[static_cast<std::size_t>(layer)]) {
    (tensor.is_query ? slot.query : slot.rest).tensors.push_back(&tensor);
  }
  start(slot.query, slot);
  start(slot.rest, slot);
}

void LayerRing::start(Arrival& arrival, Slot& slot) {
  arrival.is_there = arrival.tensors.empty();
  arrival.transfer.ranges.clear();
  arrival.transfer.layer = static_cast<std::int32_t>(slot.layer);
  // What was read before is still being copied from the same memory.
  if (slot.staging.defined()) DeviceContext::host_waits(arrival.copied);
  auto* const memory = static_cast<std::byte*>(
      (slot.staging.defined() ? slot.staging : slot.memory).mutable_data_ptr());
  const auto copy_stream = device_.use_copy();
  device_.copy_waits(slot.released);
  if (std::ranges::any_of(arrival.tensors, [](const auto* each) { return each->host.defined(); })) {
    copying_.begin();
  }
  for (const StreamedTensor* tensor : arrival.tensors) {
    if (tensor->host.defined()) {
      copy(*tensor, tensor->host, slot);
    } else {
      arrival.transfer.ranges.push_back({.memory = memory + tensor->slot_offset,
                                         .offset = tensor->file_offset,
                                         .bytes = tensor->bytes});
    }
  }
  copying_.end();
  if (arrival.transfer.ranges.empty()) {
    device_.record_copy(arrival.copied);
  } else {
    queue_->submit(arrival.transfer);
  }
}

void LayerRing::finish(Arrival& arrival, Slot& slot) {
  if (!arrival.is_there) {
    if (!arrival.transfer.ranges.empty()) {
      queue_->wait(arrival.transfer);
      if (!device_.is_cpu()) {
        const auto copy_stream = device_.use_copy();
        copying_.begin();
        for (const StreamedTensor* tensor : arrival.tensors) {
          if (tensor->host.defined()) continue;
          copy(*tensor, slot.staging.narrow(0, tensor->slot_offset, tensor->bytes), slot);
        }
        copying_.end();
        device_.record_copy(arrival.copied);
      }
    }
    arrival.is_there = true;
  }
  waiting_.begin();
  device_.compute_waits(arrival.copied);
  waiting_.end();
}

void LayerRing::copy(const StreamedTensor& tensor, const at::Tensor& from, const Slot& slot) {
  slot.memory.narrow(0, tensor.slot_offset, tensor.bytes).copy_(from, /*non_blocking=*/true);
  copied_bytes_ += tensor.bytes;
}

void LayerRing::forget(Slot& slot) noexcept {
  for (Arrival* arrival : {&slot.query, &slot.rest}) {
    if (queue_ != nullptr) queue_->cancel(arrival->transfer);
    arrival->is_there = true;
  }
  slot.layer = -1;
}

WeightStatistics LayerRing::statistics() {
  const DiskStatistics disk = queue_ == nullptr ? DiskStatistics{} : queue_->statistics();
  return {.copied_bytes = copied_bytes_,
          .read_bytes = disk.read_bytes,
          .read_s = disk.read_s,
          .wait_s = disk.read_wait_s,
          .copy_s = copying_.seconds(),
          .copy_wait_s = waiting_.seconds()};
}

void LayerRing::reset_statistics() {
  if (queue_ != nullptr) queue_->reset_statistics();
  copied_bytes_ = 0;
  copying_.reset();
  waiting_.reset();
}

}  // namespace hybridgen
