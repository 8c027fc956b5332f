// SPDX-License-Identifier: Apache-2.0
#include "device/kernel_costs.h"

#include <algorithm>
#include <numeric>

#include "device/torch_types.h"
#include "kernels/cpu_kernels.h"
#include "kernels/decode_rows.h"

namespace hybridgen {
namespace {

using emulated::OperationKind;
using emulated::TimedOperation;

constexpr std::int64_t kFloat = sizeof(float);
constexpr std::int64_t kInt = sizeof(std::int32_t);
constexpr std::int64_t kLong = sizeof(std::int64_t);
constexpr std::int64_t kCodedRows = 16;  // of x, for which coded_linear_cuda reads the codes once

std::int64_t element_of(const at::Tensor& tensor) {
  return static_cast<std::int64_t>(tensor.element_size());
}

std::int64_t tensor_bytes(const at::Tensor& tensor) {
  return tensor.defined() ? static_cast<std::int64_t>(tensor.nbytes()) : 0;
}

std::int64_t divide_up(std::int64_t count, std::int64_t by) { return (count + by - 1) / by; }

/// Sizes of attention.
struct Heads {
  Heads(const at::Tensor& query, const AttentionItem& item)
      : heads(query.size(1)),
        groups(item.keys->size(0)),
        head_dim(query.size(2)),
        element(element_of(query)) {}

  std::int64_t query_bytes() const { return heads * head_dim * element; }
  /// A row of all KV heads.
  std::int64_t row_bytes() const { return groups * head_dim * element; }
  /// Of all query heads' results over so many tokens: unnormalised, with a peak and a sum, or these
  /// alone.
  std::int64_t part_bytes(std::int64_t tokens, bool weights_only = false) const {
    return kernels::part_count(tokens) * heads * (weights_only ? 2 : head_dim + 2) * kFloat;
  }
  /// A product and a sum for each dimension of a token that a query head sees.
  double flops(std::int64_t seen) const { return 2.0 * static_cast<double>(seen * head_dim); }

