// SPDX-License-Identifier: Apache-2.0
#include <ATen/Parallel.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <exception>
#include <vector>

#include "device/device_ops.h"
#include "device/own_error.h"
#include "device/torch_types.h"
#include "hybridgen/core/error.h"
#include "kernels/cpu_kernels.h"
#include "kernels/onednn_linear.h"
#include "runtime/worker_pool.h"

namespace hybridgen {
namespace {

// Above this many rows a projection is a matrix product, which libraries do best: oneDNN in
// float32, where LibTorch takes MKL's, and LibTorch in 16 bits. Below, it reads the weights once
// and our kernel runs at the memory limit (docs/kernels.md), but does not use the tile registers of
// a CPU that has them.
constexpr std::int64_t kMaxStreamedRows = 64;
constexpr std::int64_t kMaxStreamedRowsBesideTiles = 16;
// Smaller pieces of work than this (elements) are not worth waking another thread for.
constexpr std::int64_t kParallelGrain = 1 << 15;
// A piece of a streamed weight: long enough to be read in bursts, short enough that threads which
// start late or read slowly leave little to wait for.
constexpr std::int64_t kLeastPieceBytes = std::int64_t{32} << 10;
constexpr std::int64_t kMostPieceBytes = std::int64_t{1} << 20;
constexpr std::int64_t kPiecesPerThread = 8;
// Query rows, over the heads of a group, that a prefill task attends with.
constexpr std::int64_t kPrefillTaskRows = 288;
// Tokens whose logits a thread guesses at a time.
constexpr std::int64_t kGuessedTokens = 2048;

DType dtype_of(const at::Tensor& tensor) { return to_dtype(tensor.scalar_type()); }

class CpuOps final : public DeviceOps {
 public:
  CpuOps(std::string_view isa, WorkerPool* pool)
      : kernels_(kernels::cpu_kernels(kernels::resolve_isa(isa))),
        pool_(pool),
        max_streamed_rows_(kernels_.isa == kernels::Isa::kAmx ? kMaxStreamedRowsBesideTiles
                                                              : kMaxStreamedRows) {}

  std::string_view name() const override { return "kernels"; }

  void linear(const at::Tensor& x,
              const at::Tensor& weight,
              const at::Tensor& bias,
              at::Tensor& y) const override {
    const std::int64_t rows = x.size(0);
    kernels::LinearArgs args;
    args.dtype = dtype_of(x);
    args.y_dtype = dtype_of(y);
    args.x = x.const_data_ptr();
    args.weight = weight.const_data_ptr();
    args.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
    args.y = y.mutable_data_ptr();
    args.rows = rows;
    args.in_features = x.size(1);
    args.x_stride = x.stride(0);
    args.y_stride = y.stride(0);
    if (rows > max_streamed_rows_ && y.scalar_type() == x.scalar_type() &&
        multiply_by_library(x, weight, bias, y, args)) {
      return;
    }
    for_ranges(
        rows, weight.size(0), outputs_per_piece(weight), [&](std::int64_t begin, std::int64_t end) {
          kernels_.linear(args, begin, end);
        });
  }

  void select_rows(const at::Tensor& table,
                   const at::Tensor& ids,
                   std::int64_t offset_rows,
                   at::Tensor& y) const override {
    const std::int64_t element = table.element_size();
    const std::int64_t* row = ids.const_data_ptr<std::int64_t>();
    for (std::int64_t r = 0; r < ids.size(0); ++r) {
      std::memcpy(offset(y.mutable_data_ptr(), r * y.stride(0), element),
                  offset(table.const_data_ptr(), (row[r] + offset_rows) * table.stride(0), element),
                  static_cast<std::size_t>(table.size(1) * element));
    }
  }

  void norm(const ModelConfig& config,
            const at::Tensor& x,
            const at::Tensor& weight,
            const at::Tensor& bias,
            at::Tensor& y) const override {
    kernels::NormArgs args;
    args.dtype = dtype_of(x);
    args.x = x.const_data_ptr();
    args.weight = weight.const_data_ptr();
    args.bias = bias.defined() ? bias.const_data_ptr() : nullptr;
    args.y = y.mutable_data_ptr();
    args.dim = x.size(1);
    args.x_stride = x.stride(0);
    args.y_stride = y.stride(0);
    args.eps = static_cast<float>(config.norm_eps);
    const auto apply = config.norm == NormKind::kRms ? kernels_.rms_norm : kernels_.layer_norm;
    const std::int64_t element = x.element_size();
    for_rows(x.size(0), args.dim, [&](std::int64_t begin, std::int64_t end) {
      kernels::NormArgs part = args;
      part.x = offset(args.x, begin * args.x_stride, element);
      part.y = offset(args.y, begin * args.y_stride, element);
      part.rows = end - begin;
      apply(part);
    });
  }

