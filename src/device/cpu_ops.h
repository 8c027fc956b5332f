// SPDX-License-Identifier: Apache-2.0
// The operations of a CPU device, by the kernels: cpu_ops.cpp has the dense ones, cpu_coded_ops.cpp
// those of coded weights, cpu_attention_ops.cpp those of a decode step over keys and values,
// cpu_prefill_ops.cpp a prompt's.
#pragma once

#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <type_traits>

#include "device/device_ops.h"
#include "device/linear_form.h"
#include "device/torch_types.h"
#include "kernels/coded_linear.h"
#include "kernels/cpu_kernels.h"
#include "runtime/worker_pool.h"

namespace hybridgen {

class CpuOps final : public DeviceOps {
 public:
  /// See make_cpu_ops.
  CpuOps(std::string_view isa, WorkerPool* pool, RowsOf rows_of);

  std::string_view name() const override { return "kernels"; }

  void linear(const at::Tensor& x,
              const LinearWeight& weight,
              const at::Tensor& bias,
              at::Tensor& y) const override;
  void select_rows(const LinearWeight& table,
                   const at::Tensor& ids,
                   std::int64_t offset_rows,
                   at::Tensor& y) const override;
  void norm(const ModelConfig& config,
            const at::Tensor& x,
            const at::Tensor& weight,
            const at::Tensor& bias,
            at::Tensor& y) const override;
  void rotate(const RopeTable& table, const at::Tensor& positions, at::Tensor& x) const override;
  void silu_gate(const at::Tensor& gate, const at::Tensor& up, at::Tensor& y) const override;
  void relu(at::Tensor& x) const override;
  void add(at::Tensor& y, const at::Tensor& x) const override;
  void append_row(const at::Tensor& rows,
                  std::int64_t row,
                  const at::Tensor& destination,
                  std::int64_t slot) const override;
  void fetch(const PayloadBatch& /*batch*/) const override {}
  void resident_logits(const at::Tensor& query, const AttentionBatch& batch) const override;
  void merge(const at::Tensor& query, const AttentionBatch& batch, at::Tensor& out) const override;
  PartialAttention partial_attention(const at::Tensor& query,
                                     const at::Tensor& keys,
                                     const at::Tensor& values,
                                     bool causal) const override;
  void add_partial(PartialAttention& sum, const PartialAttention& part) const override;
  at::Tensor column_sums(const at::Tensor& query,
                         const at::Tensor& keys,
                         const at::Tensor& lse,
                         bool causal) const override;
  void plan(const at::Tensor& query, const PlanBatch& batch) const override;

 private:
  /// Smaller pieces of work than this (elements) are not worth waking another thread for.
  static constexpr std::int64_t kParallelGrain = 1 << 15;

  /// One KV head and the query heads it serves.
  struct Group {
    std::int64_t index = 0;        ///< KV head
    std::int64_t num_queries = 0;  ///< R
    std::int64_t head_dim = 0;
    std::int64_t first_head() const { return index * num_queries; }
  };

  static DType dtype_of(const at::Tensor& tensor) { return to_dtype(tensor.scalar_type()); }

  template <typename Pointer>
  static Pointer* offset(Pointer* data, std::int64_t elements, std::int64_t element_size) {
    using Byte = std::conditional_t<std::is_const_v<Pointer>, const std::byte, std::byte>;
    return static_cast<Byte*>(data) + elements * element_size;
  }

  /// Calls function(begin, end) for ranges of `grain` that cover [0, count), on all threads of the
  /// pass: the pool's for the few rows of a decode step, LibTorch's beside its matrix products.
  template <typename Function>
  void for_ranges(std::int64_t rows,
                  std::int64_t count,
                  std::int64_t grain,
                  const Function& function) const {
    if (pool_ == nullptr || rows > kMostStepRows) {
      at::parallel_for(0, count, grain, function);
      return;
    }
    if (count <= grain) {
      function(std::int64_t{0}, count);
      return;
    }
    pool_->for_each((count + grain - 1) / grain, [&](std::int64_t index) {
      function(index * grain, std::min(count, (index + 1) * grain));
    });
  }

  /// The halves of plan() for one item: guesses of its keys in a layer, and the places of the
  /// `count` largest.
  void guess(const at::Tensor& queries, const at::Tensor& keys, const PlanItem& item) const;
  void rank(const PlanItem& item, std::int64_t count) const;

  /// linear() by CpuKernels::prepared_linear, which wants memory: false where there is none.
  bool prepared_linear(const kernels::LinearArgs& args, std::int64_t outputs) const;

  /// Weight rows that a thread takes of a streamed weight at a time.
  std::int64_t outputs_per_piece(const LinearWeight& weight) const;

  /// linear() of a coded weight: up to 64 rows read the codes, more of them restored rows.
  void coded_linear(const at::Tensor& x,
                    const LinearWeight& weight,
                    const at::Tensor& bias,
                    at::Tensor& y) const;
  void stream_codes(const at::Tensor& x,
                    const LinearWeight& weight,
                    const at::Tensor& bias,
                    at::Tensor& y) const;
  void restore_in_pieces(const at::Tensor& x,
                         const LinearWeight& weight,
                         const at::Tensor& bias,
                         at::Tensor& y) const;
  void select_coded_rows(const LinearWeight& table,
                         const at::Tensor& ids,
                         std::int64_t offset_rows,
                         at::Tensor& y) const;

