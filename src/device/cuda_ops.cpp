// SPDX-License-Identifier: Apache-2.0
// A decode step by our CUDA kernels, as many launches whatever the number of requests; matrix
// products by LibTorch (cuBLAS), and what only prompts need by AtenOps.
#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/version.h>

#include <algorithm>

#include "device/device_ops.h"
#include "device/kernel_args.h"
#include "device/linear_form.h"
#include "device/torch_types.h"
#include "hybridgen/core/error.h"
#include "kernels/cuda_attention.h"
#include "kernels/cuda_coded.h"
#include "kernels/cuda_kernels.h"
#include "kernels/cuda_planning.h"
#include "kernels/cuda_resident.h"
#include "kernels/cuda_rows.h"

#if TORCH_VERSION_MAJOR > 2 || (TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 13)
#define HYBRIDGEN_KNOWS_STREAM_HANDLES 1
#else
#define HYBRIDGEN_KNOWS_STREAM_HANDLES 0
#endif

namespace hybridgen {
namespace {

DType dtype_of(const at::Tensor& tensor) { return to_dtype(tensor.scalar_type()); }

const void* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr() : nullptr;
}

class CudaOps final : public DeviceOps {
 public:
  explicit CudaOps(at::Device device) : device_(device), guard_(device.type()) {}

  std::string_view name() const override { return "cuda"; }

  void linear(const at::Tensor& x,
              const LinearWeight& weight,
              const at::Tensor& bias,
              at::Tensor& y) const override {
    if (weight.is_coded() && x.size(0) <= kMostStepRows) {
      kernels::coded_linear_cuda(coded_linear_args(x, weight, bias, y), weight.outputs(), stream());
    } else if (weight.is_coded() || y.scalar_type() != x.scalar_type()) {
      aten_->linear(x, weight, bias, y);
    } else if (bias.defined()) {
      at::addmm_out(y, bias, x, weight.dense.t());
    } else {
      at::mm_out(y, x, weight.dense.t());
    }
  }

  void select_rows(const LinearWeight& table,
                   const at::Tensor& ids,
                   std::int64_t offset,
                   at::Tensor& y) const override {
    if (table.is_coded() || table.dense.scalar_type() != y.scalar_type()) {
      aten_->select_rows(table, ids, offset, y);
      return;
    }
    kernels::SelectRows args;
    args.dtype = dtype_of(y);
    args.table = table.dense.const_data_ptr();
    args.ids = ids.const_data_ptr<std::int64_t>();
    args.offset = offset;
    args.y = y.mutable_data_ptr();
    args.rows = y.size(0);
    args.dim = y.size(1);
    args.y_stride = y.stride(0);
    kernels::select_rows_cuda(args, stream());
  }

  void norm(const ModelConfig& config,
            const at::Tensor& x,
            const at::Tensor& weight,
            const at::Tensor& bias,
            at::Tensor& y) const override {
    kernels::norm_rows_cuda(norm_of(config, x, weight, bias, y), stream());
  }

  void norms(const ModelConfig& config,
             at::Tensor& x,
             const at::Tensor& addend,
             const NormTarget& first,
             const NormTarget* second) const override {
    kernels::NormRows args = norm_of(config, x, first.weight, first.bias, first.y);
    if (addend.defined()) {
      args.x = x.mutable_data_ptr();
      args.addend = addend.const_data_ptr();
      args.addend_stride = addend.stride(0);
    }
    if (second != nullptr) {
      args.second_weight = second->weight.const_data_ptr();
      args.second_bias = data_or_null(second->bias);
      args.second_y = second->y.mutable_data_ptr();
      args.second_y_stride = second->y.stride(0);
    }
    kernels::norm_rows_cuda(args, stream());
  }

  void rotate(const RopeTable& table, const at::Tensor& positions, at::Tensor& x) const override {
    kernels::HeadsOfRows args;
    args.dtype = dtype_of(x);
    args.query = x.mutable_data_ptr();
    args.rows = x.size(0);
    args.num_heads = x.size(1);
    args.head_dim = x.size(2);
    args.query_stride = x.stride(0);
    set_rotation(table, positions, args);
    kernels::place_heads_cuda(args, stream());
  }

  void silu_gate(const at::Tensor& gate, const at::Tensor& up, at::Tensor& y) const override {
    kernels::silu_gate_cuda(silu_gate_args(gate, up, y), stream());
  }

  void relu(at::Tensor& x) const override {
    kernels::relu_cuda(dtype_of(x), x.mutable_data_ptr(), x.numel(), stream());
  }

  void add(at::Tensor& y, const at::Tensor& x) const override {
    kernels::add_cuda(dtype_of(y), y.mutable_data_ptr(), x.const_data_ptr(), y.numel(), stream());
  }