  void rotate(const RopeTable& table, const at::Tensor& positions, at::Tensor& x) const override {
    kernels::RotateArgs args;
    args.dtype = dtype_of(x);
    args.x = x.mutable_data_ptr();
    args.positions = positions.const_data_ptr<std::int64_t>();
    args.cosines = table.cosines.const_data_ptr<float>();
    args.sines = table.sines.const_data_ptr<float>();
    args.heads = x.size(1);
    args.head_dim = x.size(2);
    args.x_stride = x.stride(0);
    const std::int64_t element = x.element_size();
    for_rows(x.size(0), args.heads * args.head_dim, [&](std::int64_t begin, std::int64_t end) {
      kernels::RotateArgs part = args;
      part.x = offset(args.x, begin * args.x_stride, element);
      part.positions += begin;
      part.rows = end - begin;
      kernels_.rotate(part);
    });
  }

  void silu_gate(const at::Tensor& gate, const at::Tensor& up, at::Tensor& y) const override {
    kernels::SiluGateArgs args;
    args.dtype = dtype_of(gate);
    args.gate = gate.const_data_ptr();
    args.up = up.const_data_ptr();
    args.y = y.mutable_data_ptr();
    args.dim = gate.size(1);
    args.gate_stride = gate.stride(0);
    args.up_stride = up.stride(0);
    args.y_stride = y.stride(0);
    const std::int64_t element = gate.element_size();
    for_rows(gate.size(0), args.dim, [&](std::int64_t begin, std::int64_t end) {
      kernels::SiluGateArgs part = args;
      part.gate = offset(args.gate, begin * args.gate_stride, element);
      part.up = offset(args.up, begin * args.up_stride, element);
      part.y = offset(args.y, begin * args.y_stride, element);
      part.rows = end - begin;
      kernels_.silu_gate(part);
    });
  }

  void relu(at::Tensor& x) const override {
    const std::int64_t element = x.element_size();
    for_elements(x, [&](std::int64_t begin, std::int64_t end) {
      kernels_.relu(dtype_of(x), offset(x.mutable_data_ptr(), begin, element), end - begin);
    });
  }

  void add(at::Tensor& y, const at::Tensor& x) const override {
    const std::int64_t element = x.element_size();
    for_elements(x, [&](std::int64_t begin, std::int64_t end) {
      kernels_.add(dtype_of(x),
                   offset(y.mutable_data_ptr(), begin, element),
                   offset(x.const_data_ptr(), begin, element),
                   end - begin);
    });
  }

  void append_row(const at::Tensor& rows,
                  std::int64_t row,
                  at::Tensor& destination,
                  std::int64_t slot) const override {
    const std::int64_t element = rows.element_size();
    const std::int64_t head_dim = rows.size(2);
    for (std::int64_t g = 0; g < rows.size(1); ++g) {
      std::memcpy(offset(destination.mutable_data_ptr(),
                         g * destination.stride(0) + slot * destination.stride(1),
                         element),
                  offset(rows.const_data_ptr(), row * rows.stride(0) + g * rows.stride(1), element),
                  static_cast<std::size_t>(head_dim * element));
    }
  }

  void resident_logits(const at::Tensor& query,
                       std::span<const AttentionItem> items) const override {
    for_groups(query, items, [&](const AttentionItem& item, const Group& group) {
      kernels::RowLogitsArgs args;
      args.dtype = dtype_of(*item.keys);
      args.keys = offset(item.keys->const_data_ptr(),
                         group.index * item.keys->stride(0) + item.first_slot * group.head_dim,
                         item.keys->element_size());
      args.key_stride = item.keys->stride(1);
      args.head_dim = group.head_dim;
      args.count = item.num_resident;
      args.queries = scaled_queries(query, item, group);
      args.num_queries = group.num_queries;
      args.logits =
          item.resident_logits->mutable_data_ptr<float>() + group.first_head() * item.num_resident;
      args.logits_stride = item.num_resident;
      kernels_.row_logits(args);
    });
  }

