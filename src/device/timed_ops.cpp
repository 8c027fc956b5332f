// SPDX-License-Identifier: Apache-2.0
// A decode step as a timed device has it: every operation queues as many launches as CudaOps makes
// for it, each with what its kernel reads, writes and computes (kernel_costs.h), and computes
// nothing. What CudaOps leaves to AtenOps is left to it here, too: the device then counts
// LibTorch's operators one by one.
#include <algorithm>
#include <initializer_list>
#include <string_view>

#include "device/device_ops.h"
#include "device/kernel_costs.h"
#include "device/linear_form.h"
#include "emulated/backend.h"

namespace hybridgen {
namespace {

using emulated::TimedOperation;

// As its comment in kernels/cuda_planning.h says.
constexpr int kRankingLaunches = 5;
constexpr int kCountLaunches = 2;

class TimedOps final : public DeviceOps {
 public:
  explicit TimedOps(at::Device device) : device_(device) {}

  std::string_view name() const override { return "timed"; }

  void linear(const at::Tensor& x,
              const LinearWeight& weight,
              const at::Tensor& bias,
              at::Tensor& y) const override {
    const bool is_mixed = !weight.is_coded() && y.scalar_type() != x.scalar_type();
    if (is_mixed || (weight.is_coded() && x.size(0) > kMostStepRows)) {
      aten_->linear(x, weight, bias, y);
      return;
    }
    launch("linear", product_cost(x, weight, bias, y));
  }

  void select_rows(const LinearWeight& table,
                   const at::Tensor& ids,
                   std::int64_t offset,
                   at::Tensor& y) const override {
    if (table.is_coded() || table.dense.scalar_type() != y.scalar_type()) {
      aten_->select_rows(table, ids, offset, y);
      return;
    }
    launch_elementwise("select_rows", {ids, y}, {y});
  }

  void norm(const ModelConfig& /*config*/,
            const at::Tensor& x,
            const at::Tensor& weight,
            const at::Tensor& bias,
            at::Tensor& y) const override {
    launch_elementwise("norm_rows", {x, weight, bias}, {y});
  }

  void norms(const ModelConfig& /*config*/,
             at::Tensor& x,
             const at::Tensor& addend,
             const NormTarget& first,
             const NormTarget* second) const override {
    const at::Tensor none;
    launch_elementwise(
        "norm_rows",
        {x,
         addend,
         first.weight,
         first.bias,
         second == nullptr ? none : second->weight,
         second == nullptr ? none : second->bias},
        {first.y, addend.defined() ? x : none, second == nullptr ? none : second->y});
  }

  void rotate(const RopeTable& table, const at::Tensor& positions, at::Tensor& x) const override {
    launch("place_heads",
           place_heads_cost({.query = x, .table = &table, .rotation_rows = positions}, nullptr));
  }

  void silu_gate(const at::Tensor& gate, const at::Tensor& up, at::Tensor& y) const override {
    launch_elementwise("silu_gate", {gate, up}, {y});
  }
  void relu(at::Tensor& x) const override { launch_elementwise("relu", {x}, {x}); }
  void add(at::Tensor& y, const at::Tensor& x) const override {
    launch_elementwise("add", {y, x}, {y});
  }

  void place_heads(const ModelConfig& config,
                   const LayerHeads& heads,
                   const AttentionBatch* batch) const override {
    if (config.qk_norm && config.norm != NormKind::kRms) {
      DeviceOps::place_heads(config, heads, batch);
      return;
    }
    launch("place_heads", place_heads_cost(heads, batch));
  }

  void turn_keys(const RopeTable& /*table*/, const AttentionBatch& batch) const override {
    if (has_residents(batch)) launch("turn_keys", turn_keys_cost(batch.items));
  }

  void move_rows(const RowMoves& moves) const override {
    const std::span all(moves.slots.const_data_ptr<std::int32_t>(),
                        static_cast<std::size_t>(moves.slots.numel()));
    const auto count = std::ranges::count_if(all, [](std::int32_t slot) { return slot >= 0; });
    if (count == 0) return;
    moves.device_slots.copy_(moves.slots, /*non_blocking=*/true);
    launch("move_rows", move_rows_cost(moves, count));
  }

  void fetch(const PayloadBatch& batch) const override {
    if (std::ranges::any_of(batch.items, &AttentionItem::payload)) {
      launch("fetch_payloads", fetch_cost(batch));
    }
  }

  void resident_logits(const at::Tensor& query, const AttentionBatch& batch) const override {
    if (has_residents(batch)) {
      launch("attend_resident", resident_cost(query, batch.items, batch.weights_only));
    }
  }

  void merge(const at::Tensor& query,
             const AttentionBatch& batch,
             at::Tensor& /*out*/) const override {
    launch("merge", merge_cost(query, batch.items));
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
    launch("turn_queries", turn_queries_cost(query, batch.items));
    launch("guess_logits", guess_cost(query, batch.items));
    const auto counts = [](const PlanItem& item) { return item.alpha.has_value(); };
    if (std::ranges::any_of(batch.items, counts)) {
      for (int i = 0; i < kCountLaunches; ++i) {
        launch("count_near", count_cost(batch.items));
      }
    }
    launch_ranking(batch.items);
  }

  void weigh(const at::Tensor& query,
             const AttentionBatch& batch,
             const PlanBatch& kept) const override {
    launch("merge", weigh_cost(query, batch.items));
    const auto ranks = [](const PlanItem& item) { return item.most > 0; };
    if (std::ranges::any_of(kept.items, ranks)) launch_ranking(kept.items);
  }

  void sum_kept(const AttentionBatch& batch,
                const PlanBatch& kept,
                at::Tensor& out) const override {
    launch("sum_kept", sum_kept_cost(batch.items, kept.items, out));
  }

 private:
  void launch_ranking(std::span<const PlanItem> items) const {
    for (int i = 0; i < kRankingLaunches; ++i) {
      TimedOperation cost = rank_cost(items);
      if (i + 1 == kRankingLaunches) {
        for (const PlanItem& item : items) {
          cost.bytes_written += static_cast<std::int64_t>(item.places.nbytes());
        }
      }
      launch("largest_positions", cost);
    }
  }

  static bool has_residents(const AttentionBatch& batch) {
    return std::ranges::any_of(batch.items,
                               [](const AttentionItem& item) { return item.num_resident > 0; });
  }

  void launch(std::string_view kernel, const TimedOperation& cost) const {
    emulated::device_of(device_).launch(
        emulated::index_of(emulated::current_stream(device_)), kernel, cost);
  }

  void launch_elementwise(std::string_view kernel,
                          std::initializer_list<at::Tensor> reads,
                          std::initializer_list<at::Tensor> writes) const {
    launch(kernel, elementwise_cost(reads, writes));
  }

  at::Device device_;
  std::unique_ptr<DeviceOps> aten_ = make_aten_ops();
};

}  // namespace

std::unique_ptr<DeviceOps> make_timed_ops(at::Device device) {
  return std::make_unique<TimedOps>(device);
}

}  // namespace hybridgen
