// SPDX-License-Identifier: Apache-2.0
#include "pipeline/sparse_values.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "kernels/cpu_kernels.h"

namespace hybridgen {
namespace {

// Weights [G, R, n_c + n_g] of one request's tokens: offloaded ones (from shipped keys), resident.
at::Tensor all_weights(const at::Tensor& query, const AttentionItem& item) {
  const std::int64_t groups = item.keys->size(0);
  const std::int64_t head_dim = query.size(-1);
  const at::Tensor heads = query.to(at::kFloat).view({groups, -1, head_dim});
  const std::int64_t per_group = heads.size(1);
  at::Tensor logits = item.resident_logits->narrow(0, 0, groups * per_group * item.num_resident)
                          .view({groups, per_group, item.num_resident});
  if (item.payload != nullptr) {
    const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
    const at::Tensor keys = item.payload->keys.narrow(1, 0, item.payload->count).to(at::kFloat);
    logits = at::cat({at::matmul(heads * scale, keys.transpose(1, 2)), logits}, -1);
  }
  return at::softmax(logits, -1);
}

// All but the new token and the `keep` largest others become 0.
void drop_small_weights(at::Tensor& weights, std::int64_t keep) {
  const std::int64_t others = weights.size(-1) - 1;
  if (keep >= others) {
    return;
  }
  at::Tensor rest = weights.narrow(-1, 0, others);
  // Ties go to the newer token: resident ones come for free.
  const at::Tensor order = rest.flip(-1).argsort(/*stable=*/true, /*dim=*/-1, /*descending=*/true);
  const at::Tensor dropped = others - 1 - order.narrow(-1, keep, others - keep);
  rest.scatter_(-1, dropped, 0.0);
}

// Rows of offloaded tokens with a weight, per KV head, into staging; [R, rows in use] weights each.
std::vector<at::Tensor> fetch_values(const at::Tensor& weights,
                                     const HostKvStore& store,
                                     std::int64_t layer,
                                     HostJobBuffers& buffers) {
  const RowView first = store.values(layer, 0);
  const auto row_bytes = first.head_dim * static_cast<std::int64_t>(size_of(first.dtype));
  std::vector<at::Tensor> in_use;
  for (std::int64_t g = 0; g < weights.size(0); ++g) {
    const at::Tensor used =
        (weights.select(0, g) > 0).any(0).nonzero().view({-1}).to(at::kInt).cpu();
    const std::int64_t rows = used.size(0);
    buffers.union_sizes[g] = rows;
    kernels::gather_rows(
        store.values(layer, g).data,
        row_bytes,
        used.const_data_ptr<std::int32_t>(),
        rows,
        static_cast<std::byte*>(buffers.values) + g * buffers.union_capacity * row_bytes);
    in_use.push_back(weights.select(0, g).index_select(1, used.to(at::kLong).to(weights.device())));
  }
  return in_use;
}

// One request's row of attended_heads.
LinkBytes attend_row(const DeviceContext& device,
                     const Method& method,
                     std::int64_t layer,
                     const BlockWorkspace& ws,
                     const AttentionItem& item,
                     RequestState& request) {
  LinkBytes bytes;
  at::Tensor out = ws.attended_heads.select(0, item.row);  // [H, D]
  at::Tensor weights = all_weights(ws.query.select(0, item.row), item);
  const std::int64_t groups = weights.size(0);
  const std::int64_t resident = item.num_resident;
  const std::int64_t offloaded = weights.size(-1) - resident;
  const auto keep =
      static_cast<std::int64_t>(method.value_share * static_cast<double>(weights.size(-1) - 1));
  drop_small_weights(weights, keep);
  at::Tensor sum = at::matmul(weights.narrow(-1, offloaded, resident),
                              item.values->narrow(1, item.first_slot, resident).to(at::kFloat));
  if (offloaded > 0) {
    HostStaging& staging = request.staging[static_cast<std::size_t>(layer % 2)];
    HostJobBuffers buffers = staging.buffers();
    const at::Tensor host_weights = weights.narrow(-1, 0, offloaded);
    bytes.to_host += static_cast<std::int64_t>(sizeof(std::int32_t)) *
                     (host_weights > 0).sum().item<std::int64_t>();
    const std::vector<at::Tensor> in_use =
        fetch_values(host_weights, *request.host, layer, buffers);
    bytes.to_device += staging.ship_values(device);
    for (std::int64_t g = 0; g < groups; ++g) {
      const at::Tensor& own = in_use[static_cast<std::size_t>(g)];
      const at::Tensor values =
          item.payload->values.select(0, g).narrow(0, 0, own.size(1)).to(at::kFloat);
      sum.select(0, g).add_(at::matmul(own, values));
    }
  }
  out.copy_(sum.view(out.sizes()));
  return bytes;
}

}  // namespace

LinkBytes attend_with_some_values(const DeviceContext& device,
                                  const Method& method,
                                  std::int64_t layer,
                                  MicroBatch& batch) {
  LinkBytes bytes;
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    contain(request, [&] {
      const LinkBytes own = attend_row(device, method, layer, batch.ws, batch.items[row], request);
      bytes.to_device += own.to_device;
      bytes.to_host += own.to_host;
    });
  }
  return bytes;
}

}  // namespace hybridgen