  void merge(const at::Tensor& query,
             std::span<const AttentionItem> items,
             at::Tensor& out) const override {
    for_groups(query, items, [&](const AttentionItem& item, const Group& group) {
      const HostPayload* payload = item.payload;
      const bool is_partial = payload != nullptr && payload->is_partial();
      const bool has_rows = payload != nullptr && !is_partial;
      const std::int64_t host_count = has_rows ? payload->tokens_of(group.index) : 0;
      const std::int64_t stride = item.merged_stride();
      const std::int64_t element = query.element_size();
      float* merged = item.merged_logits->mutable_data_ptr<float>() + group.first_head() * stride;
      const float* resident =
          item.resident_logits->const_data_ptr<float>() + group.first_head() * item.num_resident;
      const std::int64_t first_chosen = has_rows ? group.first_head() * payload->count : 0;
      if (host_count > 0 && payload->keys.defined()) {
        score_shipped_keys(query, item, group);
      }
      kernels::concat_logits(
          host_count > 0 ? payload->logits.const_data_ptr<float>() + first_chosen : nullptr,
          has_rows ? payload->count : 0,
          host_count,
          resident,
          item.num_resident,
          item.num_resident,
          merged,
          stride,
          group.num_queries);

      kernels::SoftmaxValuesArgs args;
      args.dtype = dtype_of(query);
      args.logits = merged;
      args.logits_stride = stride;
      args.num_queries = group.num_queries;
      args.head_dim = group.head_dim;
      args.host_count = host_count;
      if (host_count > 0) {
        if (payload->index.defined()) {
          args.host_index = payload->index.const_data_ptr<std::int32_t>() + first_chosen;
        }
        args.host_values = offset(
            payload->values.const_data_ptr(), group.index * payload->values.stride(0), element);
      }
      args.resident_count = item.num_resident;
      args.resident_values =
          offset(item.values->const_data_ptr(),
                 group.index * item.values->stride(0) + item.first_slot * group.head_dim,
                 element);
      args.resident_stride = item.values->stride(1);
      args.out = offset(out.mutable_data_ptr(),
                        item.row * out.stride(0) + group.first_head() * group.head_dim,
                        element);
      args.out_stride = group.head_dim;
      if (!is_partial) {
        kernels_.softmax_values(args);
        return;
      }
      thread_local std::vector<float> lse;
      lse.resize(static_cast<std::size_t>(group.num_queries));
      args.lse = lse.data();
      kernels_.softmax_values(args);
      kernels_.merge_outputs(
          {.dtype = args.dtype,
           .rows = group.num_queries,
           .head_dim = group.head_dim,
           .out = args.out,
           .out_stride = group.head_dim,
           .lse = lse.data(),
           .other = offset(
               payload->output.const_data_ptr(), group.first_head() * group.head_dim, element),
           .other_stride = group.head_dim,
           .other_lse = payload->lse.const_data_ptr<float>() + group.first_head()});
    });
  }

  PartialAttention partial_attention(const at::Tensor& query,
                                     const at::Tensor& keys,
                                     const at::Tensor& values,
                                     bool causal) const override {
    const std::int64_t rows = query.size(0);
    const std::int64_t heads = query.size(1);
    const std::int64_t head_dim = query.size(2);
    const std::int64_t groups = keys.size(0);
    const std::int64_t per_group = heads / groups;
    const at::Tensor out = at::empty({heads, rows, head_dim}, at::kFloat);
    const at::Tensor lse = at::empty({heads, rows}, at::kFloat);
    // A block of keys is prepared once for so many rows of the group's heads: they still fit the
    // second-level cache.
    const std::int64_t block = std::max<std::int64_t>(24, kPrefillTaskRows / per_group);
    const std::int64_t blocks = (rows + block - 1) / block;
    const std::int64_t element = query.element_size();
    at::parallel_for(0, groups * blocks, 1, [&](std::int64_t begin, std::int64_t end) {
      thread_local std::vector<float> scratch;
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t group = task / blocks;
        // Later rows see more keys: from both ends by turns, so that threads get as much.
        const std::int64_t turn = task % blocks;
        const std::int64_t first = (turn % 2 == 0 ? turn / 2 : blocks - 1 - turn / 2) * block;
        const std::int64_t head = group * per_group;
        kernels::PrefillAttentionArgs args;
        args.dtype = dtype_of(query);
        args.queries = offset(
            query.const_data_ptr(), first * query.stride(0) + head * query.stride(1), element);
        args.query_row_stride = query.stride(0);
        args.num_queries = per_group;
        args.rows = std::min(block, rows - first);
        args.head_dim = head_dim;
        args.scale = 1.0F / std::sqrt(static_cast<float>(head_dim));
        args.keys = offset(keys.const_data_ptr(), group * keys.stride(0), element);
        args.key_stride = keys.stride(1);
        args.values = offset(values.const_data_ptr(), group * values.stride(0), element);
        args.value_stride = values.stride(1);
        args.count = keys.size(1);
        args.is_causal = causal;
        args.first_row = first;
        args.out = out.mutable_data_ptr<float>() + (head * rows + first) * head_dim;
        args.out_head_stride = rows * head_dim;
        args.lse = lse.mutable_data_ptr<float>() + head * rows + first;
        args.lse_head_stride = rows;
        scratch.resize(static_cast<std::size_t>(kernels_.prefill_scratch(args)));
        args.scratch = scratch.data();
        kernels_.prefill_attention(args);
      }
    });
    return {out, lse};
  }