  template <typename Function>
  void for_rows(std::int64_t rows, std::int64_t row_elements, const Function& function) const {
    for_ranges(rows, rows, std::max<std::int64_t>(1, kParallelGrain / row_elements), function);
  }

  template <typename Function>
  void for_elements(const at::Tensor& x, const Function& function) const {
    for_ranges(x.size(0), x.numel(), kParallelGrain, function);
  }

  /// A run of tokens that are attended to together: of the resident ones, or of the payload's.
  struct Part {
    std::int64_t index = 0;
    std::int64_t first = 0;
    std::int64_t count = 0;
  };

  /// Ranges that a thread takes of `count` of them, so that threads which start late leave little
  /// to wait for, and each has memory to read in one go.
  std::int64_t parts_per_piece(std::int64_t count) const;

  /// Calls function(item, group, part) for all parts of all groups, of as many tokens of an item as
  /// tokens_of(item).
  template <typename TokensOf, typename Function>
  void for_parts(const at::Tensor& query,
                 std::span<const AttentionItem> items,
                 const TokensOf& tokens_of,
                 const Function& function) const {
    const std::int64_t groups = items.empty() ? 1 : items.front().keys->size(0);
    std::int64_t num_parts = 0;
    std::int64_t tokens = 0;
    for (const AttentionItem& item : items) {
      num_parts += groups * kernels::part_count(tokens_of(item));
      tokens += tokens_of(item);
    }
    const bool is_small = tokens * query.size(1) * query.size(2) < kParallelGrain;
    const std::int64_t grain = is_small ? num_parts : parts_per_piece(num_parts);
    for_ranges(query.size(0), num_parts, grain, [&](std::int64_t begin, std::int64_t end) {
      std::int64_t before = 0;
      for (const AttentionItem& item : items) {
        const std::int64_t of_group = kernels::part_count(tokens_of(item));
        const std::int64_t after = before + groups * of_group;
        for (std::int64_t i = std::max(begin, before); i < std::min(end, after); ++i) {
          Part part;
          part.index = (i - before) % of_group;
          part.first = part.index * kernels::kPartTokens;
          part.count = std::min(kernels::kPartTokens, tokens_of(item) - part.first);
          function(item, group_of(query, groups, (i - before) / of_group), part);
        }
        before = after;
      }
    });
  }

  static Group group_of(const at::Tensor& query, std::int64_t groups, std::int64_t index) {
    return {index, query.size(1) / groups, query.size(2)};
  }

  template <typename Function>
  void for_groups(const at::Tensor& query,
                  std::span<const AttentionItem> items,
                  const Function& function) const {
    const std::int64_t groups = items.empty() ? 1 : items.front().keys->size(0);
    const std::int64_t num_tasks = static_cast<std::int64_t>(items.size()) * groups;
    std::int64_t elements = 0;
    for (const AttentionItem& item : items) {
      elements += item.merged_stride();
    }
    elements *= query.size(1) * query.size(2);
    const std::int64_t grain = elements < kParallelGrain ? num_tasks : 1;
    for_ranges(query.size(0), num_tasks, grain, [&](std::int64_t begin, std::int64_t end) {
      for (std::int64_t task = begin; task < end; ++task) {
        function(items[static_cast<std::size_t>(task / groups)],
                 group_of(query, groups, task % groups));
      }
    });
  }

  /// The group's query rows in float32 with the scale applied, in scratch of the calling thread.
  const float* scaled_queries(const at::Tensor& query,
                              const AttentionItem& item,
                              const Group& group) const;

  /// Of all query rows [T, H, D] of a KV head's query heads and all its keys [G, N, D].
  static kernels::PrefillAttentionArgs prefill_args(const at::Tensor& query,
                                                    const at::Tensor& keys,
                                                    std::int64_t group);

  /// Where a part's result lies in item.parts: resident ones first, group by group.
  static kernels::AttentionPart part_of(const AttentionItem& item,
                                        const Group& group,
                                        std::int64_t index,
                                        bool is_host);

  /// What attending to any part has in common, with scratch of the calling thread.
  kernels::AttendArgs attend_args(const at::Tensor& query,
                                  const AttentionItem& item,
                                  const Group& group) const;
  void attend_resident(const at::Tensor& query,
                       const AttentionItem& item,
                       const Group& group,
                       const Part& part) const;
  void attend_payload(const at::Tensor& query,
                      const AttentionItem& item,
                      const Group& group,
                      const Part& part) const;

  /// merge() of one KV head of one request, once its parts are there.
  void merge_group(const AttentionItem& item, const Group& group, at::Tensor& out) const;
  /// Softmax weights into merged_logits, from the logits that the parts left.
  void write_weights(const AttentionItem& item, const Group& group, const float* lse) const;

  const kernels::CpuKernels& kernels_;
  const kernels::CodedKernels& coded_kernels_;
  WorkerPool* pool_;
  RowsOf rows_of_;
};

}  // namespace hybridgen
