// SPDX-License-Identifier: Apache-2.0
#include "pipeline/staged_values.h"

#include "kernels/cpu_kernels.h"

namespace hybridgen {
namespace {

class StagedValues final : public ValueFetch {
 public:
  StagedValues(LoopContext& loop, std::int64_t layer, RequestState& request)
      : loop_(loop),
        layer_(layer),
        store_(request.host.get()),
        staging_(request.staging_of(layer)) {
    if (store_ != nullptr) {
      buffers_ = staging_.buffers();
    }
  }

  void gather(std::int64_t kv_head, std::span<const std::int32_t> slots) override {
    const RowView values = store_->values(layer_, kv_head);
    const auto row_bytes = values.head_dim * static_cast<std::int64_t>(size_of(values.dtype));
    const auto rows = static_cast<std::int64_t>(slots.size());
    buffers_.union_sizes[kv_head] = rows;
    kernels::gather_rows(
        values.data,
        row_bytes,
        slots.data(),
        rows,
        static_cast<std::byte*>(buffers_.values) + kv_head * buffers_.union_capacity * row_bytes);
  }

  void ship() override { loop_.link.to_device(staging_.ship_values(loop_.model.device())); }

  at::Tensor rows(std::int64_t kv_head) const override {
    return staging_.payload().values.select(0, kv_head).narrow(0, 0, buffers_.union_sizes[kv_head]);
  }

  void count_to_host(std::int64_t bytes) override { loop_.link.to_host(bytes); }

 private:
  LoopContext& loop_;
  std::int64_t layer_;
  const HostKvStore* store_;  ///< null if nothing ever leaves the device: nothing is fetched then
  HostStaging& staging_;
  HostJobBuffers buffers_;
};

}  // namespace

void attend_by_parts(LoopContext& loop, std::int64_t layer, MicroBatch& batch) {
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    contain(request, [&] {
      const auto index = static_cast<std::int64_t>(row);
      StagedValues values(loop, layer, request);
      at::Tensor out = batch.ws.attended_heads.select(0, index);  // [H, D]
      request.parts.attention->attend(
          batch.items[row], batch.ws.query.select(0, index), values, out);
    });
  }
}

}  // namespace hybridgen
