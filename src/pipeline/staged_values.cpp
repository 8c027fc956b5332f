// SPDX-License-Identifier: Apache-2.0
#include "pipeline/staged_values.h"

#include <algorithm>
#include <span>
#include <vector>

#include "kernels/cpu_kernels.h"
#include "kvcache/stored_head.h"

namespace hybridgen {
namespace {

/// Which values of a request are read.
struct ReadPlaces {
  std::span<const std::int32_t> places;  ///< [H, most], each head's ascending
  std::int64_t most = 0;
  std::int64_t num_offloaded = 0;  ///< places before it lie on the host

  /// Of a query head, at most.
  std::int64_t num_fetched() const { return std::min(most, num_offloaded); }
};

// Puts the rows that any query head of a KV head reads into staging, ascending, and where each of
// them lies into `index`. Returns how many query heads read one, all together.
std::int64_t gather_read(const kernels::CpuKernels& kernels,
                         const HostKvStore& store,
                         std::int64_t layer,
                         const ReadPlaces& readers,
                         std::int64_t per_group,
                         const HostJobBuffers& buffers,
                         UnionScratch& scratch) {
  const std::int64_t fetched = readers.num_fetched();
  const auto none = static_cast<std::int32_t>(readers.num_offloaded);
  auto& [lists, merged, merging] = scratch;
  lists.resize(static_cast<std::size_t>(per_group * fetched));
  merged.resize(lists.size());
  std::int64_t num_readers = 0;
  for (std::int64_t g = 0; g < store.shape().num_kv_heads; ++g) {
    for (std::int64_t r = 0; r < per_group; ++r) {
      const std::int32_t* places = readers.places.data() + (g * per_group + r) * readers.most;
      for (std::int64_t i = 0; i < fetched; ++i) {
        num_readers += places[i] < none ? 1 : 0;
        lists[static_cast<std::size_t>(r * fetched + i)] = std::min(places[i], none);
      }
    }
    std::int64_t rows = kernels::merge_positions(lists.data(),
                                                 per_group,
                                                 fetched,
                                                 merged.data(),
                                                 buffers.index + g * per_group * fetched,
                                                 merging);
    rows -= rows > 0 && merged[static_cast<std::size_t>(rows - 1)] == none ? 1 : 0;
    buffers.union_sizes[g] = rows;
    const auto row_bytes =
        store.shape().head_dim * static_cast<std::int64_t>(size_of(store.shape().dtype));
    StoredHead(kernels, store, layer, g)
        .values(std::span<const std::int32_t>(merged.data(), static_cast<std::size_t>(rows)),
                static_cast<std::byte*>(buffers.values) + g * buffers.union_capacity * row_bytes,
                buffers.device_reads ? kernels::RowReader::kDevice : kernels::RowReader::kCpu);
  }
  return num_readers;
}

// A timed device has no weights: as many tokens count as the method lets, as few of them shared by
// a KV head's query heads as may be. They lie evenly over the offloaded ones.
void invent(std::span<std::int32_t> places, const ReadPlaces& readers, std::int64_t per_group) {
  const std::int64_t fetched = readers.num_fetched();
  for (std::int64_t h = 0; h * readers.most < std::ssize(places); ++h) {
    for (std::int64_t i = 0; i < readers.most; ++i) {
      const std::int64_t place = i < fetched ? (i * per_group + h % per_group) *
                                                   readers.num_offloaded / (fetched * per_group)
                                             : i;
      places[static_cast<std::size_t>(h * readers.most + i)] = static_cast<std::int32_t>(place);
    }
  }
}

void fetch_values(LoopContext& loop, std::int64_t layer, MicroBatch& batch, const PlanItem& kept) {
  const auto row = static_cast<std::size_t>(kept.row);
  RequestState& request = *batch.requests[row];
  AttentionItem& item = batch.items[row];
  const std::int64_t per_group = loop.config().query_heads_per_kv_head();
  const ReadPlaces readers{batch.values.places(kept), kept.most, request.tokens.num_offloaded()};
  item.payload = nullptr;
  if (readers.num_fetched() == 0) {
    return;
  }
  if (loop.model.device().is_timed()) {
    invent(batch.values.places_to_invent(kept), readers, per_group);
  }
  MicroBatch::HostSlot& slot = batch.slot(layer);
  HostStaging& staging = request.staging_of(layer);
  HostJobBuffers buffers = staging.buffers();
  buffers.union_sizes = slot.union_rows[row].mutable_data_ptr<std::int64_t>();
  const std::int64_t num_readers = gather_read(
      *loop.kernels, *request.host, layer, readers, per_group, buffers, batch.values.scratch());
  loop.link.to_host(num_readers * static_cast<std::int64_t>(sizeof(std::int32_t)));
  loop.link.to_device(staging.ship_values(
      readers.num_fetched(), slot.union_rows[row], slot.device_union_rows[row]));
  item.payload = &staging.payload();
}

}  // namespace

void attend_by_parts(LoopContext& loop, std::int64_t layer, MicroBatch& batch) {
  loop.ops.weigh(batch.ws.query, batch.attention(layer), batch.kept(layer));
  const auto may_fetch = [&batch](const PlanItem& kept) {
    const auto row = static_cast<std::size_t>(kept.row);
    return kept.most > 0 && batch.requests[row]->tokens.num_offloaded() > 0;
  };
  if (std::ranges::any_of(batch.kept(layer).items, may_fetch)) {
    batch.values.send();
    batch.wait_for_places(loop.model.device());
  }
  for (const PlanItem& kept : batch.kept(layer).items) {
    contain(*batch.requests[static_cast<std::size_t>(kept.row)],
            [&] { fetch_values(loop, layer, batch, kept); });
  }
  // Behind the weights, on their stream: nothing is left to do meanwhile.
  loop.ops.fetch(batch.payloads(layer));
  loop.ops.sum_kept(batch.attention(layer), batch.kept(layer), batch.ws.attended_heads);
}

}  // namespace hybridgen