  std::int64_t heads;
  std::int64_t groups;
  std::int64_t head_dim;
  std::int64_t element;
};

std::int64_t rows_in_use(const HostPayload& payload) {
  return std::accumulate(payload.union_sizes.begin(), payload.union_sizes.end(), std::int64_t{0});
}

/// Tokens that query heads see, all together.
std::int64_t seen_by_heads(const HostPayload& payload, std::int64_t heads) {
  const std::int64_t groups = std::ssize(payload.union_sizes);
  return payload.index.defined() ? heads * payload.count : heads / groups * rows_in_use(payload);
}

/// A payload's tokens: their parts, which are then read.
void add_payload(const HostPayload& payload, const Heads& sizes, TimedOperation& cost) {
  const std::int64_t seen = seen_by_heads(payload, sizes.heads);
  const bool has_keys = payload.keys.defined();
  const std::int64_t row = sizes.head_dim * sizes.element * (has_keys ? 2 : 1);
  const std::int64_t parts = sizes.part_bytes(payload.count);
  cost.bytes_read += rows_in_use(payload) * row + sizes.groups * kLong + parts;
  cost.bytes_read += has_keys ? sizes.query_bytes() : seen * kFloat;
  cost.bytes_read += payload.index.defined() ? seen * kInt : 0;
  cost.bytes_written += parts;
  cost.flops += sizes.flops(seen) * (has_keys ? 2 : 1);
}

/// Softmax weights where somebody wants them, from logits that were written before.
void add_weights(const AttentionItem& item, const Heads& sizes, TimedOperation& cost) {
  const HostPayload* payload = item.payload;
  const std::int64_t resident = sizes.heads * item.num_resident;
  const std::int64_t host =
      payload == nullptr || payload->is_partial() ? 0 : seen_by_heads(*payload, sizes.heads);
  cost.bytes_read += (resident + host) * kFloat;
  cost.bytes_written += (resident + 2 * host) * kFloat;
}

}  // namespace

TimedOperation elementwise_cost(std::initializer_list<at::Tensor> reads,
                                std::initializer_list<at::Tensor> writes) {
  TimedOperation cost;
  std::int64_t most = 0;
  const auto add = [&](std::initializer_list<at::Tensor> tensors, std::int64_t& bytes) {
    for (const at::Tensor& tensor : tensors) {
      bytes += tensor_bytes(tensor);
      most = std::max(most, tensor.defined() ? tensor.numel() : 0);
    }
  };
  add(reads, cost.bytes_read);
  add(writes, cost.bytes_written);
  cost.flops = static_cast<double>(most);
  return cost;
}

TimedOperation product_cost(const at::Tensor& x,
                            const LinearWeight& weight,
                            const at::Tensor& bias,
                            const at::Tensor& y) {
  TimedOperation cost{
      .kind = weight.is_coded() ? OperationKind::kElementwise : OperationKind::kDense,
      .dtype = to_dtype(x.scalar_type())};
  const std::int64_t readings = weight.is_coded() ? divide_up(x.size(0), kCodedRows) : 1;
  cost.bytes_read = tensor_bytes(x) + readings * weight.bytes() + tensor_bytes(bias);
  cost.bytes_written = tensor_bytes(y);
  cost.flops = 2.0 * static_cast<double>(y.numel()) * static_cast<double>(weight.inputs);
  return cost;
}

TimedOperation place_heads_cost(const LayerHeads& heads, const AttentionBatch* batch) {
  TimedOperation cost;
  const auto change = [&](const at::Tensor& x, const at::Tensor* norm, bool turns) {
    if (norm == nullptr && !turns) return false;
    cost.bytes_read += tensor_bytes(x) + (norm == nullptr ? 0 : tensor_bytes(*norm));
    cost.bytes_written += tensor_bytes(x);
    cost.flops += static_cast<double>(x.numel());
    return true;
  };
  const bool turns = heads.table != nullptr;
  if (turns) {  // rows of cosines and of sines, each for half of the dimensions
    cost.bytes_read += heads.query.size(0) * (heads.query.size(2) * kFloat + kLong);
  }
  change(heads.query, heads.query_norm, turns);
  const bool reads_key =
      heads.key != nullptr && change(*heads.key, heads.key_norm, turns && heads.rotates_key);
  if (batch == nullptr) return cost;
  for (const AttentionItem& item : batch->items) {
    if (item.num_resident == 0) continue;
    const std::int64_t row = tensor_bytes(*heads.key) / heads.key->size(0);
    cost.bytes_read += reads_key ? row : 2 * row;
    cost.bytes_written += 2 * row;
  }
  return cost;
}

TimedOperation turn_keys_cost(std::span<const AttentionItem> items) {
  TimedOperation cost;
  for (const AttentionItem& item : items) {
    if (item.turned == nullptr) continue;
    const at::Tensor& keys = item.turned->keys;
    const std::int64_t numbers = keys.size(0) * item.num_resident * keys.size(2);
    cost.bytes_read += numbers * element_of(keys) +
                       item.num_resident * (keys.size(0) * kLong + keys.size(2) * kFloat);
    cost.bytes_written += numbers * element_of(keys);
    cost.flops += 3.0 * static_cast<double>(numbers);
  }
  return cost;
}

TimedOperation move_rows_cost(const RowMoves& moves, std::int64_t count) {
  const at::Tensor& keys = moves.caches.front()->all_keys();
  const std::int64_t bytes = 2 * count * keys.size(3) * element_of(keys);
  return {.kind = OperationKind::kDeviceCopy,
          .bytes_read = bytes + tensor_bytes(moves.slots),
          .bytes_written = bytes};
}

TimedOperation fetch_cost(const PayloadBatch& batch) {
  std::int64_t bytes =
      std::ssize(batch.items) * static_cast<std::int64_t>(sizeof(kernels::PayloadCopy));
  for (const AttentionItem& item : batch.items) {
    if (item.payload == nullptr) continue;
    const HostPayload& from = *item.payload->staged;
    if (from.is_partial()) {
      bytes += tensor_bytes(from.output) + tensor_bytes(from.lse);
      continue;
    }
    const std::int64_t seen = seen_by_heads(*item.payload, batch.num_heads);
    const std::int64_t row = item.keys->size(2) * element_of(*item.keys);
    bytes += item.keys->size(0) * kLong;
    bytes += rows_in_use(*item.payload) * row *
             ((from.keys.defined() ? 1 : 0) + (from.values.defined() ? 1 : 0));
    bytes += from.logits.defined() ? seen * kFloat : 0;
    bytes += from.index.defined() ? seen * kInt : 0;
  }
  return {.kind = OperationKind::kHostRead, .bytes_read = bytes, .bytes_written = bytes};
}

TimedOperation resident_cost(const at::Tensor& query,
                             std::span<const AttentionItem> items,
                             bool weights_only) {
  const std::int64_t matrices = weights_only ? 1 : 2;
  TimedOperation cost;
  for (const AttentionItem& item : items) {
    const Heads sizes(query, item);
    const std::int64_t resident = item.num_resident;
    if (resident == 0) continue;
    cost.bytes_read += matrices * resident * sizes.row_bytes() + sizes.query_bytes();
    cost.bytes_written += sizes.part_bytes(resident, weights_only);
    cost.bytes_written += item.wants_weights ? sizes.heads * resident * kFloat : 0;
    cost.flops += static_cast<double>(matrices) * sizes.flops(sizes.heads * resident);
  }
  return cost;
}

TimedOperation merge_cost(const at::Tensor& query, std::span<const AttentionItem> items) {
  TimedOperation cost;
  for (const AttentionItem& item : items) {
    const Heads sizes(query, item);
    cost.bytes_read += sizes.part_bytes(item.num_resident);
    cost.bytes_written += sizes.query_bytes() + (item.lse == nullptr ? 0 : sizes.heads * kFloat);
    if (item.payload != nullptr && item.payload->is_partial()) {
      cost.bytes_read += tensor_bytes(item.payload->output) + tensor_bytes(item.payload->lse);
    } else if (item.payload != nullptr && item.payload->count > 0) {
      add_payload(*item.payload, sizes, cost);
    }
    if (item.wants_weights) add_weights(item, sizes, cost);
  }
  return cost;
}

TimedOperation weigh_cost(const at::Tensor& query, std::span<const AttentionItem> items) {
  TimedOperation cost;
  for (const AttentionItem& item : items) {
    const Heads sizes(query, item);
    cost.bytes_read += sizes.part_bytes(item.num_resident, /*weights_only=*/true);
    if (const HostPayload* payload = item.payload) {
      const std::int64_t seen = seen_by_heads(*payload, sizes.heads);
      const std::int64_t parts = sizes.part_bytes(payload->count, /*weights_only=*/true);
      cost.bytes_read += rows_in_use(*payload) * sizes.head_dim * sizes.element +
                         sizes.groups * kLong + sizes.query_bytes() + parts;
      cost.bytes_written += parts;
      cost.flops += sizes.flops(seen);
    }
    add_weights(item, sizes, cost);
  }
  return cost;
}

TimedOperation sum_kept_cost(std::span<const AttentionItem> items,
                             std::span<const PlanItem> kept,
                             const at::Tensor& out) {
  TimedOperation cost;
  for (const PlanItem& row : kept) {
    const AttentionItem& item = items[static_cast<std::size_t>(row.row)];
    const Heads sizes(out, item);
    const std::int64_t seen = sizes.heads * (row.most + 1);  // with the newest
    const std::int64_t resident =
        std::min(item.num_resident, sizes.heads / sizes.groups * row.most + 1);
    cost.bytes_read += resident * sizes.row_bytes() + (2 * seen - sizes.heads) * kInt;
    cost.bytes_written += sizes.query_bytes();
    if (const HostPayload* payload = item.payload) {
      cost.bytes_read += rows_in_use(*payload) * sizes.head_dim * sizes.element +
                         sizes.heads * payload->count * kInt;
    }
    if (kernels::part_count(row.most) > 1) {
      const std::int64_t parts =
          kernels::part_count(row.most) * sizes.heads * sizes.head_dim * kFloat;
      cost.bytes_read += parts;
      cost.bytes_written += parts;
    }
    cost.flops += sizes.flops(seen);
  }
  return cost;
}

TimedOperation turn_queries_cost(const at::Tensor& query, std::span<const PlanItem> items) {
  TimedOperation cost;
  for (const PlanItem& item : items) {
    const std::int64_t turned = query.size(1) * item.columns->size(3);
    cost.bytes_read +=
        tensor_bytes(query) / query.size(0) + tensor_bytes(*item.columns) / item.columns->size(0);
    cost.bytes_written += turned * kFloat;
    cost.flops += 2.0 * static_cast<double>(turned * query.size(2));
  }
  return cost;
}

TimedOperation guess_cost(const at::Tensor& query, std::span<const PlanItem> items) {
  TimedOperation cost;
  for (const PlanItem& item : items) {
    const std::int64_t width = item.keys->size(3);
    const std::int64_t block = item.keys->size(4);
    const std::int64_t tokens = divide_up(item.num_tokens, block) * block;
    cost.bytes_read += query.size(1) * width * kFloat +
                       item.keys->size(1) * tokens * width * element_of(*item.keys);
    cost.bytes_written += tensor_bytes(item.guesses);
    cost.flops += 2.0 * static_cast<double>(query.size(1) * item.num_tokens * width);
  }
  return cost;
}

TimedOperation count_cost(std::span<const PlanItem> items) {
  TimedOperation cost;
  for (const PlanItem& item : items) {
    if (!item.alpha) continue;
    cost.bytes_read += tensor_bytes(item.guesses);
    cost.flops += static_cast<double>(item.guesses.numel());
  }
  return cost;
}

TimedOperation rank_cost(std::span<const PlanItem> items) {
  TimedOperation cost;
  for (const PlanItem& item : items) {
    cost.bytes_read += tensor_bytes(item.guesses);
    cost.flops += static_cast<double>(item.guesses.numel());
  }
  return cost;
}

}  // namespace hybridgen
