// SPDX-License-Identifier: Apache-2.0
#include "pipeline/cpu_stage.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <utility>

#include "kernels/cpu_kernels.h"
#include "pipeline/random_delay.h"

namespace hybridgen {
namespace {

// Ranges per worker: enough that none waits long for the last one. Shorter ones than this would
// cost more in hand-offs and in the prefetcher's starts than they could balance.
constexpr std::int64_t kRangesPerWorker = 8;
constexpr std::int64_t kLeastRange = 2048;

bool can_be_cut(const HostJob& job) { return !job.is_shared() && job.buffers.scores != nullptr; }

kernels::RowReader reader_of(const HostJobBuffers& buffers) {
  return buffers.device_reads ? kernels::RowReader::kDevice : kernels::RowReader::kCpu;
}

}  // namespace

CpuStage::CpuStage(WorkerPool& pool,
                   const kernels::CpuKernels& kernels,
                   const ModelConfig& config,
                   TraceRecorder& trace,
                   std::int64_t random_delay_us,
                   NumaDivision division,
                   bool waiter_helps)
    : pool_(pool),
      kernels_(kernels),
      trace_(trace),
      num_heads_(config.num_heads),
      num_kv_heads_(config.num_kv_heads),
      head_dim_(config.head_dim),
      random_delay_us_(random_delay_us),
      division_(std::move(division)),
      waiter_helps_(waiter_helps),
      scratch_(static_cast<std::size_t>(pool.size()) + 1) {
  for (Scratch& scratch : scratch_) {
    scratch.queries.resize(static_cast<std::size_t>(config.query_heads_per_kv_head() * head_dim_));
  }
}

void CpuStage::reserve(std::int64_t max_tokens, std::int64_t max_candidates) {
  const auto tokens = static_cast<std::size_t>(max_tokens);
  const auto per_group = static_cast<std::size_t>(num_heads_ / num_kv_heads_);
  for (Scratch& scratch : scratch_) {
    if (scratch.logits.size() < per_group * tokens) {
      scratch.logits.resize(per_group * tokens);
    }
    scratch.selection.reserve(static_cast<std::size_t>(kernels::top_k_scratch(max_tokens)));
    scratch.merging.reserve(tokens / 32 + 2);
    scratch.planned.reserve(per_group * tokens);
    if (max_candidates > 0) {
      const auto candidates = per_group * static_cast<std::size_t>(max_candidates);
      Rescoring& rescoring = scratch.rescoring;
      rescoring.queries.resize(per_group * static_cast<std::size_t>(kMaxShadowHeadDim));
      rescoring.scales.resize(per_group);
      rescoring.candidates.reserve(candidates);
      rescoring.merged.reserve(candidates);
      rescoring.index.reserve(candidates);
      rescoring.logits.reserve(per_group * std::min(candidates, tokens));
    }
  }
}

void CpuStage::submit(HostJobBatch& batch) {
  if (batch.jobs.empty()) {
    return;
  }
  cut(batch);
  batch.stage = this;
  batch.in_flight = true;
  batch.group.assign(&CpuStage::run_task, &batch, static_cast<std::int64_t>(batch.tasks.size()));
  pool_.submit(batch.group);
}

void CpuStage::cut(HostJobBatch& batch) const {
  const std::size_t num_heads = batch.jobs.size() * static_cast<std::size_t>(num_kv_heads_);
  const std::int64_t wanted = kRangesPerWorker * (pool_.size() + (waiter_helps_ ? 1 : 0));
  std::int64_t all_tokens = 0;
  for (const HostJob& job : batch.jobs) {
    all_tokens += job.num_offloaded * num_kv_heads_;
  }
  const std::int64_t length = score_stride(std::max(kLeastRange, all_tokens / wanted));
  batch.tasks.clear();
  batch.tasks.reserve(num_heads + static_cast<std::size_t>(wanted));  // at most so many
  batch.unscored.assign(num_heads, 0);
  batch.failures.assign(batch.jobs.size(), {});
  const std::vector<NumaPart>& parts = division_.parts;
  batch.queues.resize(parts.size());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    batch.queues[i].next = static_cast<std::int64_t>(batch.tasks.size());
    cut_heads(batch, length, parts[i].first_head, parts[i].num_heads);
    batch.queues[i].end = static_cast<std::int64_t>(batch.tasks.size());
  }
  if (parts.empty()) {
    cut_heads(batch, length, 0, num_kv_heads_);
  }
}