  void guess_logits(const at::Tensor& queries,
                    const at::Tensor& keys,
                    at::Tensor& guesses) const override {
    const std::int64_t num_queries = queries.size(1);
    const std::int64_t width = queries.size(2);
    const std::int64_t tokens = guesses.size(1);
    const at::Tensor rows = queries.to(at::kFloat).contiguous();
    const std::int64_t chunks = (tokens + kGuessedTokens - 1) / kGuessedTokens;
    const std::int64_t products = std::min(tokens, kGuessedTokens) * num_queries * width;
    const std::int64_t grain = std::max<std::int64_t>(1, kParallelGrain / products);
    for_ranges(1, queries.size(0) * chunks, grain, [&](std::int64_t begin, std::int64_t end) {
      thread_local std::vector<float> logits;
      logits.resize(static_cast<std::size_t>(num_queries * kGuessedTokens));
      for (std::int64_t task = begin; task < end; ++task) {
        const std::int64_t g = task / chunks;
        const std::int64_t first = task % chunks * kGuessedTokens;
        kernels::BlockedLogitsArgs args;
        args.keys = {offset(keys.const_data_ptr(), g * keys.stride(0), keys.element_size()),
                     dtype_of(keys),
                     width,
                     keys.size(1) * kKeyBlockTokens};
        args.queries = rows.const_data_ptr<float>() + g * num_queries * width;
        args.num_queries = num_queries;
        args.tokens = {first, std::min(tokens, first + kGuessedTokens)};
        args.logits = logits.data();
        args.logits_stride = kGuessedTokens;
        kernels_.blocked_logits(args);
        float* out = guesses.mutable_data_ptr<float>() + g * tokens + first;
        std::copy_n(logits.data(), args.tokens.size(), out);
        for (std::int64_t r = 1; r < num_queries; ++r) {
          const float* row = logits.data() + r * kGuessedTokens;
          for (std::int64_t t = 0; t < args.tokens.size(); ++t) {
            out[t] = row[t] > out[t] || row[t] != row[t] ? row[t] : out[t];  // NaN stays
          }
        }
      }
    });
  }

  at::Tensor largest_positions(const at::Tensor& scores, std::int64_t count) const override {
    const std::int64_t rows = scores.size(0);
    const std::int64_t n = scores.size(1);
    at::Tensor chosen = at::empty({rows, count}, at::kInt);
    std::atomic<bool> has_nan = false;
    const std::int64_t grain = std::max<std::int64_t>(1, kParallelGrain / n);
    for_ranges(1, rows, grain, [&](std::int64_t begin, std::int64_t end) {
      thread_local std::vector<float> scratch;
      thread_local std::vector<float> values;
      values.resize(static_cast<std::size_t>(count));
      for (std::int64_t row = begin; row < end; ++row) {
        if (!kernels::top_k(scores.const_data_ptr<float>() + row * n,
                            n,
                            count,
                            chosen.mutable_data_ptr<std::int32_t>() + row * count,
                            values.data(),
                            scratch)) {
          has_nan = true;
        }
      }
    });
    return has_nan ? at::Tensor() : chosen;
  }

 private:
  /// One KV head and the query heads it serves.
  struct Group {
    std::int64_t index = 0;        ///< KV head
    std::int64_t num_queries = 0;  ///< R
    std::int64_t head_dim = 0;
    std::int64_t first_head() const { return index * num_queries; }
  };

  template <typename Pointer>
  static Pointer* offset(Pointer* data, std::int64_t elements, std::int64_t element_size) {
    using Byte = std::conditional_t<std::is_const_v<Pointer>, const std::byte, std::byte>;
    return static_cast<Byte*>(data) + elements * element_size;
  }

