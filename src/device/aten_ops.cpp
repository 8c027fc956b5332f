// SPDX-License-Identifier: Apache-2.0
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/exp.h>
#include <ATen/ops/full.h>
#include <ATen/ops/layer_norm.h>
#include <ATen/ops/linear.h>
#include <ATen/ops/logaddexp.h>
#include <ATen/ops/logsumexp.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/minimum.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/rsqrt.h>
#include <ATen/ops/silu.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/sub.h>
#include <ATen/ops/take.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "device/device_ops.h"
#include "device/planning.h"
#include "device/row_blocks.h"

namespace hybridgen {

void merge_partial(PartialAttention& sum, const PartialAttention& part) {
  if (!sum.out.defined()) {
    sum = part;
    return;
  }
  const at::Tensor lse = at::logaddexp(sum.lse, part.lse);
  const at::Tensor old_share = at::exp(sum.lse - lse).unsqueeze(-1);
  const at::Tensor new_share = at::exp(part.lse - lse).unsqueeze(-1);
  sum.out = sum.out * old_share + part.out * new_share;
  sum.lse = lse;
}

namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

// Whether LibTorch multiplies 16-bit matrices into a float32 one on this device.
bool multiplies_into_float(const at::Tensor& x) {
  static const c10::OperatorHandle product =
      c10::Dispatcher::singleton().findSchemaOrThrow("aten::mm", "dtype");
  return product.hasKernelForDispatchKey(c10::toRuntimePerBackendFunctionalityKey(
      c10::DispatchKey::Dense, x.key_set().highestBackendKey()));
}

// y = x weight^T + bias without a rounding to the 16 bits of x and weight.
void linear_into_float(const at::Tensor& x,
                       const at::Tensor& weight,
                       const at::Tensor& bias,
                       at::Tensor& y) {
  if (multiplies_into_float(x)) {
    y.copy_(at::mm(x, weight.t(), at::kFloat));
  } else {
    const at::Tensor wide = x.to(at::kFloat);
    const std::int64_t piece = std::max<std::int64_t>(1, kWideElements / weight.size(1));
    for (std::int64_t first = 0; first < weight.size(0); first += piece) {
      const std::int64_t count = std::min(piece, weight.size(0) - first);
      y.narrow(1, first, count)
          .copy_(at::linear(wide, weight.narrow(0, first, count).to(at::kFloat)));
    }
  }
  if (bias.defined()) {
    y.add_(bias);
  }
}

class AtenOps final : public DeviceOps {
 public:
  explicit AtenOps(std::int64_t block_elements) : block_elements_(block_elements) {}

  std::string_view name() const override { return "aten"; }

  void linear(const at::Tensor& x,
              const LinearWeight& linear_weight,
              const at::Tensor& bias,
              at::Tensor& y) const override {
    if (linear_weight.is_coded()) {
      linear_restored(x, linear_weight, bias, y);
      return;
    }
    const at::Tensor& weight = linear_weight.dense;
    if (y.scalar_type() == at::kFloat && x.scalar_type() != at::kFloat) {
      linear_into_float(x, weight, bias, y);
      return;
    }
    y.copy_(at::linear(x, weight, bias.defined() ? std::optional<at::Tensor>(bias) : std::nullopt));
  }

  void select_rows(const LinearWeight& table,
                   const at::Tensor& ids,
                   std::int64_t offset,
                   at::Tensor& y) const override {
    y.copy_(table.select(ids + offset).restored(y.scalar_type()));
  }

  void norm(const ModelConfig& config,
            const at::Tensor& x,
            const at::Tensor& weight,
            const at::Tensor& bias,
            at::Tensor& y) const override {
    if (config.norm == NormKind::kLayer) {
      y.copy_(at::layer_norm(x, weight.sizes(), weight, bias, config.norm_eps));
      return;
    }
    const at::Tensor wide = x.to(at::kFloat);
    const at::Tensor variance = wide.square().mean(-1, /*keepdim=*/true);
    y.copy_((wide * at::rsqrt(variance + config.norm_eps)).to(x.scalar_type()) * weight);
  }

  void rotate(const RopeTable& table, const at::Tensor& positions, at::Tensor& x) const override {
    const at::Tensor cosines = table.cosines.index_select(0, positions).unsqueeze(1);
    const at::Tensor sines = table.sines.index_select(0, positions).unsqueeze(1);
    const std::int64_t half = x.size(-1) / 2;
    const at::Tensor a =
        x.narrow(-1, 0, half).to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
    const at::Tensor b =
        x.narrow(-1, half, half).to(at::kFloat, /*non_blocking=*/false, /*copy=*/true);
    x.narrow(-1, 0, half).copy_(a * cosines - b * sines);
    x.narrow(-1, half, half).copy_(b * cosines + a * sines);
  }

