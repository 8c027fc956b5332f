// SPDX-License-Identifier: Apache-2.0
#include <ATen/ops/empty.h>

#include <atomic>
#include <cmath>
#include <vector>

#include "device/cpu_ops.h"

namespace hybridgen {
namespace {

// Tokens whose logits a thread guesses at a time.
constexpr std::int64_t kGuessedTokens = 2048;

}  // namespace

void CpuOps::resident_logits(const at::Tensor& query, std::span<const AttentionItem> items) const {
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

void CpuOps::merge(const at::Tensor& query,
                   std::span<const AttentionItem> items,
                   at::Tensor& out) const {
  for_groups(query, items, [&](const AttentionItem& item, const Group& group) {
    merge_group(query, item, group, out);
  });
}

void CpuOps::concat_group(const at::Tensor& query,
                          const AttentionItem& item,
                          const Group& group) const {
  const HostPayload* payload = item.payload;
  const bool has_rows = payload != nullptr && !payload->is_partial();
  const std::int64_t host_count = has_rows ? payload->tokens_of(group.index) : 0;
  const std::int64_t first_head = group.first_head();
  if (host_count > 0 && payload->keys.defined()) {
    score_shipped_keys(query, item, group);
  }
  kernels::concat_logits(
      host_count > 0 ? payload->logits.const_data_ptr<float>() + first_head * payload->count
                     : nullptr,
      has_rows ? payload->count : 0,
      host_count,
      item.resident_logits->const_data_ptr<float>() + first_head * item.num_resident,
      item.num_resident,
      item.num_resident,
      item.merged_logits->mutable_data_ptr<float>() + first_head * item.merged_stride(),
      item.merged_stride(),
      group.num_queries);
}

void CpuOps::merge_group(const at::Tensor& query,
                         const AttentionItem& item,
                         const Group& group,
                         at::Tensor& out) const {
  const HostPayload* payload = item.payload;
  const bool is_partial = payload != nullptr && payload->is_partial();
  const bool has_rows = payload != nullptr && !is_partial;
  const std::int64_t host_count = has_rows ? payload->tokens_of(group.index) : 0;
  const std::int64_t first_chosen = has_rows ? group.first_head() * payload->count : 0;
  const std::int64_t stride = item.merged_stride();
  const std::int64_t element = query.element_size();
  concat_group(query, item, group);

  kernels::SoftmaxValuesArgs args;
  args.dtype = dtype_of(query);
  args.logits = item.merged_logits->mutable_data_ptr<float>() + group.first_head() * stride;
  args.logits_stride = stride;
  args.num_queries = group.num_queries;
  args.head_dim = group.head_dim;
  args.host_count = host_count;
  if (host_count > 0) {
    if (payload->index.defined()) {
      args.host_index = payload->index.const_data_ptr<std::int32_t>() + first_chosen;
    }
    args.host_values =
        offset(payload->values.const_data_ptr(), group.index * payload->values.stride(0), element);
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
       .other =
           offset(payload->output.const_data_ptr(), group.first_head() * group.head_dim, element),
       .other_stride = group.head_dim,
       .other_lse = payload->lse.const_data_ptr<float>() + group.first_head()});
}

void CpuOps::guess_logits(const at::Tensor& queries,
                          const at::Tensor& keys,
                          at::Tensor& guesses) const {
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

at::Tensor CpuOps::largest_positions(const at::Tensor& scores,
                                     std::int64_t most,
                                     const at::Tensor& wanted) const {
  const std::int64_t count = wanted.defined() ? *wanted.const_data_ptr<std::int64_t>() : most;
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
  return has_nan ? chosen.narrow(1, 0, 0) : chosen;
}

const float* CpuOps::scaled_queries(const at::Tensor& query,
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

void CpuOps::score_shipped_keys(const at::Tensor& query,
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

}  // namespace hybridgen