  /// Whether a library did linear(). Both want memory for code and scratch, and one of oneDNN's
  /// kernels that once got none refuses for as long as the process lives: then ours, which wants
  /// none, takes over, here and for every later call that fails. Whatever else they throw, of
  /// shapes that do not match for example, is thrown on.
  static bool multiply_by_library(const at::Tensor& x,
                                  const at::Tensor& weight,
                                  const at::Tensor& bias,
                                  at::Tensor& y,
                                  const kernels::LinearArgs& args) {
    try {
      if (args.dtype == DType::kFloat32 && kernels::has_onednn()) {
        kernels::onednn_linear(args, weight.size(0));
      } else if (bias.defined()) {
        at::addmm_out(y, bias, x, weight.t());
      } else {
        at::mm_out(y, x, weight.t());
      }
      return true;
    } catch (const DeviceError&) {
      return false;  // of onednn_linear
    } catch (...) {
      if (!is_lack_of_memory(std::current_exception())) throw;
      return false;
    }
  }

  /// Calls function(begin, end) for ranges of `grain` that cover [0, count), on all threads of the
  /// pass: the pool's for the few rows of a decode step, LibTorch's beside its matrix products.
  template <typename Function>
  void for_ranges(std::int64_t rows,
                  std::int64_t count,
                  std::int64_t grain,
                  const Function& function) const {
    if (pool_ == nullptr || rows > max_streamed_rows_) {
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

  /// Weight rows that a thread takes at a time.
  std::int64_t outputs_per_piece(const at::Tensor& weight) const {
    const auto bytes = static_cast<std::int64_t>(weight.nbytes());
    const std::int64_t threads = pool_ == nullptr ? at::get_num_threads() : pool_->size() + 1;
    const std::int64_t piece =
        std::clamp(bytes / (threads * kPiecesPerThread), kLeastPieceBytes, kMostPieceBytes);
    return std::max<std::int64_t>(1, piece * weight.size(0) / bytes);
  }

  template <typename Function>
  void for_rows(std::int64_t rows, std::int64_t row_elements, const Function& function) const {
    for_ranges(rows, rows, std::max<std::int64_t>(1, kParallelGrain / row_elements), function);
  }

  template <typename Function>
  void for_elements(const at::Tensor& x, const Function& function) const {
    for_ranges(x.size(0), x.numel(), kParallelGrain, function);
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
        Group group;
        group.index = task % groups;
        group.num_queries = query.size(1) / groups;
        group.head_dim = query.size(2);
        function(items[static_cast<std::size_t>(task / groups)], group);
      }
    });
  }

  // The group's query rows in float32 with the scale applied, in scratch of the calling thread.
  const float* scaled_queries(const at::Tensor& query,
                              const AttentionItem& item,
                              const Group& group) const {
    thread_local std::vector<float> scratch;
    scratch.resize(static_cast<std::size_t>(group.num_queries * group.head_dim));
    kernels_.scale_to_float(dtype_of(query),
                            offset(query.const_data_ptr(),
                                   item.row * query.stride(0) + group.first_head() * group.head_dim,
                                   query.element_size()),
                            1.0F / std::sqrt(static_cast<float>(group.head_dim)),
                            scratch.data(),
                            group.num_queries * group.head_dim);
    return scratch.data();
  }

  // Logits of shipped keys under the layer's own query, in place of guessed ones if there were any.
  void score_shipped_keys(const at::Tensor& query,
                          const AttentionItem& item,
                          const Group& group) const {
    const HostPayload& payload = *item.payload;
    const float* scaled = scaled_queries(query, item, group);
    const std::int64_t count = payload.tokens_of(group.index);
    kernels::RowLogitsArgs args;
    args.dtype = dtype_of(payload.keys);
    args.keys = offset(payload.keys.const_data_ptr(),
                       group.index * payload.keys.stride(0),
                       payload.keys.element_size());
    args.key_stride = group.head_dim;
    args.head_dim = group.head_dim;
    args.count = count;
    args.queries = scaled;
    args.num_queries = group.num_queries;
    args.logits = payload.logits.mutable_data_ptr<float>() + group.first_head() * payload.count;
    args.logits_stride = payload.count;
    if (!payload.index.defined()) {
      kernels_.row_logits(args);
      return;
    }
    args.num_queries = 1;
    const std::int32_t* index =
        payload.index.const_data_ptr<std::int32_t>() + group.first_head() * count;
    for (std::int64_t r = 0; r < group.num_queries; ++r) {
      kernels::chosen_row_logits(kernels_, args, index + r * count, count);
      args.queries += group.head_dim;
      args.logits += payload.count;
    }
  }

  const kernels::CpuKernels& kernels_;
  WorkerPool* pool_;
  std::int64_t max_streamed_rows_;
};

}  // namespace

std::unique_ptr<DeviceOps> make_cpu_ops(std::string_view isa, WorkerPool* pool) {
  return std::make_unique<CpuOps>(isa, pool);
}

}  // namespace hybridgen