  void silu_gate(const at::Tensor& gate, const at::Tensor& up, at::Tensor& y) const override {
    y.copy_(at::silu(gate) * up);
  }

  void relu(at::Tensor& x) const override { x.relu_(); }
  void add(at::Tensor& y, const at::Tensor& x) const override { y.add_(x); }

  void fetch(const PayloadBatch& batch) const override {
    const auto is_staged = [](const AttentionItem& item) {
      return item.payload != nullptr && item.payload->staged != nullptr;
    };
    if (std::ranges::any_of(batch.items, [&](const AttentionItem& item) {
          return is_staged(item) && !item.payload->is_partial();
        })) {
      at::Tensor sizes = batch.device_union_sizes;
      sizes.copy_(batch.union_sizes, /*non_blocking=*/true);
    }
    for (const AttentionItem& item : batch.items) {
      if (is_staged(item)) {
        copy_payload(*item.payload);
      }
    }
  }

  void resident_logits(const at::Tensor& query, const AttentionBatch& batch) const override {
    const std::int64_t heads = query.size(1);
    for (const AttentionItem& item : batch.items) {
      const at::Tensor keys = item.keys->narrow(1, item.first_slot, item.num_resident);
      item.resident_logits->narrow(0, 0, heads * item.num_resident)
          .copy_(scaled_logits(query.select(0, item.row), keys).view({-1}));
    }
  }

  void merge(const at::Tensor& query, const AttentionBatch& batch, at::Tensor& out) const override {
    const std::int64_t heads = query.size(1);
    const std::int64_t head_dim = query.size(2);
    for (const AttentionItem& item : batch.items) {
      const std::int64_t groups = item.keys->size(0);
      const std::int64_t resident = item.num_resident;
      at::Tensor logits = item.resident_logits->narrow(0, 0, heads * resident)
                              .view({groups, heads / groups, resident});
      at::Tensor values = item.values->narrow(1, item.first_slot, resident).to(at::kFloat);
      const HostPayload* payload = item.payload;
      if (payload != nullptr && payload->is_partial()) {
        const at::Tensor weights = weights_of(logits);
        keep_weights(item, {}, weights);
        PartialAttention sum;
        if (resident > 0) {
          sum.lse = at::logsumexp(logits, {-1}).view({heads, 1});
          sum.out = at::matmul(weights, values).view({heads, 1, head_dim});
        }
        merge_partial(sum,
                      {payload->output.to(at::kFloat).view({heads, 1, head_dim}),
                       payload->lse.view({heads, 1})});
        out.select(0, item.row).copy_(sum.out.view({heads, head_dim}));
        if (item.lse != nullptr) {
          item.lse->copy_(sum.lse.view({heads}));
        }
        continue;
      }
      const bool has_rows = payload != nullptr && payload->count > 0;
      if (has_rows) {
        logits = at::cat({host_logits(query.select(0, item.row), *payload, groups), logits}, -1);
        // Rows beyond a head's union are uninitialised; their weight is 0, but 0 * NaN is NaN.
        const at::Tensor unused = rows_in_use(*payload).logical_not().unsqueeze(-1);
        const at::Tensor sent = payload->values.narrow(1, 0, payload->most_rows()).to(at::kFloat);
        values = at::cat({sent.masked_fill(unused, 0.0), values}, 1);
      }
      const at::Tensor weights = weights_of(logits);
      keep_weights(item, has_rows ? payload : nullptr, weights);
      keep_log_sum(item, logits, weights);
      out.select(0, item.row).copy_(at::matmul(weights, values).view({heads, head_dim}));
    }
  }

  PartialAttention partial_attention(const at::Tensor& query,
                                     const at::Tensor& keys,
                                     const at::Tensor& values,
                                     bool causal) const override {
    const std::int64_t rows = query.size(0);
    const std::int64_t count = keys.size(1);
    const std::int64_t block =
        std::clamp<std::int64_t>(block_elements_ / (query.size(1) * rows), 1, count);
    PartialAttention sum;
    for (std::int64_t first = 0; first < count; first += block) {
      const std::int64_t size = std::min(block, count - first);
      const std::int64_t unseeing = causal ? first : 0;  // rows that see none of these keys
      const PartialAttention part = attention_of_block(query.narrow(0, unseeing, rows - unseeing),
                                                       keys.narrow(1, first, size),
                                                       values.narrow(1, first, size),
                                                       causal);
      if (unseeing == 0) {
        merge_partial(sum, part);
        continue;
      }
      PartialAttention seeing{sum.out.narrow(1, unseeing, rows - unseeing),
                              sum.lse.narrow(1, unseeing, rows - unseeing)};
      const PartialAttention rest = seeing;
      merge_partial(seeing, part);
      rest.out.copy_(seeing.out);
      rest.lse.copy_(seeing.lse);
    }
    return sum;
  }