  void place_heads(const ModelConfig& config,
                   const LayerHeads& heads,
                   const AttentionBatch* batch) const override {
    if (config.qk_norm && config.norm != NormKind::kRms) {
      DeviceOps::place_heads(config, heads, batch);
      return;
    }
    kernels::HeadsOfRows args;
    args.dtype = dtype_of(heads.query);
    args.query = heads.query.mutable_data_ptr();
    args.rows = heads.query.size(0);
    args.num_heads = heads.query.size(1);
    args.head_dim = heads.query.size(2);
    args.query_stride = heads.query.stride(0);
    args.eps = static_cast<float>(config.norm_eps);
    if (heads.query_norm != nullptr) {
      args.query_norm = heads.query_norm->const_data_ptr();
    }
    if (heads.key != nullptr) {
      args.key = heads.key->mutable_data_ptr();
      args.value = heads.value->const_data_ptr();
      args.num_kv_heads = heads.key->size(1);
      args.key_stride = heads.key->stride(0);
      args.value_stride = heads.value->stride(0);
      args.rotate_key = heads.rotates_key;
      if (heads.key_norm != nullptr) {
        args.key_norm = heads.key_norm->const_data_ptr();
      }
    }
    if (heads.table != nullptr) {
      set_rotation(*heads.table, heads.rotation_rows, args);
    }
    if (batch != nullptr) {
      args.step_rows = batch->rows;
      args.layer = batch->layer;
    }
    kernels::place_heads_cuda(args, stream());
  }

  void turn_keys(const RopeTable& table, const AttentionBatch& batch) const override {
    const at::Tensor& keys = *batch.items.front().keys;
    kernels::TurnKeys args;
    args.dtype = dtype_of(keys);
    args.rows = batch.rows;
    args.batch = std::ssize(batch.items);
    args.num_kv_heads = keys.size(0);
    args.head_dim = keys.size(2);
    args.layer = batch.layer;
    args.max_resident = most_resident(batch);
    args.cosines = table.cosines.const_data_ptr<float>();
    args.sines = table.sines.const_data_ptr<float>();
    kernels::turn_keys_cuda(args, stream());
  }

  void move_rows(const RowMoves& moves) const override {
    const std::span all(moves.slots.const_data_ptr<std::int32_t>(),
                        static_cast<std::size_t>(moves.slots.numel()));
    if (std::ranges::all_of(all, [](std::int32_t slot) { return slot < 0; })) {
      return;
    }
    // Not read where they are: LibTorch keeps pinned memory for its own copies, not for kernels.
    moves.device_slots.copy_(moves.slots, /*non_blocking=*/true);
    const at::Tensor& keys = moves.caches.front()->all_keys();
    kernels::MoveRows args;
    args.dtype = dtype_of(keys);
    args.rows = moves.rows;
    args.slots = moves.device_slots.const_data_ptr<std::int32_t>();
    args.batch = moves.slots.size(0);
    args.num_layers = moves.slots.size(1);
    args.num_kv_heads = moves.slots.size(2);
    args.head_dim = keys.size(3);
    kernels::move_rows_cuda(args, stream());
  }

  void fetch(const PayloadBatch& batch) const override {
    const auto has_payload = [](const AttentionItem& item) { return item.payload != nullptr; };
    const auto first = std::ranges::find_if(batch.items, has_payload);
    if (first == batch.items.end()) {
      return;
    }
    const at::Tensor& keys = *first->keys;
    const HostPayload& payload = *first->payload;
    const std::int64_t head_dim = keys.size(2);
    kernels::fetch_payloads_cuda(batch.copies,
                                 std::ssize(batch.items),
                                 batch.num_heads,
                                 keys.size(0),
                                 head_dim,
                                 dtype_of(payload.is_partial() ? payload.output : keys),
                                 batch.payloads,
                                 stream());
  }

  void resident_logits(const at::Tensor& query, const AttentionBatch& batch) const override {
    kernels::attend_resident_cuda(attention_of(query, batch), stream());
  }

  void merge(const at::Tensor& query, const AttentionBatch& batch, at::Tensor& out) const override {
    kernels::DecodeAttention args = attention_of(query, batch);
    args.out = out.mutable_data_ptr();
    args.out_stride = out.stride(0);
    args.payloads = batch.payloads;
    args.lse = batch.lse;
    args.max_chosen = most_chosen(batch);
    kernels::merge_cuda(args, stream());
  }

  PartialAttention partial_attention(const at::Tensor& query,
                                     const at::Tensor& keys,
                                     const at::Tensor& values,
                                     bool causal) const override {
    return aten_->partial_attention(query, keys, values, causal);
  }

  at::Tensor column_sums(const at::Tensor& query,
                         const at::Tensor& keys,
                         const at::Tensor& lse,
                         bool causal) const override {
    return aten_->column_sums(query, keys, lse, causal);
  }