void CpuStage::cut_heads(HostJobBatch& batch,
                         std::int64_t length,
                         std::int64_t first_head,
                         std::int64_t num_heads) const {
  for (std::size_t job = 0; job < batch.jobs.size(); ++job) {
    const std::int64_t tokens = batch.jobs[job].num_offloaded;
    const std::int64_t num_ranges =
        can_be_cut(batch.jobs[job]) ? (tokens + length - 1) / length : 1;
    const std::int64_t each = score_stride((tokens + num_ranges - 1) / num_ranges);
    for (std::int64_t head = first_head; head < first_head + num_heads; ++head) {
      std::int32_t& unscored = batch.unscored[job * static_cast<std::size_t>(num_kv_heads_) +
                                              static_cast<std::size_t>(head)];
      for (std::int64_t begin = 0; begin < tokens; begin += each, ++unscored) {
        batch.tasks.push_back({.job = static_cast<std::int64_t>(job),
                               .kv_head = head,
                               .tokens = {begin, std::min(begin + each, tokens)},
                               .is_whole = num_ranges == 1});
      }
    }
  }
}

// The pool's task is a ticket for any one task of the batch: there are as many of both, so whoever
// holds a ticket finds a task, of its own node as long as that has any.
std::int64_t CpuStage::claim(HostJobBatch& batch, int worker) const {
  const std::size_t num_queues = batch.queues.size();
  // The waiter may be on any node: it begins with the first.
  auto queue =
      worker < pool_.size()
          ? static_cast<std::size_t>(division_.part_of_worker[static_cast<std::size_t>(worker)])
          : 0;
  for (;; queue = (queue + 1) % num_queues) {
    const std::int64_t end = batch.queues[queue].end;
    const std::atomic_ref next(batch.queues[queue].next);
    // Read first: an addition takes the line away from the node that it belongs to.
    if (next.load(std::memory_order_relaxed) < end) {
      const std::int64_t task = next.fetch_add(1, std::memory_order_relaxed);
      if (task < end) {
        return task;
      }
    }
  }
}

void CpuStage::wait(HostJobBatch& batch) {
  if (!batch.in_flight) {
    return;
  }
  batch.in_flight = false;
  if (waiter_helps_) {
    pool_.finish(batch.group);
  } else {
    pool_.wait(batch.group);
  }
  batch.begin_ns = batch.tasks.front().result.begin_ns;
  batch.end_ns = batch.tasks.front().result.end_ns;
  batch.key_bytes_read = 0;
  batch.value_bytes_read = 0;
  for (const HostJobBatch::Task& task : batch.tasks) {
    batch.begin_ns = std::min(batch.begin_ns, task.result.begin_ns);
    batch.end_ns = std::max(batch.end_ns, task.result.end_ns);
    batch.key_bytes_read += task.result.key_bytes;
    batch.value_bytes_read += task.result.value_bytes;
  }
}

void CpuStage::run_task(void* context, std::int64_t task, int worker) {
  auto& batch = *static_cast<HostJobBatch*>(context);
  CpuStage& stage = *batch.stage;
  const std::int64_t index = stage.division_.parts.empty() ? task : stage.claim(batch, worker);
  try {
    stage.run(batch, index, worker);
  } catch (...) {
    note_failure(batch, index);
  }
}

void CpuStage::note_failure(HostJobBatch& batch, std::int64_t task) {
  HostJobBatch::Task& failed = batch.tasks[static_cast<std::size_t>(task)];
  failed.result.end_ns = TraceRecorder::now_ns();
  if (failed.result.begin_ns == 0) {
    failed.result.begin_ns = failed.result.end_ns;
  }
  const std::lock_guard lock(batch.failures_mutex);
  HostJobBatch::Failure& first = batch.failures[static_cast<std::size_t>(failed.job)];
  if (first.error == nullptr || task < first.task) {
    first = {task, std::current_exception()};
  }
}

