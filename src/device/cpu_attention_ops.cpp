// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <cmath>
#include <vector>

#include "device/cpu_ops.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kPartPiecesPerThread = 8;

/// Floats of a part's result per query head: sums of values, peak and sum of weights.
constexpr std::int64_t part_floats(std::int64_t head_dim) { return head_dim + 2; }

/// Rows that the host sent, of each query head at most.
std::int64_t chosen_tokens(const AttentionItem& item) {
  return item.payload == nullptr || item.payload->is_partial() ? 0 : item.payload->count;
}

}  // namespace

std::int64_t attention_scratch(std::int64_t heads,
                               std::int64_t head_dim,
                               std::int64_t num_resident,
                               std::int64_t num_chosen) {
  return heads * (kernels::part_count(num_resident) + kernels::part_count(num_chosen)) *
         part_floats(head_dim);
}

std::int64_t CpuOps::parts_per_piece(std::int64_t count) const {
  const std::int64_t threads = pool_ == nullptr ? at::get_num_threads() : pool_->size() + 1;
  return std::max<std::int64_t>(1, count / (threads * kPartPiecesPerThread));
}

kernels::AttentionPart CpuOps::part_of(const AttentionItem& item,
                                       const Group& group,
                                       std::int64_t index,
                                       bool is_host) {
  const std::int64_t groups = item.keys->size(0);
  const std::int64_t resident = kernels::part_count(item.num_resident);
  const std::int64_t of_group = is_host ? kernels::part_count(item.payload->count) : resident;
  const std::int64_t place = (is_host ? groups * resident : 0) + group.index * of_group + index;
  float* out = item.parts->mutable_data_ptr<float>() +
               place * group.num_queries * part_floats(group.head_dim);
  float* peaks = out + group.num_queries * group.head_dim;
  return {out, peaks, peaks + group.num_queries};
}

kernels::AttendArgs CpuOps::attend_args(const at::Tensor& query,
                                        const AttentionItem& item,
                                        const Group& group) const {
  thread_local std::vector<float> scratch;
  scratch.resize(
      static_cast<std::size_t>(kernels::attend_scratch(group.num_queries, group.head_dim)));
  kernels::AttendArgs args;
  args.dtype = dtype_of(query);
  args.queries = scaled_queries(query, item, group);
  args.num_queries = group.num_queries;
  args.head_dim = group.head_dim;
  args.scratch = scratch.data();
  return args;
}

void CpuOps::attend_resident(const at::Tensor& query,
                             const AttentionItem& item,
                             const Group& group,
                             const Part& part) const {
  const std::int64_t element = query.element_size();
  const auto rows = [&](const at::Tensor& tensor) {
    return offset(
        tensor.const_data_ptr(),
        group.index * tensor.stride(0) + (item.first_slot + part.first) * tensor.stride(1),
        element);
  };
  kernels::AttendArgs args = attend_args(query, item, group);
  args.keys = rows(*item.keys);
  args.key_stride = item.keys->stride(1);
  args.values = rows(*item.values);
  args.value_stride = item.values->stride(1);
  args.count = part.count;
  if (item.wants_weights) {
    args.logits = item.resident_logits->mutable_data_ptr<float>() +
                  group.first_head() * item.num_resident + part.first;
    args.logits_stride = item.num_resident;
  }
  args.part = part_of(item, group, part.index, /*is_host=*/false);
  kernels_.attend(args);
}

void CpuOps::attend_payload(const at::Tensor& query,
                            const AttentionItem& item,
                            const Group& group,
                            const Part& part) const {
  const HostPayload& payload = *item.payload;
  const std::int64_t element = query.element_size();
  const bool has_keys = payload.keys.defined();
  const bool is_shared = !payload.index.defined();
  const std::int64_t tokens = payload.tokens_of(group.index);
  // Of the group's first query head, and of token `part.first`.
  const std::int64_t first = group.first_head() * payload.room + part.first;
  const auto rows = [&](const at::Tensor& tensor) {
    return offset(tensor.const_data_ptr(),
                  group.index * tensor.stride(0) + (is_shared ? part.first * group.head_dim : 0),
                  element);
  };
  kernels::AttendArgs args = attend_args(query, item, group);
  args.values = rows(payload.values);
  args.value_stride = group.head_dim;
  if (has_keys) {
    args.keys = rows(payload.keys);
    args.key_stride = group.head_dim;
  }
  // A KV head may have fewer tokens than others.
  args.count = std::clamp<std::int64_t>(tokens - part.first, 0, part.count);
  if (!has_keys || item.wants_weights) {
    args.logits = payload.logits.mutable_data_ptr<float>() + first;
    args.logits_stride = tokens;
  }
  args.part = part_of(item, group, part.index, /*is_host=*/true);
  if (is_shared) {
    kernels_.attend(args);
    return;
  }
  args.num_queries = 1;
  args.positions = payload.index.const_data_ptr<std::int32_t>() + first;
  for (std::int64_t r = 0; r < group.num_queries; ++r) {
    kernels_.attend(args);
    args.queries += group.head_dim;
    args.positions += tokens;
    args.logits += args.logits == nullptr ? 0 : tokens;
    args.part.out += group.head_dim;
    ++args.part.peaks;
    ++args.part.sums;
  }
}

