// SPDX-License-Identifier: Apache-2.0
#include "pipeline/cpu_stage.h"

#include <algorithm>
#include <atomic>
#include <utility>

#include "kernels/cpu_kernels.h"
#include "pipeline/pipeline_probe.h"

namespace hybridgen {
namespace {

// Ranges per worker: enough that none waits long for the last one. Shorter ones than this would
// cost more in hand-offs and in the prefetcher's starts than they could balance.
constexpr std::int64_t kRangesPerWorker = 8;
constexpr std::int64_t kLeastRange = 2048;

bool attends_to_all(const HostJob& job) {
  return job.payload == Payload::kPartialAttention && job.takes_every_token();
}

std::int64_t share_of(std::int64_t bytes, double share) {
  return static_cast<std::int64_t>(static_cast<double>(bytes) * share);
}

bool can_be_cut(const HostJob& job) {
  return attends_to_all(job) || (job.selection() != nullptr && job.buffers.scores != nullptr);
}

// Ranges of both kinds of jobs begin where a part of attention does.
std::int64_t round_up_to_part(std::int64_t tokens) {
  return kernels::part_count(tokens) * kernels::kPartTokens;
}

}  // namespace

CpuStage::CpuStage(WorkerPool& pool,
                   const kernels::CpuKernels& kernels,
                   const ModelConfig& config,
                   TraceRecorder& trace,
                   PipelineProbe* probe,
                   NumaDivision division,
                   bool waiter_helps)
    : pool_(pool),
      runner_(kernels, config),
      trace_(trace),
      num_kv_heads_(config.num_kv_heads),
      probe_(probe),
      division_(std::move(division)),
      waiter_helps_(waiter_helps),
      scratch_(static_cast<std::size_t>(pool.size()) + 1) {
  reserve(0);
  static_cast<void>(kernels::scan_prefetch());  // measured here, not in the first step
}

void CpuStage::reserve(std::int64_t max_tokens, std::int64_t max_candidates) {
  for (HostScratch& scratch : scratch_) {
    runner_.reserve(scratch, max_tokens, max_candidates);
  }
}

void CpuStage::submit(HostJobBatch& batch) {
  if (batch.jobs.empty()) {
    return;
  }
  cut(batch);
  batch.stage = this;
  batch.group.assign(&CpuStage::run_task, &batch, static_cast<std::int64_t>(batch.pieces.size()));
  if (batch.wait_for_device && gate_ == nullptr) {
    gate_ = std::make_unique<DeviceGate>(pool_);
  }
  batch.in_flight = true;
  if (!batch.wait_for_device) {
    pool_.submit(batch.group);
    return;
  }
  batch.ticket = gate_->submit(batch.group, batch.wait_for_device, batch.device_error);
}

void CpuStage::cut(HostJobBatch& batch) const {
  const std::size_t num_heads = batch.jobs.size() * static_cast<std::size_t>(num_kv_heads_);
  const std::int64_t wanted = kRangesPerWorker * (pool_.size() + (waiter_helps_ ? 1 : 0));
  std::int64_t all_tokens = 0;
  for (const HostJob& job : batch.jobs) {
    all_tokens += job.num_offloaded * num_kv_heads_;
  }
  const std::int64_t length = round_up_to_part(std::max(kLeastRange, all_tokens / wanted));
  batch.pieces.clear();
  batch.pieces.reserve(num_heads + static_cast<std::size_t>(wanted));  // at most so many
  batch.unfinished.assign(num_heads, 0);
  batch.failures.assign(batch.jobs.size(), {});
  const std::vector<NumaPart>& parts = division_.parts;
  batch.queues.resize(parts.size());
  for (std::size_t i = 0; i < parts.size(); ++i) {
    batch.queues[i].next = static_cast<std::int64_t>(batch.pieces.size());
    cut_heads(batch, length, parts[i].first_head, parts[i].num_heads);
    batch.queues[i].end = static_cast<std::int64_t>(batch.pieces.size());
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
    const std::int64_t each = round_up_to_part((tokens + num_ranges - 1) / num_ranges);
    for (std::int64_t head = first_head; head < first_head + num_heads; ++head) {
      std::int32_t& unfinished = batch.unfinished[job * static_cast<std::size_t>(num_kv_heads_) +
                                                  static_cast<std::size_t>(head)];
      for (std::int64_t begin = 0; begin < tokens; begin += each, ++unfinished) {
        batch.pieces.push_back({.job = static_cast<std::int64_t>(job),
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
  if (batch.wait_for_device) {
    gate_->pass(batch.ticket);
  }
  if (waiter_helps_) {
    pool_.finish(batch.group);
  } else {
    pool_.wait(batch.group);
  }
  batch.begin_ns = batch.pieces.front().result.begin_ns;
  batch.end_ns = batch.pieces.front().result.end_ns;
  batch.key_bytes_read = 0;
  batch.value_bytes_read = 0;
  batch.cxl_key_bytes_read = 0;
  batch.cxl_value_bytes_read = 0;
  for (const HostJobBatch::Piece& piece : batch.pieces) {
    batch.begin_ns = std::min(batch.begin_ns, piece.result.begin_ns);
    batch.end_ns = std::max(batch.end_ns, piece.result.end_ns);
    batch.key_bytes_read += piece.result.key_bytes;
    batch.value_bytes_read += piece.result.value_bytes;
    const HostJob& job = batch.jobs[static_cast<std::size_t>(piece.job)];
    batch.cxl_key_bytes_read += share_of(piece.result.key_bytes, job.keys_in_cxl);
    batch.cxl_value_bytes_read += share_of(piece.result.value_bytes, job.values_in_cxl);
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

// Where a probe stands in for slower memory than there is.
void CpuStage::take_time_of_cxl(const HostJob& job, const HostTaskResult& result) const {
  if (probe_ == nullptr) {
    return;
  }
  const std::int64_t bytes =
      share_of(result.key_bytes, job.keys_in_cxl) + share_of(result.value_bytes, job.values_in_cxl);
  if (bytes > 0) {
    probe_->after_cxl_read(bytes, result.begin_ns);
  }
}

void CpuStage::note_failure(HostJobBatch& batch, std::int64_t index) {
  HostJobBatch::Piece& failed = batch.pieces[static_cast<std::size_t>(index)];
  failed.result.end_ns = TraceRecorder::now_ns();
  if (failed.result.begin_ns == 0) {
    failed.result.begin_ns = failed.result.end_ns;
  }
  const std::lock_guard lock(batch.failures_mutex);
  HostJobBatch::Failure& first = batch.failures[static_cast<std::size_t>(failed.job)];
  if (first.error == nullptr || index < first.piece) {
    first = {index, std::current_exception()};
  }
}

void CpuStage::run(HostJobBatch& batch, std::int64_t index, int worker) {
  HostJobBatch::Piece& piece = batch.pieces[static_cast<std::size_t>(index)];
  const HostJob& job = batch.jobs[static_cast<std::size_t>(piece.job)];
  if (batch.device_error != nullptr) {
    std::rethrow_exception(batch.device_error);
  }
  if (probe_ != nullptr) {
    probe_->at_seam();
  }
  HostTaskResult& result = piece.result;
  const HostTask task{job,
                      batch.layer,
                      piece.kv_head,
                      piece.tokens,
                      scratch_[static_cast<std::size_t>(worker)],
                      result};
  result.begin_ns = TraceRecorder::now_ns();
  runner_.prepare(task);
  if (!piece.is_whole) {
    run_range(batch, task, piece.job, worker);
    return;
  }
  runner_.run_whole(task);
  take_time_of_cxl(job, result);
  result.end_ns = TraceRecorder::now_ns();
  trace(batch,
        label_of(job),
        worker,
        result.begin_ns,
        result.end_ns,
        result.key_bytes + result.value_bytes);
}

void CpuStage::run_range(HostJobBatch& batch,
                         const HostTask& task,
                         std::int64_t job,
                         int worker) const {
  HostTaskResult& result = task.result;
  const bool attends = attends_to_all(task.job);
  const std::int64_t stride = score_stride(task.job.num_offloaded);
  float* const scores =
      attends ? nullptr
              : task.job.buffers.scores + task.kv_head * runner_.query_heads_per_kv_head() * stride;
  if (attends) {
    runner_.attend(task);
  } else {
    runner_.score(task, scores + task.tokens.begin, stride);
  }
  take_time_of_cxl(task.job, result);
  result.end_ns = TraceRecorder::now_ns();
  trace(batch,
        attends ? "attend" : "score",
        worker,
        result.begin_ns,
        result.end_ns,
        result.key_bytes + result.value_bytes);
  // Whoever does the last range of a head finishes it and so sees what the others wrote.
  std::int32_t& unfinished =
      batch.unfinished[static_cast<std::size_t>(job * num_kv_heads_ + task.kv_head)];
  if (std::atomic_ref(unfinished).fetch_sub(1, std::memory_order_acq_rel) != 1) {
    return;
  }
  const std::int64_t scored_ns = result.end_ns;
  if (attends) {
    runner_.join_parts(task, task.job.num_offloaded);
    result.end_ns = TraceRecorder::now_ns();
    return;
  }
  const std::int64_t scored_bytes = result.key_bytes;
  runner_.finish(task, scores, stride);
  take_time_of_cxl(task.job,
                   {.begin_ns = scored_ns,
                    .key_bytes = result.key_bytes - scored_bytes,
                    .value_bytes = result.value_bytes});
  result.end_ns = TraceRecorder::now_ns();
  trace(batch,
        "select, gather",
        worker,
        scored_ns,
        result.end_ns,
        result.key_bytes - scored_bytes + result.value_bytes);
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

}  // namespace hybridgen
