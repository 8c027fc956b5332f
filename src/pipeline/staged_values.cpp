// SPDX-License-Identifier: Apache-2.0
#include "pipeline/staged_values.h"

#include <algorithm>
#include <vector>

#include "kvcache/stored_head.h"
#include "parts/own_attention.h"
#include "pipeline/invented_places.h"

namespace hybridgen {
namespace {

class StagedValues final : public FetchedValues {
 public:
  explicit StagedValues(const HostStaging& staging) : staging_(staging) {}
  at::Tensor rows(std::int64_t kv_head) const override { return staging_.value_rows(kv_head); }
  at::Tensor slots(std::int64_t kv_head) const override { return staging_.value_slots(kv_head); }

 private:
  const HostStaging& staging_;
};

// Puts the rows of all tokens with readers [G, n_c] into staging, ascending; the number of readers.
std::int64_t gather_read(const kernels::CpuKernels& kernels,
                         const HostKvStore& store,
                         std::int64_t layer,
                         const at::Tensor& readers,
                         const HostJobBuffers& buffers) {
  std::int64_t num_readers = 0;
  const std::int64_t num_offloaded = readers.size(1);
  for (std::int64_t g = 0; g < readers.size(0); ++g) {
    const auto* of_head = readers.const_data_ptr<std::int16_t>() + g * num_offloaded;
    std::int32_t* slots = buffers.index + g * buffers.union_capacity;
    std::int64_t rows = 0;
    for (std::int64_t token = 0; token < num_offloaded; ++token) {
      if (of_head[token] != 0) {
        num_readers += of_head[token];
        slots[rows++] = static_cast<std::int32_t>(token);
      }
    }
    buffers.union_sizes[g] = rows;
    const auto row_bytes =
        store.shape().head_dim * static_cast<std::int64_t>(size_of(store.shape().dtype));
    StoredHead(kernels, store, layer, g)
        .values(std::span<const std::int32_t>(slots, static_cast<std::size_t>(rows)),
                static_cast<std::byte*>(buffers.values) + g * buffers.union_capacity * row_bytes,
                kernels::RowReader::kCpu);
  }
  return num_readers;
}

// A timed device has no weights: as many tokens count as the method lets, one query head each.
void invent(at::Tensor& readers, std::int64_t most) {
  readers.zero_();
  const std::int64_t count = std::min(most, readers.size(1));
  readers.index_fill_(1, invented_places(count, readers.size(1)), 1);
}

}  // namespace

void attend_by_parts(LoopContext& loop, std::int64_t layer, MicroBatch& batch) {
  const DeviceContext& device = loop.model.device();
  std::vector<OwnAttention::Weights> weights(batch.requests.size());
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    contain(request, [&] {
      const at::Tensor query = batch.ws.query.select(0, static_cast<std::int64_t>(row));
      weights[row] = request.parts.attention->weigh(batch.items[row], query);
      at::Tensor& readers = weights[row].readers;
      if (readers.defined() && !device.is_cpu()) {
        const at::Tensor staged = request.staging_of(layer).readers(readers.sizes());
        staged.copy_(readers, /*non_blocking=*/true);
        readers = staged;
      }
    });
  }
  batch.wait_for_readers(device);
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    contain(request, [&] {
      HostStaging& staging = request.staging_of(layer);
      const StagedValues values(staging);
      const bool fetches = weights[row].readers.defined();
      if (fetches && device.is_timed()) {
        invent(weights[row].readers,
               loop.config().query_heads_per_kv_head() *
                   request.parts.attention->num_attended(request.tokens.num_offloaded(),
                                                         request.tokens.num_tokens()));
      }
      if (fetches) {
        const std::int64_t readers = gather_read(
            *loop.kernels, *request.host, layer, weights[row].readers, staging.buffers());
        loop.link.to_host(readers * static_cast<std::int64_t>(sizeof(std::int32_t)));
        loop.link.to_device(staging.ship_values(device));
      }
      at::Tensor out = batch.ws.attended_heads.select(0, static_cast<std::int64_t>(row));  // [H, D]
      request.parts.attention->attend(
          batch.items[row], weights[row], fetches ? &values : nullptr, out);
    });
  }
}

}  // namespace hybridgen
