// SPDX-License-Identifier: Apache-2.0
// What a prompt's rows do with keys and values on a CPU device. LibTorch's threads have the cores
// while a prompt is read.
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <vector>

#include "device/cpu_ops.h"

namespace hybridgen {
namespace {

// Query rows, over the heads of a group, that an attention task takes. A block of keys is prepared
// once for all of them, and they still fit the second-level cache.
constexpr std::int64_t kTaskRows = 288;
// Keys whose column sums a task takes.
constexpr std::int64_t kTaskKeys = 256;
// Rows that a thread merges at a time, at least.
constexpr std::int64_t kMergedRows = 512;

// Item `turn` of `count`, from both ends by turns: late rows see more keys than early ones, and
// late keys are seen by fewer rows, so that threads get as much of either.
std::int64_t from_both_ends(std::int64_t turn, std::int64_t count) {
  return turn % 2 == 0 ? turn / 2 : count - 1 - turn / 2;
}

// Calls the kernel with scratch of the calling thread.
void run(void (*kernel)(const kernels::PrefillAttentionArgs&),
         const kernels::CpuKernels& table,
         kernels::PrefillAttentionArgs& args) {
  thread_local std::vector<float> scratch;
  const auto floats = static_cast<std::size_t>(table.prefill_scratch(args));
  if (scratch.size() < floats) scratch.resize(floats);
  args.scratch = scratch.data();
  kernel(args);
}

}  // namespace

kernels::PrefillAttentionArgs CpuOps::prefill_args(const at::Tensor& query,
                                                   const at::Tensor& keys,
                                                   std::int64_t group) {
  const std::int64_t per_group = query.size(1) / keys.size(0);
  kernels::PrefillAttentionArgs args;
  args.dtype = dtype_of(query);
  args.queries =
      offset(query.const_data_ptr(), group * per_group * query.stride(1), query.element_size());
  args.query_row_stride = query.stride(0);
  args.num_queries = per_group;
  args.rows = query.size(0);
  args.head_dim = query.size(2);
  args.scale = 1.0F / std::sqrt(static_cast<float>(args.head_dim));
  args.keys = offset(keys.const_data_ptr(), group * keys.stride(0), keys.element_size());
  args.key_stride = keys.stride(1);
  args.count = keys.size(1);
  return args;
}

PartialAttention CpuOps::partial_attention(const at::Tensor& query,
                                           const at::Tensor& keys,
                                           const at::Tensor& values,
                                           bool causal) const {
  const std::int64_t rows = query.size(0);
  const std::int64_t heads = query.size(1);
  const std::int64_t head_dim = query.size(2);
  const std::int64_t groups = keys.size(0);
  const std::int64_t per_group = heads / groups;
  const at::Tensor out = at::empty({heads, rows, head_dim}, at::kFloat);
  const at::Tensor lse = at::empty({heads, rows}, at::kFloat);
  const std::int64_t block = std::max<std::int64_t>(24, kTaskRows / per_group);
  const std::int64_t blocks = (rows + block - 1) / block;
  at::parallel_for(0, groups * blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t group = task / blocks;
      const std::int64_t first = from_both_ends(task % blocks, blocks) * block;
      const std::int64_t head = group * per_group;
      kernels::PrefillAttentionArgs args = prefill_args(query, keys, group);
      args.queries = offset(args.queries, first * args.query_row_stride, query.element_size());
      args.rows = std::min(block, rows - first);
      args.values =
          offset(values.const_data_ptr(), group * values.stride(0), values.element_size());
      args.value_stride = values.stride(1);
      args.is_causal = causal;
      args.first_row = first;
      args.out = out.mutable_data_ptr<float>() + (head * rows + first) * head_dim;
      args.out_head_stride = rows * head_dim;
      args.lse = lse.mutable_data_ptr<float>() + head * rows + first;
      args.lse_head_stride = rows;
      run(kernels_.prefill_attention, kernels_, args);
    }
  });
  return {out, lse};
}

void CpuOps::add_partial(PartialAttention& sum, const PartialAttention& part) const {
  if (!sum.out.defined()) {
    sum = part;
    return;
  }
  const std::int64_t head_dim = sum.out.size(2);
  const at::Tensor lse = at::empty_like(sum.lse);
  at::parallel_for(0, lse.numel(), kMergedRows, [&](std::int64_t begin, std::int64_t end) {
    // Normalised outputs are parts whose weights sum to one, where a token counted at all.
    thread_local std::vector<float> weights;
    weights.resize(static_cast<std::size_t>(2 * (end - begin)));
    const auto part_of = [&](const PartialAttention& attention, float* sums) {
      const auto peaks = attention.lse.mutable_data_ptr<float>() + begin;
      std::transform(peaks, peaks + (end - begin), sums, [](float peak) {
        return peak == -std::numeric_limits<float>::infinity() ? 0.0F : 1.0F;
      });
      return kernels::AttentionPart{
          attention.out.mutable_data_ptr<float>() + begin * head_dim, peaks, sums};
    };
    const kernels::AttentionPart parts[] = {part_of(sum, weights.data()),
                                            part_of(part, weights.data() + (end - begin))};
    float shares[std::size(parts)];
    kernels_.merge_parts({.dtype = DType::kFloat32,
                          .rows = end - begin,
                          .head_dim = head_dim,
                          .parts = parts,
                          .num_parts = std::ssize(parts),
                          .shares = shares,
                          .out = sum.out.mutable_data_ptr<float>() + begin * head_dim,
                          .out_stride = head_dim,
                          .lse = lse.mutable_data_ptr<float>() + begin});
  });
  sum.lse = lse;
}

at::Tensor CpuOps::column_sums(const at::Tensor& query,
                               const at::Tensor& keys,
                               const at::Tensor& lse,
                               bool causal) const {
  const std::int64_t heads = query.size(1);
  const std::int64_t groups = keys.size(0);
  const std::int64_t per_group = heads / groups;
  const std::int64_t count = keys.size(1);
  at::Tensor sums = at::empty({heads, count}, at::kFloat);
  const at::Tensor exponents = lse.contiguous();
  const std::int64_t blocks = (count + kTaskKeys - 1) / kTaskKeys;
  at::parallel_for(0, groups * blocks, 1, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t group = task / blocks;
      const std::int64_t first = from_both_ends(task % blocks, blocks) * kTaskKeys;
      const std::int64_t head = group * per_group;
      kernels::PrefillAttentionArgs args = prefill_args(query, keys, group);
      args.keys = offset(args.keys, first * args.key_stride, keys.element_size());
      args.count = std::min(kTaskKeys, count - first);
      args.is_causal = causal;
      args.first_row = -first;
      args.out = sums.mutable_data_ptr<float>() + head * count + first;
      args.out_head_stride = count;
      args.lse = exponents.mutable_data_ptr<float>() + head * exponents.size(1);
      args.lse_head_stride = exponents.size(1);
      run(kernels_.column_sums, kernels_, args);
    }
  });
  return sums;
}

}  // namespace hybridgen
