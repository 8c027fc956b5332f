// SPDX-License-Identifier: Apache-2.0
#include "pipeline/host_task.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu_kernels.h"
#include "pipeline/host_selection.h"

namespace hybridgen {
namespace {

kernels::RowReader reader_of(const HostJobBuffers& buffers) {
  return buffers.device_reads ? kernels::RowReader::kDevice : kernels::RowReader::kCpu;
}

bool has_rows(const HostJob& job) { return job.store->shape().key_layout == KeyLayout::kRows; }

// Null: the keys themselves are scanned.
const KeyProxy* proxy_of(const HostJob& job) {
  return job.selection() == nullptr ? nullptr : job.selection()->proxy;
}

}  // namespace

HostTaskRunner::HostTaskRunner(const kernels::CpuKernels& kernels, const ModelConfig& config)
    : kernels_(kernels), per_group_(config.query_heads_per_kv_head()), head_dim_(config.head_dim) {}

void HostTaskRunner::reserve(HostScratch& scratch,
                             std::int64_t max_tokens,
                             std::int64_t max_candidates) const {
  const auto tokens = static_cast<std::size_t>(max_tokens);
  const auto per_group = static_cast<std::size_t>(per_group_);
  scratch.queries.resize(per_group * static_cast<std::size_t>(head_dim_));
  if (scratch.logits.size() < per_group * tokens) {
    scratch.logits.resize(per_group * tokens);
  }
  scratch.selection.reserve(static_cast<std::size_t>(kernels::top_k_scratch(max_tokens)));
  scratch.merging.reserve(tokens / 32 + 2);
  scratch.planned.reserve(per_group * tokens);
  if (max_candidates > 0) {
    const std::size_t candidates = per_group * static_cast<std::size_t>(max_candidates);
    HostScratch::Rescoring& rescoring = scratch.rescoring;
    rescoring.queries.codes.reserve(per_group * static_cast<std::size_t>(kMaxShadowHeadDim));
    rescoring.queries.scales.reserve(per_group);
    rescoring.candidates.reserve(candidates);
    rescoring.merged.reserve(candidates);
    rescoring.index.reserve(candidates);
    rescoring.logits.reserve(per_group * std::min(candidates, tokens));
  }
}

std::int64_t HostTaskRunner::row_bytes(const HostTask& task) const {
  return head_dim_ * static_cast<std::int64_t>(size_of(task.job.store->shape().dtype));
}

void HostTaskRunner::prepare(const HostTask& task) const {
  scale_query(task);
  append_new_token(task);
  if (const KeyProxy* proxy = proxy_of(task.job)) {
    proxy->prepare(task.layer, task.kv_head, task.scratch.queries, task.scratch.rescoring.queries);
  }
}

void HostTaskRunner::scale_query(const HostTask& task) const {
  if (task.job.query == nullptr) {
    return;
  }
  const std::int64_t elements = per_group_ * head_dim_;
  const DType dtype = task.job.store->shape().dtype;
  kernels_.scale_to_float(dtype,
                          static_cast<const std::byte*>(task.job.query) +
                              task.kv_head * elements * static_cast<std::int64_t>(size_of(dtype)),
                          1.0F / std::sqrt(static_cast<float>(head_dim_)),
                          task.scratch.queries.data(),
                          elements);
}

void HostTaskRunner::append_new_token(const HostTask& task) const {
  const HostJob& job = task.job;
  if (job.new_key == nullptr || task.tokens.end != job.num_offloaded) {
    return;
  }
  const std::int64_t offset = task.kv_head * row_bytes(task);
  job.store->write_row(task.layer,
                       task.kv_head,
                       job.num_offloaded - 1,
                       static_cast<const std::byte*>(job.new_key) + offset,
                       static_cast<const std::byte*>(job.new_value) + offset);
}

void HostTaskRunner::run_whole(const HostTask& task) const {
  const HostJob& job = task.job;
  if (job.takes_every_token()) {
    job.payload == Payload::kPartialAttention ? attend(task, {}) : copy_all(task);
    return;
  }
  if (job.selection() != nullptr) {
    score(task, task.scratch.logits.data(), job.num_offloaded);
    finish(task, task.scratch.logits.data(), job.num_offloaded);
    return;
  }
  const std::span<const std::int32_t> chosen = plan_tokens(task);
  if (job.payload == Payload::kPartialAttention) {
    attend(task, chosen);
    return;
  }
  if (job.payload == Payload::kLogitsAndValues && !chosen.empty()) {
    score_chosen(task,
                 chosen,
                 job.buffers.logits + task.kv_head * per_group_ * job.num_chosen,
                 job.num_chosen);
  }
  gather(task);
}

void HostTaskRunner::score(const HostTask& task, float* logits, std::int64_t stride) const {
  const HostJob& job = task.job;
  if (const KeyProxy* proxy = proxy_of(job)) {
    task.result.key_bytes += proxy->score(kernels_,
                                          task.layer,
                                          task.kv_head,
                                          task.scratch.rescoring.queries,
                                          task.tokens,
                                          logits,
                                          stride);
    return;
  }
  task.result.key_bytes += task.tokens.size() * row_bytes(task);
  if (has_rows(job)) {
    const RowView keys = job.store->key_rows(task.layer, task.kv_head);
    kernels::RowLogitsArgs args;
    args.dtype = keys.dtype;
    args.keys = static_cast<const std::byte*>(keys.data) + task.tokens.begin * row_bytes(task);
    args.key_stride = head_dim_;
    args.head_dim = head_dim_;
    args.count = task.tokens.size();
    args.queries = task.scratch.queries.data();
    args.num_queries = per_group_;
    args.logits = logits;
    args.logits_stride = stride;
    kernels_.row_logits(args);
    return;
  }
  kernels::BlockedLogitsArgs args;
  args.keys = job.store->keys(task.layer, task.kv_head);
  args.queries = task.scratch.queries.data();
  args.num_queries = per_group_;
  args.tokens = task.tokens;
  args.logits = logits;
  args.logits_stride = stride;
  kernels_.blocked_logits(args);
}

void HostTaskRunner::finish(const HostTask& task, const float* logits, std::int64_t stride) const {
  select_tokens(*this, task, logits, stride);
  gather(task);
}

void HostTaskRunner::score_chosen(const HostTask& task,
                                  std::span<const std::int32_t> chosen,
                                  float* logits,
                                  std::int64_t stride) const {
  const HostJob& job = task.job;
  const auto count = static_cast<std::int64_t>(chosen.size());
  task.result.key_bytes += count * row_bytes(task);
  if (has_rows(job)) {
    const RowView keys = job.store->key_rows(task.layer, task.kv_head);
    kernels::RowLogitsArgs args;
    args.dtype = keys.dtype;
    args.keys = keys.data;
    args.key_stride = head_dim_;
    args.head_dim = head_dim_;
    args.queries = task.scratch.queries.data();
    args.num_queries = per_group_;
    args.logits = logits;
    args.logits_stride = stride;
    kernels::chosen_row_logits(kernels_, args, chosen.data(), count);
    return;
  }
  kernels::ChosenLogitsArgs args;
  args.keys = job.store->keys(task.layer, task.kv_head);
  args.queries = task.scratch.queries.data();
  args.num_queries = per_group_;
  args.positions = chosen.data();
  args.count = count;
  args.logits = logits;
  args.logits_stride = stride;
  kernels_.chosen_logits(args);
}

// Steps 2 and 3: rows of the tokens in `merged`, in token order.
void HostTaskRunner::gather(const HostTask& task) const {
  const HostJob& job = task.job;
  const HostJobBuffers& out = job.buffers;
  const kernels::RowReader reader = reader_of(out);
  const std::int64_t bytes = row_bytes(task);
  const std::int32_t* merged = out.merged + task.kv_head * out.union_capacity;
  const std::int64_t rows = out.union_sizes[task.kv_head];
  const std::int64_t offset = task.kv_head * out.union_capacity * bytes;
  kernels::gather_rows(job.store->values(task.layer, task.kv_head).data,
                       bytes,
                       merged,
                       rows,
                       static_cast<std::byte*>(out.values) + offset,
                       reader);
  task.result.value_bytes += rows * bytes;
  if (!job.sends_keys()) {
    return;
  }
  task.result.key_bytes += rows * bytes;
  auto* key_rows = static_cast<std::byte*>(out.keys) + offset;
  if (has_rows(job)) {
    const void* keys_of_head = job.store->key_rows(task.layer, task.kv_head).data;
    kernels::gather_rows(keys_of_head, bytes, merged, rows, key_rows, reader);
  } else {
    kernels::gather_blocked_keys(job.store->keys(task.layer, task.kv_head), merged, rows, key_rows);
  }
}

void HostTaskRunner::copy_all(const HostTask& task) const {
  const HostJob& job = task.job;
  const HostJobBuffers& out = job.buffers;
  const std::int64_t offset = task.kv_head * out.union_capacity * row_bytes(task);
  const std::int64_t bytes = job.num_offloaded * row_bytes(task);
  kernels::copy_rows(job.store->key_rows(task.layer, task.kv_head).data,
                     bytes,
                     static_cast<std::byte*>(out.keys) + offset,
                     reader_of(out));
  out.union_sizes[task.kv_head] = job.num_offloaded;
  task.result.key_bytes += bytes;
  if (job.payload == Payload::kKeys) {
    return;  // which values follow is known once the device has the weights
  }
  kernels::copy_rows(job.store->values(task.layer, task.kv_head).data,
                     bytes,
                     static_cast<std::byte*>(out.values) + offset,
                     reader_of(out));
  task.result.value_bytes += bytes;
}

// Attention over chosen tokens, or over all of them, finished on the host.
void HostTaskRunner::attend(const HostTask& task, std::span<const std::int32_t> chosen) const {
  const HostJob& job = task.job;
  const bool is_all = job.takes_every_token();
  const std::int64_t first_head = task.kv_head * per_group_;
  const std::int64_t count = is_all ? job.num_offloaded : static_cast<std::int64_t>(chosen.size());
  float* logits = task.scratch.logits.data();
  if (is_all) {
    score(task, logits, count);
  } else if (count > 0) {
    score_chosen(task, chosen, logits, count);
  }
  kernels::SoftmaxValuesArgs args;
  args.dtype = job.store->shape().dtype;
  args.logits = logits;
  args.logits_stride = count;
  args.num_queries = per_group_;
  args.head_dim = head_dim_;
  args.out = static_cast<std::byte*>(job.buffers.output) + first_head * row_bytes(task);
  args.out_stride = head_dim_;
  args.lse = job.buffers.lse + first_head;
  const void* values = job.store->values(task.layer, task.kv_head).data;
  if (is_all) {
    args.resident_count = count;
    args.resident_values = values;
    args.resident_stride = head_dim_;
  } else {
    // The rows stay where they are: an index per query head, here the same for all.
    std::vector<std::int32_t>& index = task.scratch.planned;
    const bool aliases = chosen.data() == index.data();
    index.resize(static_cast<std::size_t>(per_group_ * count));
    if (!aliases) {
      std::ranges::copy(chosen, index.begin());
    }
    for (std::int64_t r = 1; r < per_group_; ++r) {
      std::copy_n(index.begin(), count, index.begin() + r * count);
    }
    args.host_count = count;
    args.host_index = index.data();
    args.host_values = values;
  }
  kernels_.softmax_values(args);
  task.result.value_bytes += count * row_bytes(task);
}

const char* label_of(const HostJob& job) {
  if (job.payload == Payload::kPartialAttention) {
    return "attend";
  }
  if (job.takes_every_token()) {
    return "copy";
  }
  if (job.selection() != nullptr) {
    return "score, select, gather";
  }
  return job.payload == Payload::kLogitsAndValues ? "score planned, gather" : "gather";
}

}  // namespace hybridgen
