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
  scratch.stored.queries.reserve(per_group * static_cast<std::size_t>(head_dim_ + 8));
  scratch.stored.starts.reserve(per_group);
  scratch.stored.constants.reserve(per_group);
  if (scratch.logits.size() < per_group * tokens) {
    scratch.logits.resize(per_group * tokens);
  }
  scratch.selection.reserve(static_cast<std::size_t>(kernels::top_k_scratch(max_tokens)));
  scratch.merging.reserve(tokens / 32 + 2);
  scratch.attending.sums.reserve(
      static_cast<std::size_t>(kernels::attend_scratch(per_group_, head_dim_)));
  scratch.attending.parts.reserve(static_cast<std::size_t>(kernels::part_count(max_tokens)));
  scratch.attending.shares.reserve(static_cast<std::size_t>(kernels::part_count(max_tokens)));
  scratch.planned.reserve(per_group * tokens);
  scratch.weights.reserve(tokens);
  if (max_candidates > 0) {
    const std::size_t candidates = per_group * static_cast<std::size_t>(max_candidates);
    HostScratch::Rescoring& rescoring = scratch.rescoring;
    rescoring.queries.codes.reserve(per_group * static_cast<std::size_t>(kMaxShadowHeadDim));
    rescoring.queries.scales.reserve(per_group);
    rescoring.candidates.reserve(candidates);
    rescoring.merged.reserve(candidates);
    rescoring.index.reserve(candidates);
    rescoring.logits.reserve(per_group * std::min(candidates, tokens));
    rescoring.scores.reserve(static_cast<std::size_t>(max_candidates));
  }
}

std::int64_t HostTaskRunner::row_bytes(const HostTask& task) const {
  return head_dim_ * static_cast<std::int64_t>(size_of(task.job.store->shape().dtype));
}

StoredHead HostTaskRunner::stored_head(const HostTask& task) const {
  return {kernels_, *task.job.store, task.layer, task.kv_head};
}

StoredHead::Queries HostTaskRunner::queries(const HostTask& task) const {
  return {task.scratch.queries.data(), per_group_};
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
    if (job.payload != Payload::kPartialAttention) {
      copy_all(task);
      return;
    }
    attend(task);
    join_parts(task, job.num_offloaded);
    return;
  }
  if (job.selection() != nullptr) {
    score(task, task.scratch.logits.data(), job.num_offloaded);
    finish(task, task.scratch.logits.data(), job.num_offloaded);
    return;
  }
  const std::span<const std::int32_t> chosen = plan_tokens(task);
  if (job.payload == Payload::kPartialAttention) {
    const auto count = static_cast<std::int64_t>(chosen.size());
    if (count > 0) {
      attend({job, task.layer, task.kv_head, {0, count}, task.scratch, task.result}, chosen.data());
    }
    join_parts(task, count);
    return;
  }
  if (job.payload == Payload::kLogitsAndValues && !chosen.empty()) {
    score_chosen(task,
                 chosen,
                 job.buffers.logits + task.kv_head * per_group_ * job.num_chosen,
                 static_cast<std::int64_t>(chosen.size()));
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
  const StoredHead head = stored_head(task);
  head.scan(task.tokens, queries(task), logits, stride, task.scratch.stored);
  task.result.key_bytes += task.tokens.size() * head.key_bytes();
}

void HostTaskRunner::finish(const HostTask& task, float* logits, std::int64_t stride) const {
  select_tokens(*this, task, logits, stride);
  gather(task);
}

void HostTaskRunner::score_chosen(const HostTask& task,
                                  std::span<const std::int32_t> chosen,
                                  float* logits,
                                  std::int64_t stride) const {
  const StoredHead head = stored_head(task);
  head.score(chosen, queries(task), logits, stride, task.scratch.stored);
  task.result.key_bytes += static_cast<std::int64_t>(chosen.size()) * head.key_bytes();
}

// Steps 2 and 3: rows of the tokens in `merged`, in token order.
void HostTaskRunner::gather(const HostTask& task) const {
  const HostJob& job = task.job;
  const HostJobBuffers& out = job.buffers;
  const kernels::RowReader reader = reader_of(out);
  const StoredHead head = stored_head(task);
  const std::span<const std::int32_t> merged{
      out.merged + task.kv_head * out.union_capacity,
      static_cast<std::size_t>(out.union_sizes[task.kv_head])};
  const std::int64_t offset = task.kv_head * out.union_capacity * row_bytes(task);
  head.values(merged, static_cast<std::byte*>(out.values) + offset, reader);
  task.result.value_bytes += out.union_sizes[task.kv_head] * head.value_bytes();
  if (job.sends_keys()) {
    head.keys(merged, static_cast<std::byte*>(out.keys) + offset, reader);
    task.result.key_bytes += out.union_sizes[task.kv_head] * head.key_bytes();
  }
}

void HostTaskRunner::copy_all(const HostTask& task) const {
  const HostJob& job = task.job;
  const HostJobBuffers& out = job.buffers;
  const StoredHead head = stored_head(task);
  const TokenRange all{0, job.num_offloaded};
  const std::int64_t offset = task.kv_head * out.union_capacity * row_bytes(task);
  head.keys(all, static_cast<std::byte*>(out.keys) + offset, reader_of(out));
  out.union_sizes[task.kv_head] = job.num_offloaded;
  task.result.key_bytes += job.num_offloaded * head.key_bytes();
  if (job.payload == Payload::kKeys) {
    return;  // which values follow is known once the device has the weights
  }
  head.values(all, static_cast<std::byte*>(out.values) + offset, reader_of(out));
  task.result.value_bytes += job.num_offloaded * head.value_bytes();
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