  void plan(const at::Tensor& query, const PlanBatch& batch) const override {
    const at::Tensor& keys = *batch.items.front().keys;
    kernels::PlanTokens args;
    args.dtype = dtype_of(query);
    args.rows = batch.rows;
    args.batch = query.size(0);
    args.groups = keys.size(1);
    args.num_queries = query.size(1) / keys.size(1);
    args.head_dim = query.size(2);
    args.layer = batch.layer;
    args.query = query.const_data_ptr();
    args.query_stride = query.stride(0);
    args.max_tokens = batch.counted().max_tokens;
    const auto counts = [](const PlanItem& item) { return item.alpha.has_value(); };
    kernels::guess_logits_cuda(args, stream());
    if (std::ranges::any_of(batch.items, counts)) {
      kernels::count_near_cuda(args, stream());
    }
    kernels::largest_positions_cuda(args, stream());
  }

  void weigh(const at::Tensor& query,
             const AttentionBatch& batch,
             const PlanBatch& kept) const override {
    kernels::DecodeAttention attention = attention_of(query, batch);
    attention.payloads = batch.payloads;
    attention.weights_only = true;
    attention.max_chosen = most_chosen(batch);
    kernels::merge_cuda(attention, stream());
    kernels::PlanTokens ranking;
    ranking.rows = kept.rows;
    ranking.batch = query.size(0);
    ranking.groups = query.size(1);
    ranking.layer = kept.layer;
    ranking.max_tokens = kept.counted().max_tokens;
    kernels::largest_positions_cuda(ranking, stream());
  }

  void sum_kept(const AttentionBatch& batch,
                const PlanBatch& kept,
                at::Tensor& out) const override {
    kernels::DecodeAttention args = attention_of(out, batch);
    args.out = out.mutable_data_ptr();
    args.out_stride = out.stride(0);
    args.payloads = batch.payloads;
    kernels::sum_kept_cuda(
        args, {.rows = kept.rows, .max_kept = kept.counted().max_places}, stream());
  }

 private:
  void* stream() const {
#if HYBRIDGEN_KNOWS_STREAM_HANDLES
    return guard_.getStream(device_).native_handle();
#else
    throw DeviceError("[device] LibTorch before 2.13 has no stream handles; allowed: math aten");
#endif
  }

  static kernels::NormRows norm_of(const ModelConfig& config,
                                   const at::Tensor& x,
                                   const at::Tensor& weight,
                                   const at::Tensor& bias,
                                   at::Tensor& y) {
    const bool has_heads = x.dim() == 3;
    kernels::NormRows args;
    args.dtype = dtype_of(x);
    args.x = const_cast<void*>(x.const_data_ptr());  // written only with an addend
    args.weight = weight.const_data_ptr();
    args.bias = data_or_null(bias);
    args.y = y.mutable_data_ptr();
    args.is_layer_norm = config.norm == NormKind::kLayer;
    args.rows = x.size(0);
    args.heads = has_heads ? x.size(1) : 1;
    args.dim = x.size(-1);
    args.x_stride = x.stride(0);
    args.y_stride = y.stride(0);
    args.eps = static_cast<float>(config.norm_eps);
    return args;
  }

  static void set_rotation(const RopeTable& table,
                           const at::Tensor& rows,
                           kernels::HeadsOfRows& args) {
    args.rotation_rows = rows.const_data_ptr<std::int64_t>();
    args.cosines = table.cosines.const_data_ptr<float>();
    args.sines = table.sines.const_data_ptr<float>();
  }

  static kernels::DecodeAttention attention_of(const at::Tensor& query,
                                               const AttentionBatch& batch) {
    kernels::DecodeAttention args;
    args.dtype = dtype_of(query);
    args.query = query.const_data_ptr();
    args.query_stride = query.stride(0);
    args.batch = std::ssize(batch.items);
    args.num_heads = query.size(1);
    args.num_kv_heads = batch.items.front().keys->size(0);
    args.head_dim = query.size(2);
    args.layer = batch.layer;
    args.rows = batch.rows;
    args.max_resident = most_resident(batch);
    args.weights_only = batch.weights_only;
    return args;
  }

  static std::int64_t most_chosen(const AttentionBatch& batch) {
    std::int64_t most = 0;
    for (const AttentionItem& item : batch.items) {
      if (item.payload != nullptr && !item.payload->is_partial()) {
        most = std::max(most, item.payload->count);
      }
    }
    return most;
  }

  static std::int64_t most_resident(const AttentionBatch& batch) {
    return std::ranges::max(batch.items, {}, &AttentionItem::num_resident).num_resident;
  }

  at::Device device_;
  c10::impl::VirtualGuardImpl guard_;
  std::unique_ptr<DeviceOps> aten_ = make_aten_ops();
};

}  // namespace

bool runs_cuda_kernels() {
  return HYBRIDGEN_KNOWS_STREAM_HANDLES != 0 && kernels::has_cuda_kernels();
}

std::unique_ptr<DeviceOps> make_cuda_ops(at::Device device) {
  return std::make_unique<CudaOps>(device);
}

}  // namespace hybridgen