void CpuStage::run(HostJobBatch& batch, std::int64_t index, int worker) {
  HostJobBatch::Task& range = batch.tasks[static_cast<std::size_t>(index)];
  const HostJob& job = batch.jobs[static_cast<std::size_t>(range.job)];
  if (batch.wait_for_device) {
    batch.wait_for_device();
  }
  random_delay(random_delay_us_);
  const Task task{job,
                  batch.layer,
                  range.kv_head,
                  range.tokens,
                  scratch_[static_cast<std::size_t>(worker)],
                  range.result};
  HostJobBatch::TaskResult& result = range.result;
  result.begin_ns = TraceRecorder::now_ns();
  scale_query(task);
  append_new_token(task);
  if (job.shadow != nullptr) {
    prepare_for_shadow(task);
  }
  if (range.is_whole) {
    const char* name = run_whole(task);
    result.end_ns = TraceRecorder::now_ns();
    trace(
        batch, name, worker, result.begin_ns, result.end_ns, result.key_bytes + result.value_bytes);
    return;
  }
  std::int32_t& unscored =
      batch.unscored[static_cast<std::size_t>(range.job * num_kv_heads_ + range.kv_head)];
  const std::int64_t stride = score_stride(job.num_offloaded);
  float* scores = job.buffers.scores + range.kv_head * (num_heads_ / num_kv_heads_) * stride;
  logits_of_range(task, scores + range.tokens.begin, stride);
  result.end_ns = TraceRecorder::now_ns();
  trace(batch, "score", worker, result.begin_ns, result.end_ns, result.key_bytes);
  // Whoever scores the last range of a head finishes it and so sees what the others wrote.
  if (std::atomic_ref(unscored).fetch_sub(1, std::memory_order_acq_rel) != 1) {
    return;
  }
  const std::int64_t scored_ns = result.end_ns;
  const std::int64_t scored_bytes = result.key_bytes;
  choose(task, scores, stride);
  gather(task, job.rule.payload == PayloadKind::kKeysAndValues);
  result.end_ns = TraceRecorder::now_ns();
  trace(batch,
        "select, gather",
        worker,
        scored_ns,
        result.end_ns,
        result.key_bytes - scored_bytes + result.value_bytes);
}

// All of a (job, KV head) in one task. Returns its name.
const char* CpuStage::run_whole(const Task& task) const {
  const HostJob& job = task.job;
  const bool keys = job.rule.payload == PayloadKind::kKeysAndValues;
  if (job.rule.choice == HostChoice::kAll) {
    if (job.rule.payload == PayloadKind::kPartialAttention) {
      attend(task, {});
      return "attend";
    }
    ship_all(task);
    return "copy";
  }
  if (!job.is_shared()) {
    logits_of_range(task, task.scratch.logits.data(), job.num_offloaded);
    choose(task, task.scratch.logits.data(), job.num_offloaded);
    gather(task, keys);
    return "score, select, gather";
  }
  const std::span<const std::int32_t> chosen = plan(task);
  if (job.rule.payload == PayloadKind::kPartialAttention) {
    attend(task, chosen);
    return "attend";
  }
  if (job.rule.payload == PayloadKind::kLogitsAndValues) {
    score_planned(task, chosen);
    gather(task, keys);
    return "score planned, gather";
  }
  gather(task, keys);
  return "gather";
}

void CpuStage::trace(const HostJobBatch& batch,
                     const char* name,
                     int worker,
                     std::int64_t begin_ns,
                     std::int64_t end_ns,
                     std::int64_t bytes) const {
  if (trace_.enabled()) {
    trace_.record({.name = name,
                   .lane = TraceLane::kCpu,
                   .worker = worker,
                   .layer = static_cast<std::int32_t>(batch.layer),
                   .step = batch.step,
                   .begin_ns = begin_ns,
                   .end_ns = end_ns,
                   .bytes = bytes});
  }
}