  at::Tensor column_sums(const at::Tensor& query,
                         const at::Tensor& keys,
                         const at::Tensor& lse,
                         bool causal) const override {
    const std::int64_t heads = query.size(1);
    at::Tensor sums = at::zeros({heads, keys.size(1)}, query.options().dtype(at::kFloat));
    for_row_blocks(query, keys, causal, [&](std::int64_t first, at::Tensor& logits) {
      const std::int64_t count = logits.size(2);
      const at::Tensor weights =
          at::exp(logits.view({heads, count, -1}) - lse.narrow(1, first, count).unsqueeze(-1));
      sums.add_(weights.sum(1));
    });
    return sums.cpu();
  }

  void plan(const at::Tensor& query, const PlanBatch& batch) const override {
    plan_through_torch(query, batch);
  }

 private:
  // What is in use of a payload, from where the job left it.
  static void copy_payload(const HostPayload& payload) {
    const HostPayload& from = *payload.staged;
    const auto copy = [](const at::Tensor& to, const at::Tensor& source) {
      if (source.defined()) {
        to.copy_(source, /*non_blocking=*/true);
      }
    };
    copy(payload.output, from.output);
    copy(payload.lse, from.lse);
    copy(payload.index, from.index);
    if (payload.index.defined()) {
      copy(payload.logits, from.logits);
    }
    const std::int64_t groups = std::ssize(payload.union_sizes);
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t rows = payload.union_sizes[static_cast<std::size_t>(g)];
      if (!payload.index.defined() && from.logits.defined()) {
        const std::int64_t per_group = from.logits.numel() / (groups * payload.room);
        const auto of_head = [&](const at::Tensor& all) {
          return all.narrow(0, g * per_group * payload.room, per_group * rows);
        };
        copy(of_head(payload.logits), of_head(from.logits));
      }
      const auto used = [&](const at::Tensor& all) {
        return all.defined() ? all.select(0, g).narrow(0, 0, rows) : all;
      };
      copy(used(payload.values), used(from.values));
      copy(used(payload.keys), used(from.keys));
    }
  }

  // Attention of query rows [T, H, D] over keys and values [G, N, D]; causal: row t sees the first
  // t + 1 of them.
  static PartialAttention attention_of_block(const at::Tensor& query,
                                             const at::Tensor& keys,
                                             const at::Tensor& values,
                                             bool causal) {
    const std::int64_t rows = query.size(0);
    const std::int64_t heads = query.size(1);
    const std::int64_t head_dim = query.size(2);
    const std::int64_t groups = keys.size(0);
    const std::int64_t count = keys.size(1);
    const at::Tensor q =
        query.permute({1, 0, 2}).reshape({groups, heads / groups * rows, head_dim}).to(at::kFloat) *
        (1.0 / std::sqrt(static_cast<double>(head_dim)));
    at::Tensor logits = at::matmul(q, keys.to(at::kFloat).transpose(1, 2));
    if (causal) {
      const at::Tensor future = at::ones({rows, count}, q.options().dtype(at::kBool)).triu(1);
      logits.view({groups, heads / groups, rows, count}).masked_fill_(future, kHidden);
    }
    const at::Tensor lse = at::logsumexp(logits, {-1});
    const at::Tensor out = at::matmul(logits.sub_(lse.unsqueeze(-1)).exp_(), values.to(at::kFloat));
    return {out.view({heads, rows, head_dim}), lse.view({heads, rows})};
  }

  // [G, R, N] float32 logits of one row's heads [H, D] over keys [G, N, D].
  static at::Tensor scaled_logits(const at::Tensor& heads, const at::Tensor& keys) {
    const double scale = 1.0 / std::sqrt(static_cast<double>(heads.size(1)));
    const at::Tensor grouped =
        (heads.to(at::kFloat) * scale).view({keys.size(0), -1, heads.size(1)});
    return at::matmul(grouped, keys.to(at::kFloat).transpose(1, 2));
  }

