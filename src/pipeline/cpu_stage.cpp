// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/pipeline/cpu_stage.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/cpu_kernels.h"
#include "random_delay.h"

namespace hybridgen {

CpuStage::CpuStage(WorkerPool& pool,
                   const kernels::CpuKernels& kernels,
                   const ModelConfig& config,
                   TraceRecorder& trace,
                   std::int64_t random_delay_us)
    : pool_(pool),
      kernels_(kernels),
      trace_(trace),
      num_heads_(config.num_heads),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      random_delay_us_(random_delay_us),
      scratch_(static_cast<std::size_t>(pool.size())) {
  for (Scratch& scratch : scratch_) {
    scratch.queries.resize(static_cast<std::size_t>(config.query_heads_per_kv_head() * head_dim_));
  }
}

void CpuStage::reserve(std::int64_t max_tokens) {
  const auto tokens = static_cast<std::size_t>(max_tokens);
  const auto per_group = static_cast<std::size_t>(num_heads_ / num_kv_heads_);
  for (Scratch& scratch : scratch_) {
    if (scratch.logits.size() < per_group * tokens) {
      scratch.logits.resize(per_group * tokens);
    }
    scratch.selection.reserve(tokens);
  }
}

void CpuStage::submit(HostJobBatch& batch) {
  if (batch.jobs.empty()) {
    return;
  }
  const std::size_t num_tasks = batch.jobs.size() * static_cast<std::size_t>(num_kv_heads_);
  batch.results.resize(num_tasks);
  for (const HostJob& job : batch.jobs) {
    if (job.selector->strategy() == SelectionStrategy::kPreQkt) {
      job.selector->plan(batch.layer,
                         job.num_offloaded,
                         {job.buffers.positions, static_cast<std::size_t>(job.num_chosen)});
    }
  }
  batch.stage = this;
  batch.in_flight = true;
  batch.group.assign(&CpuStage::run_task, &batch, static_cast<std::int64_t>(num_tasks));
  pool_.submit(batch.group);
}

void CpuStage::wait(HostJobBatch& batch) {
  if (!batch.in_flight) {
    return;
  }
  batch.in_flight = false;
  pool_.wait(batch.group);
  batch.begin_ns = batch.results.front().begin_ns;
  batch.end_ns = batch.results.front().end_ns;
  batch.key_bytes_read = 0;
  batch.value_bytes_read = 0;
  for (const HostJobBatch::TaskResult& result : batch.results) {
    batch.begin_ns = std::min(batch.begin_ns, result.begin_ns);
    batch.end_ns = std::max(batch.end_ns, result.end_ns);
    batch.key_bytes_read += result.key_bytes;
    batch.value_bytes_read += result.value_bytes;
  }
}

void CpuStage::run_task(void* context, std::int64_t task, int worker) {
  auto& batch = *static_cast<HostJobBatch*>(context);
  batch.stage->run(batch, task, worker);
}

void CpuStage::run(HostJobBatch& batch, std::int64_t task, int worker) {
  if (batch.wait_for_queries) {
    batch.wait_for_queries();
  }
  random_delay(random_delay_us_);
  HostJobBatch::TaskResult& result = batch.results[static_cast<std::size_t>(task)];
  result.begin_ns = TraceRecorder::now_ns();
  const HostJob& job = batch.jobs[static_cast<std::size_t>(task / num_kv_heads_)];
  const std::int64_t kv_head = task % num_kv_heads_;
  const std::int64_t per_group = num_heads_ / num_kv_heads_;
  const DType dtype = job.store->shape().dtype;
  const auto row_bytes = head_dim_ * static_cast<std::int64_t>(size_of(dtype));
  Scratch& scratch = scratch_[static_cast<std::size_t>(worker)];

  kernels_.scale_to_float(
      dtype,
      static_cast<const std::byte*>(job.query) + kv_head * per_group * row_bytes,
      1.0F / std::sqrt(static_cast<float>(head_dim_)),
      scratch.queries.data(),
      per_group * head_dim_);

  const bool is_planned = job.selector->strategy() == SelectionStrategy::kPreQkt;
  if (is_planned) {
    score_planned(job, batch.layer, kv_head, scratch.queries.data());
  } else {
    choose_by_logits(batch, job, kv_head, scratch.queries.data(), scratch);
  }

  // Step 2 and 3: the values of the union of the group's choices, in token order.
  const HostJobBuffers& out = job.buffers;
  const std::int32_t* merged = out.merged + kv_head * out.union_capacity;
  const std::int64_t rows = out.union_sizes[kv_head];
  const std::int64_t offset = kv_head * out.union_capacity * row_bytes;
  kernels::gather_rows(job.store->values(batch.layer, kv_head).data,
                       row_bytes,
                       merged,
                       rows,
                       static_cast<std::byte*>(out.values) + offset);
  if (job.ship_keys) {
    kernels::gather_blocked_keys(job.store->keys(batch.layer, kv_head),
                                 merged,
                                 rows,
                                 static_cast<std::byte*>(out.keys) + offset);
  }
  const std::int64_t scanned = is_planned ? job.num_chosen : job.num_offloaded;
  result.key_bytes = (scanned + (job.ship_keys ? rows : 0)) * row_bytes;
  result.value_bytes = rows * row_bytes;
  result.end_ns = TraceRecorder::now_ns();
  if (trace_.enabled()) {
    trace_.record({.name = is_planned ? "score planned, gather" : "score, select, gather",
                   .lane = TraceLane::kCpu,
                   .worker = worker,
                   .layer = static_cast<std::int32_t>(batch.layer),
                   .step = batch.step,
                   .begin_ns = result.begin_ns,
                   .end_ns = result.end_ns,
                   .bytes = result.key_bytes + result.value_bytes});
  }
}

void CpuStage::choose_by_logits(const HostJobBatch& batch,
                                const HostJob& job,
                                std::int64_t kv_head,
                                const float* queries,
                                Scratch& scratch) const {
  const std::int64_t per_group = num_heads_ / num_kv_heads_;
  const std::int64_t first_head = kv_head * per_group;
  const HostJobBuffers& out = job.buffers;
  const std::int64_t chosen = job.num_chosen;
  kernels::BlockedLogitsArgs args;
  args.keys = job.store->keys(batch.layer, kv_head);
  args.queries = queries;
  args.num_queries = per_group;
  args.tokens = {0, job.num_offloaded};
  args.logits = scratch.logits.data();
  args.logits_stride = job.num_offloaded;
  kernels_.blocked_logits(args);
  for (std::int64_t r = 0; r < per_group; ++r) {
    const std::int64_t row = (first_head + r) * chosen;
    job.selector->select(batch.layer,
                         first_head + r,
                         {scratch.logits.data() + r * job.num_offloaded,
                          static_cast<std::size_t>(job.num_offloaded)},
                         {out.positions + row, static_cast<std::size_t>(chosen)},
                         {out.logits + row, static_cast<std::size_t>(chosen)},
                         scratch.selection);
  }
  out.union_sizes[kv_head] = kernels::merge_positions(out.positions + first_head * chosen,
                                                      per_group,
                                                      chosen,
                                                      out.merged + kv_head * out.union_capacity,
                                                      out.index + first_head * chosen);
}

void CpuStage::score_planned(const HostJob& job,
                             std::int64_t layer,
                             std::int64_t kv_head,
                             const float* queries) const {
  const std::int64_t per_group = num_heads_ / num_kv_heads_;
  const HostJobBuffers& out = job.buffers;
  const std::int64_t chosen = job.num_chosen;
  const std::int64_t first = kv_head * per_group * chosen;
  kernels::ChosenLogitsArgs args;
  args.keys = job.store->keys(layer, kv_head);
  args.queries = queries;
  args.num_queries = per_group;
  args.positions = out.positions;  // one plan for all heads, at the front of the buffer
  args.count = chosen;
  args.logits = out.logits + first;
  args.logits_stride = chosen;
  kernels_.chosen_logits(args);
  std::copy_n(out.positions, chosen, out.merged + kv_head * out.union_capacity);
  for (std::int64_t r = 0; r < per_group; ++r) {
    std::iota(out.index + first + r * chosen, out.index + first + (r + 1) * chosen, 0);
  }
  out.union_sizes[kv_head] = chosen;
}

}  // namespace hybridgen