void CpuStage::scale_query(const Task& task) const {
  if (task.job.query == nullptr) {
    return;
  }
  const std::int64_t elements = num_heads_ / num_kv_heads_ * head_dim_;
  const DType dtype = task.job.store->shape().dtype;
  kernels_.scale_to_float(dtype,
                          static_cast<const std::byte*>(task.job.query) +
                              task.kv_head * elements * static_cast<std::int64_t>(size_of(dtype)),
                          1.0F / std::sqrt(static_cast<float>(head_dim_)),
                          task.scratch.queries.data(),
                          elements);
}

void CpuStage::append_new_token(const Task& task) const {
  if (task.job.new_key == nullptr || task.tokens.end != task.job.num_offloaded) {
    return;
  }
  const std::int64_t row_bytes =
      head_dim_ * static_cast<std::int64_t>(size_of(task.job.store->shape().dtype));
  task.job.store->write_row(
      task.layer,
      task.kv_head,
      task.job.num_offloaded - 1,
      static_cast<const std::byte*>(task.job.new_key) + task.kv_head * row_bytes,
      static_cast<const std::byte*>(task.job.new_value) + task.kv_head * row_bytes);
}

void CpuStage::logits_of_range(const Task& task, float* logits, std::int64_t stride) const {
  const HostJob& job = task.job;
  if (job.shadow != nullptr) {
    score_by_shadow(task, logits, stride);
    return;
  }
  const auto row_bytes = head_dim_ * static_cast<std::int64_t>(size_of(job.store->shape().dtype));
  task.result.key_bytes += task.tokens.size() * row_bytes;
  if (job.store->shape().key_layout == KeyLayout::kRows) {
    const RowView keys = job.store->key_rows(task.layer, task.kv_head);
    kernels::RowLogitsArgs args;
    args.dtype = keys.dtype;
    args.keys = static_cast<const std::byte*>(keys.data) + task.tokens.begin * row_bytes;
    args.key_stride = head_dim_;
    args.head_dim = head_dim_;
    args.count = task.tokens.size();
    args.queries = task.scratch.queries.data();
    args.num_queries = num_heads_ / num_kv_heads_;
    args.logits = logits;
    args.logits_stride = stride;
    kernels_.row_logits(args);
    return;
  }
  kernels::BlockedLogitsArgs args;
  args.keys = job.store->keys(task.layer, task.kv_head);
  args.queries = task.scratch.queries.data();
  args.num_queries = num_heads_ / num_kv_heads_;
  args.tokens = task.tokens;
  args.logits = logits;
  args.logits_stride = stride;
  kernels_.blocked_logits(args);
}

void CpuStage::logits_of_chosen(const Task& task,
                                std::span<const std::int32_t> chosen,
                                float* logits,
                                std::int64_t stride) const {
  const HostJob& job = task.job;
  const auto row_bytes = head_dim_ * static_cast<std::int64_t>(size_of(job.store->shape().dtype));
  const auto count = static_cast<std::int64_t>(chosen.size());
  task.result.key_bytes += count * row_bytes;
  if (job.store->shape().key_layout == KeyLayout::kRows) {
    const RowView keys = job.store->key_rows(task.layer, task.kv_head);
    kernels::RowLogitsArgs args;
    args.dtype = keys.dtype;
    args.keys = keys.data;
    args.key_stride = head_dim_;
    args.head_dim = head_dim_;
    args.queries = task.scratch.queries.data();
    args.num_queries = num_heads_ / num_kv_heads_;
    args.logits = logits;
    args.logits_stride = stride;
    kernels::chosen_row_logits(kernels_, args, chosen.data(), count);
    return;
  }
  kernels::ChosenLogitsArgs args;
  args.keys = job.store->keys(task.layer, task.kv_head);
  args.queries = task.scratch.queries.data();
  args.num_queries = num_heads_ / num_kv_heads_;
  args.positions = chosen.data();
  args.count = count;
  args.logits = logits;
  args.logits_stride = stride;
  kernels_.chosen_logits(args);
}

void CpuStage::score_planned(const Task& task, std::span<const std::int32_t> chosen) const {
  if (!chosen.empty()) {
    const std::int64_t first_head = task.kv_head * (num_heads_ / num_kv_heads_);
    logits_of_chosen(task,
                     chosen,
                     task.job.buffers.logits + first_head * task.job.num_chosen,
                     task.job.num_chosen);
  }
}