  // [G, most_rows()]: which rows of the payload hold a token.
  static at::Tensor rows_in_use(const HostPayload& payload) {
    const at::Tensor& sizes = payload.device_union_sizes;
    return at::arange(payload.most_rows(), sizes.options()).unsqueeze(0) < sizes.unsqueeze(1);
  }

  // [G, R, most_rows()] of the logits that lie one after another, and of anything in rows not in
  // use.
  static at::Tensor shared_logits(const HostPayload& payload,
                                  std::int64_t groups,
                                  std::int64_t per_group) {
    const at::Tensor sizes = payload.device_union_sizes.view({groups, 1, 1});
    const at::TensorOptions& number = sizes.options();
    const at::Tensor head = at::arange(groups, number).view({groups, 1, 1});
    const at::Tensor row = at::arange(per_group, number).view({per_group, 1});
    const at::Tensor place = head * (per_group * payload.room) + row * sizes +
                             at::minimum(at::arange(payload.most_rows(), number), sizes - 1);
    return payload.logits.take(place.clamp_min(0));
  }

  // Logits of the payload laid out over its union of rows, -inf where a head did not choose a row.
  static at::Tensor host_logits(const at::Tensor& heads,
                                const HostPayload& payload,
                                std::int64_t groups) {
    const std::int64_t rows = payload.most_rows();
    const std::int64_t per_group = heads.size(0) / groups;
    const auto of_keys = [&] { return scaled_logits(heads, payload.keys.narrow(1, 0, rows)); };
    if (!payload.index.defined()) {
      const at::Tensor unused = rows_in_use(payload).logical_not().unsqueeze(1);
      return (payload.keys.defined() ? of_keys() : shared_logits(payload, groups, per_group))
          .masked_fill(unused, kHidden);
    }
    const auto of_each_head = [&](const at::Tensor& all) {
      return all.narrow(0, 0, heads.size(0) * payload.count)
          .view({groups, per_group, payload.count});
    };
    const at::Tensor index = of_each_head(payload.index).to(at::kLong);
    const at::Tensor logits =
        payload.keys.defined() ? of_keys().gather(-1, index) : of_each_head(payload.logits);
    return at::full({groups, per_group, rows}, kHidden, logits.options())
        .scatter(-1, index, logits);
  }

  // Softmax whose rows without any token are 0. NaN stays: the sampler has to see it.
  static at::Tensor weights_of(const at::Tensor& logits) {
    at::Tensor weights = at::softmax(logits, -1);
    if (logits.size(-1) > 0) {
      weights.masked_fill_(logits.amax(-1, /*keepdim=*/true) == kHidden, 0.0);
    }
    return weights;
  }

  // Leaves the weights where merge() promises them: chosen host tokens, then resident ones.
  static void keep_weights(const AttentionItem& item,
                           const HostPayload* payload,
                           const at::Tensor& weights) {
    if (!item.wants_weights) {
      return;
    }
    const std::int64_t groups = weights.size(0);
    const std::int64_t per_group = weights.size(1);
    const std::int64_t stride = item.merged_stride();
    const at::Tensor rows = item.merged_logits->narrow(0, 0, groups * per_group * stride)
                                .view({groups, per_group, stride});
    const std::int64_t resident = item.num_resident;
    const at::Tensor own = weights.narrow(-1, weights.size(-1) - resident, resident);
    if (payload == nullptr) {
      rows.copy_(own);
      return;
    }
    for (std::int64_t g = 0; g < groups; ++g) {
      const std::int64_t count = payload->tokens_of(g);
      const at::Tensor host =
          payload->index.defined()
              ? weights.select(0, g).gather(
                    -1,
                    payload->index.narrow(0, g * per_group * count, per_group * count)
                        .view({per_group, count})
                        .to(at::kLong))
              : weights.select(0, g).narrow(-1, 0, count);
      rows.select(0, g).narrow(-1, 0, count).copy_(host);
      rows.select(0, g).narrow(-1, count, resident).copy_(own.select(0, g));
    }
  }

  // The largest logit less the logarithm of its weight: fewer operations than another sum. NaN for
  // a head without any token.
  static void keep_log_sum(const AttentionItem& item,
                           const at::Tensor& logits,
                           const at::Tensor& weights) {
    if (item.lse != nullptr) {
      at::Tensor lse = item.lse->view({logits.size(0), logits.size(1)});
      at::sub_out(lse, logits.amax(-1), weights.amax(-1).log_());
    }
  }

  std::int64_t block_elements_;
};

}  // namespace

std::unique_ptr<DeviceOps> make_aten_ops(std::int64_t block_elements) {
  return std::make_unique<AtenOps>(block_elements);
}

}  // namespace hybridgen
