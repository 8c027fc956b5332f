// SPDX-License-Identifier: Apache-2.0
// Attention that ends on the host: parts of kPartTokens tokens, joined in token order, so that no
// bit depends on who computed which. Rows of keys are scored in the pass that sums the values;
// blocked keys, and all keys beside codes of values, are scored before it.
#include <algorithm>
#include <limits>
#include <numeric>

#include "pipeline/host_task.h"

namespace hybridgen {

kernels::AttentionPart HostTaskRunner::part_of(const HostTask& task, std::int64_t part) const {
  float* out = task.job.buffers.parts +
               task.kv_head * attended_floats(task.job.num_offloaded, per_group_, head_dim_) +
               part * per_group_ * (head_dim_ + 2);
  float* peaks = out + per_group_ * head_dim_;
  return {out, peaks, peaks + per_group_};
}

void HostTaskRunner::attend(const HostTask& task, const std::int32_t* positions) const {
  const StoredHead head = stored_head(task);
  const std::int64_t count = task.tokens.size();
  const bool in_one_pass = head.has_rows();
  const std::span<const std::int32_t> chosen(
      positions, positions == nullptr ? 0 : static_cast<std::size_t>(count));
  const auto bring = [&](KvSide side) {
    positions == nullptr ? head.bring(side) : head.bring(side, chosen);
  };
  float* logits = task.scratch.logits.data();
  if (in_one_pass) {
    bring(KvSide::kKeys);
  } else if (positions == nullptr) {
    head.scan(task.tokens, queries(task), logits, count, task.scratch.stored);
  } else {
    head.score(chosen, queries(task), logits, count, task.scratch.stored);
  }
  bring(KvSide::kValues);
  for (std::int64_t done = 0; done < count; done += kernels::kPartTokens) {
    const std::int64_t rows = std::min(kernels::kPartTokens, count - done);
    const std::int64_t first = task.tokens.begin + done;
    kernels::AttendArgs args;
    args.count = rows;
    if (!in_one_pass) {
      args.logits = logits + done;
      args.logits_stride = count;
    }
    args.part = part_of(task, first / kernels::kPartTokens);
    attend_part(
        task, {first, first + rows}, positions == nullptr ? nullptr : positions + done, args);
  }
  task.result.key_bytes += count * head.key_bytes();
  task.result.value_bytes += count * head.value_bytes();
}

void HostTaskRunner::attend_part(const HostTask& task,
                                 TokenRange tokens,
                                 const std::int32_t* positions,
                                 kernels::AttendArgs args) const {
  const HostKvStore& store = *task.job.store;
  HostScratch::Attending& memory = task.scratch.attending;
  if (store.shape().value_precision != KvPrecision::kFull) {
    sum_value_codes(task, tokens, positions, args);
    return;
  }
  const auto rows_from = [&](const RowView& rows) {
    return static_cast<const std::byte*>(rows.data) +
           (positions == nullptr ? tokens.begin * row_bytes(task) : 0);
  };
  args.values = rows_from(store.values(task.layer, task.kv_head));
  args.positions = positions;
  if (args.logits == nullptr) {
    args.keys = rows_from(store.key_rows(task.layer, task.kv_head));
    args.key_stride = head_dim_;
  }
  memory.sums.resize(static_cast<std::size_t>(kernels::attend_scratch(per_group_, head_dim_)));
  args.dtype = store.shape().dtype;
  args.queries = task.scratch.queries.data();
  args.num_queries = per_group_;
  args.head_dim = head_dim_;
  args.value_stride = head_dim_;
  args.scratch = memory.sums.data();
  kernels_.attend(args);
}

void HostTaskRunner::sum_value_codes(const HostTask& task,
                                     TokenRange tokens,
                                     const std::int32_t* positions,
                                     const kernels::AttendArgs& args) const {
  for (std::int64_t r = 0; r < per_group_; ++r) {
    float* const logits = args.logits + r * args.logits_stride;
    float peak = -std::numeric_limits<float>::infinity();
    for (std::int64_t j = 0; j < args.count; ++j) {
      peak = logits[j] > peak ? logits[j] : peak;  // a NaN is passed over, and makes the sum NaN
    }
    kernels_.softmax_weights(logits, args.count, peak, logits);
    args.part.peaks[r] = peak;
    args.part.sums[r] = std::accumulate(logits, logits + args.count, 0.0F);
  }
  kernels_.stored_value_sums({.values = task.job.store->value_codes(task.layer, task.kv_head),
                              .positions = positions,
                              .first = tokens.begin,
                              .count = args.count,
                              .weights = args.logits,
                              .weights_stride = args.logits_stride,
                              .num_queries = per_group_,
                              .out = args.part.out,
                              .out_stride = head_dim_});
}

void HostTaskRunner::join_parts(const HostTask& task, std::int64_t num_tokens) const {
  HostScratch::Attending& memory = task.scratch.attending;
  const std::int64_t num_parts = kernels::part_count(num_tokens);
  memory.parts.clear();
  for (std::int64_t part = 0; part < num_parts; ++part) {
    memory.parts.push_back(part_of(task, part));
  }
  memory.shares.resize(static_cast<std::size_t>(num_parts));
  const std::int64_t first_head = task.kv_head * per_group_;
  kernels_.merge_parts(
      {.dtype = task.job.store->shape().dtype,
       .rows = per_group_,
       .head_dim = head_dim_,
       .parts = memory.parts.data(),
       .num_parts = num_parts,
       .shares = memory.shares.data(),
       .out = static_cast<std::byte*>(task.job.buffers.output) + first_head * row_bytes(task),
       .out_stride = head_dim_,
       .lse = task.job.buffers.lse + first_head});
}

}  // namespace hybridgen