void CpuOps::resident_logits(const at::Tensor& query, const AttentionBatch& batch) const {
  for_parts(
      query,
      batch.items,
      [](const AttentionItem& item) { return item.num_resident; },
      [&](const AttentionItem& item, const Group& group, const Part& part) {
        attend_resident(query, item, group, part);
      });
}

void CpuOps::merge(const at::Tensor& query, const AttentionBatch& batch, at::Tensor& out) const {
  for_parts(query,
            batch.items,
            chosen_tokens,
            [&](const AttentionItem& item, const Group& group, const Part& part) {
              attend_payload(query, item, group, part);
            });
  for_groups(query, batch.items, [&](const AttentionItem& item, const Group& group) {
    merge_group(item, group, out);
  });
}

void CpuOps::merge_group(const AttentionItem& item, const Group& group, at::Tensor& out) const {
  thread_local std::vector<kernels::AttentionPart> parts;
  thread_local std::vector<float> scratch;
  const std::int64_t host = kernels::part_count(chosen_tokens(item));
  const std::int64_t resident = kernels::part_count(item.num_resident);
  const std::int64_t queries = group.num_queries;
  const std::int64_t element = out.element_size();
  const bool is_partial = item.payload != nullptr && item.payload->is_partial();
  // Shares of the parts; sums and output of attention that the host has finished; its lse.
  scratch.resize(static_cast<std::size_t>(host + resident + 1 + queries * (group.head_dim + 2)));
  float* sums = scratch.data() + host + resident + 1;
  float* lse = sums + queries;
  parts.clear();
  for (std::int64_t i = 0; i < host; ++i) {
    parts.push_back(part_of(item, group, i, /*is_host=*/true));
  }
  for (std::int64_t i = 0; i < resident; ++i) {
    parts.push_back(part_of(item, group, i, /*is_host=*/false));
  }
  kernels::MergePartsArgs args;
  args.dtype = dtype_of(out);
  args.rows = queries;
  args.head_dim = group.head_dim;
  args.parts = parts.data();
  args.num_parts = static_cast<std::int64_t>(parts.size());
  args.shares = scratch.data();
  args.lse = lse;
  args.out_stride = group.head_dim;
  if (is_partial && item.wants_weights) {
    kernels_.merge_parts(args);  // what the host attended to has no weights here
    write_weights(item, group, lse);
  }
  if (is_partial) {
    const float* others = item.payload->lse.const_data_ptr<float>() + group.first_head();
    for (std::int64_t r = 0; r < queries; ++r) {
      sums[r] = std::isinf(others[r]) && others[r] < 0.0F ? 0.0F : 1.0F;
    }
    float* output = lse + queries;
    kernels_.scale_to_float(
        args.dtype,
        offset(item.payload->output.const_data_ptr(), group.first_head() * group.head_dim, element),
        1.0F,
        output,
        queries * group.head_dim);
    parts.insert(parts.begin(), {output, const_cast<float*>(others), sums});
    args.parts = parts.data();
    ++args.num_parts;
  }
  args.out = offset(out.mutable_data_ptr(),
                    item.row * out.stride(0) + group.first_head() * group.head_dim,
                    element);
  kernels_.merge_parts(args);
  if (item.lse != nullptr) {
    std::copy_n(lse, queries, item.lse->mutable_data_ptr<float>() + group.first_head());
  }
  if (item.wants_weights && !is_partial) {
    write_weights(item, group, lse);
  }
}

void CpuOps::write_weights(const AttentionItem& item, const Group& group, const float* lse) const {
  const HostPayload* payload = item.payload;
  const bool has_rows = chosen_tokens(item) > 0;
  const std::int64_t host_count = has_rows ? payload->tokens_of(group.index) : 0;
  for (std::int64_t r = 0; r < group.num_queries; ++r) {
    const std::int64_t head = group.first_head() + r;
    float* weights = item.merged_logits->mutable_data_ptr<float>() + head * item.merged_stride();
    if (has_rows) {
      kernels_.softmax_weights(payload->logits.const_data_ptr<float>() +
                                   group.first_head() * payload->room + r * host_count,
                               host_count,
                               lse[r],
                               weights);
    }
    kernels_.softmax_weights(
        item.resident_logits->const_data_ptr<float>() + head * item.num_resident,
        item.num_resident,
        lse[r],
        weights + host_count);
  }
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

}  // namespace hybridgen