// Steps 2 and 3: rows of the tokens in `merged`, in token order.
void CpuStage::gather(const Task& task, bool keys) const {
  const HostJob& job = task.job;
  const HostJobBuffers& out = job.buffers;
  const kernels::RowReader reader = reader_of(out);
  const auto row_bytes = head_dim_ * static_cast<std::int64_t>(size_of(job.store->shape().dtype));
  const std::int32_t* merged = out.merged + task.kv_head * out.union_capacity;
  const std::int64_t rows = out.union_sizes[task.kv_head];
  const std::int64_t offset = task.kv_head * out.union_capacity * row_bytes;
  kernels::gather_rows(job.store->values(task.layer, task.kv_head).data,
                       row_bytes,
                       merged,
                       rows,
                       static_cast<std::byte*>(out.values) + offset,
                       reader);
  task.result.value_bytes += rows * row_bytes;
  if (!keys) {
    return;
  }
  task.result.key_bytes += rows * row_bytes;
  auto* key_rows = static_cast<std::byte*>(out.keys) + offset;
  if (job.store->shape().key_layout == KeyLayout::kRows) {
    const void* keys_of_head = job.store->key_rows(task.layer, task.kv_head).data;
    kernels::gather_rows(keys_of_head, row_bytes, merged, rows, key_rows, reader);
  } else {
    kernels::gather_blocked_keys(job.store->keys(task.layer, task.kv_head), merged, rows, key_rows);
  }
}

void CpuStage::ship_all(const Task& task) const {
  const HostJob& job = task.job;
  const HostJobBuffers& out = job.buffers;
  const auto row_bytes = head_dim_ * static_cast<std::int64_t>(size_of(job.store->shape().dtype));
  const std::int64_t offset = task.kv_head * out.union_capacity * row_bytes;
  const std::int64_t bytes = job.num_offloaded * row_bytes;
  kernels::copy_rows(job.store->key_rows(task.layer, task.kv_head).data,
                     bytes,
                     static_cast<std::byte*>(out.keys) + offset,
                     reader_of(out));
  out.union_sizes[task.kv_head] = job.num_offloaded;
  task.result.key_bytes += bytes;
  if (job.rule.payload == PayloadKind::kKeysThenValues) {
    return;  // which values follow is known once the device has the weights
  }
  kernels::copy_rows(job.store->values(task.layer, task.kv_head).data,
                     bytes,
                     static_cast<std::byte*>(out.values) + offset,
                     reader_of(out));
  task.result.value_bytes += bytes;
}

// Attention over chosen tokens (all of them with HostChoice::kAll), finished on the host.
void CpuStage::attend(const Task& task, std::span<const std::int32_t> chosen) const {
  const HostJob& job = task.job;
  const bool is_all = job.rule.choice == HostChoice::kAll;
  const std::int64_t per_group = num_heads_ / num_kv_heads_;
  const std::int64_t first_head = task.kv_head * per_group;
  const DType dtype = job.store->shape().dtype;
  const auto row_bytes = head_dim_ * static_cast<std::int64_t>(size_of(dtype));
  const std::int64_t count = is_all ? job.num_offloaded : static_cast<std::int64_t>(chosen.size());
  float* logits = task.scratch.logits.data();
  if (is_all) {
    logits_of_range(task, logits, count);
  } else if (count > 0) {
    logits_of_chosen(task, chosen, logits, count);
  }
  kernels::SoftmaxValuesArgs args;
  args.dtype = dtype;
  args.logits = logits;
  args.logits_stride = count;
  args.num_queries = per_group;
  args.head_dim = head_dim_;
  args.out = static_cast<std::byte*>(job.buffers.output) + first_head * row_bytes;
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
    index.resize(static_cast<std::size_t>(per_group * count));
    if (!aliases) {
      std::ranges::copy(chosen, index.begin());
    }
    for (std::int64_t r = 1; r < per_group; ++r) {
      std::copy_n(index.begin(), count, index.begin() + r * count);
    }
    args.host_count = count;
    args.host_index = index.data();
    args.host_values = values;
  }
  kernels_.softmax_values(args);
  task.result.value_bytes += count * row_bytes;
}

}  // namespace hybridgen
