// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/pipeline/cpu_stage.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "hybridgen/core/error.h"
#include "kernels/cpu_kernels.h"
#include "random_delay.h"

namespace hybridgen {
namespace {

// What any selector returns is checked: one from a user's own code may be wrong.
void check_positions(const TokenSelector& selector,
                     std::span<const std::int32_t> positions,
                     std::int64_t num_offloaded,
                     std::int64_t most) {
  const auto refuse = [&](const std::string& what) {
    throw ConfigError(message("[selector ",
                              selector.name(),
                              "] ",
                              what,
                              "; allowed: at most ",
                              most,
                              " positions, ascending, each once, from 0 to ",
                              num_offloaded - 1));
  };
  if (static_cast<std::int64_t>(positions.size()) > most) {
    refuse(message(positions.size(), " positions were chosen"));
  }
  std::int64_t before = -1;
  for (const std::int32_t position : positions) {
    if (position < 0 || position >= num_offloaded) {
      refuse(message("position ", position, " was chosen"));
    }
    if (position <= before) {
      refuse(message("position ", position, " was chosen after ", before));
    }
    before = position;
  }
}

}  // namespace

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
    scratch.planned.reserve(per_group * tokens);
  }
}

void CpuStage::submit(HostJobBatch& batch) {
  if (batch.jobs.empty()) {
    return;
  }
  const std::size_t num_tasks = batch.jobs.size() * static_cast<std::size_t>(num_kv_heads_);
  batch.results.resize(num_tasks);
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

void CpuStage::run(HostJobBatch& batch, std::int64_t index, int worker) {
  const HostJob& job = batch.jobs[static_cast<std::size_t>(index / num_kv_heads_)];
  if (batch.wait_for_device) {
    batch.wait_for_device();
  }
  random_delay(random_delay_us_);
  const Task task{job,
                  batch.layer,
                  index % num_kv_heads_,
                  scratch_[static_cast<std::size_t>(worker)],
                  batch.results[static_cast<std::size_t>(index)]};
  task.result = {.begin_ns = TraceRecorder::now_ns()};
  if (job.query != nullptr) {
    const std::int64_t elements = num_heads_ / num_kv_heads_ * head_dim_;
    const DType dtype = job.store->shape().dtype;
    kernels_.scale_to_float(dtype,
                            static_cast<const std::byte*>(job.query) +
                                task.kv_head * elements * static_cast<std::int64_t>(size_of(dtype)),
                            1.0F / std::sqrt(static_cast<float>(head_dim_)),
                            task.scratch.queries.data(),
                            elements);
  }
  append_new_token(task);

  const char* name = "gather";
  if (job.rule.choice == HostChoice::kAll) {
    if (job.rule.payload == PayloadKind::kPartialAttention) {
      name = "attend";
      attend(task, {});
    } else {
      name = "copy";
      ship_all(task);
    }
  } else if (!job.is_shared()) {
    name = "score, select, gather";
    choose_by_logits(task);
    gather(task, job.rule.payload == PayloadKind::kKeysAndValues);
  } else {
    const std::span<const std::int32_t> chosen = plan(task);
    if (job.rule.payload == PayloadKind::kPartialAttention) {
      name = "attend";
      attend(task, chosen);
    } else {
      if (job.rule.payload == PayloadKind::kLogitsAndValues) {
        name = "score planned, gather";
        score_planned(task, chosen);
      }
      gather(task, job.rule.payload == PayloadKind::kKeysAndValues);
    }
  }
  task.result.end_ns = TraceRecorder::now_ns();
  if (trace_.enabled()) {
    trace_.record({.name = name,
                   .lane = TraceLane::kCpu,
                   .worker = worker,
                   .layer = static_cast<std::int32_t>(batch.layer),
                   .step = batch.step,
                   .begin_ns = task.result.begin_ns,
                   .end_ns = task.result.end_ns,
                   .bytes = task.result.key_bytes + task.result.value_bytes});
  }
}

void CpuStage::append_new_token(const Task& task) const {
  if (task.job.new_key == nullptr) {
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

// The tokens of a Pre-QKT choice, left in `merged` as well.
std::span<const std::int32_t> CpuStage::plan(const Task& task) const {
  const HostJob& job = task.job;
  std::int32_t* merged = job.buffers.merged + task.kv_head * job.buffers.union_capacity;
  std::int64_t& count = job.buffers.union_sizes[task.kv_head];
  if (job.rule.choice == HostChoice::kPartialKeys || job.selector == nullptr) {
    return {merged, static_cast<std::size_t>(count)};  // planned on the device
  }
  const PlanContext context{
      task.layer, task.kv_head, job.num_offloaded, job.num_chosen, task.scratch.queries};
  const std::span<const std::int32_t> chosen = job.selector->plan(context, task.scratch.planned);
  check_positions(*job.selector, chosen, job.num_offloaded, job.num_chosen);
  count = static_cast<std::int64_t>(chosen.size());
  if (job.rule.payload == PayloadKind::kPartialAttention) {
    return chosen;  // nothing but the result leaves the host
  }
  std::ranges::copy(chosen, merged);
  return {merged, chosen.size()};
}

// Logits of chosen tokens, of all of them if none are named.
void CpuStage::logits_of(const Task& task,
                         std::span<const std::int32_t> chosen,
                         float* logits,
                         std::int64_t stride) const {
  const HostJob& job = task.job;
  const std::int64_t per_group = num_heads_ / num_kv_heads_;
  const auto row_bytes = head_dim_ * static_cast<std::int64_t>(size_of(job.store->shape().dtype));
  const auto count = static_cast<std::int64_t>(chosen.size());
  task.result.key_bytes += (chosen.empty() ? job.num_offloaded : count) * row_bytes;
  if (job.store->shape().key_layout == KeyLayout::kRows) {
    const RowView keys = job.store->key_rows(task.layer, task.kv_head);
    kernels::RowLogitsArgs args;
    args.dtype = keys.dtype;
    args.keys = keys.data;
    args.key_stride = head_dim_;
    args.head_dim = head_dim_;
    args.count = job.num_offloaded;
    args.queries = task.scratch.queries.data();
    args.num_queries = per_group;
    args.logits = logits;
    args.logits_stride = stride;
    if (chosen.empty()) {
      kernels_.row_logits(args);
    } else {
      kernels::chosen_row_logits(kernels_, args, chosen.data(), count);
    }
    return;
  }
  if (chosen.empty()) {
    kernels::BlockedLogitsArgs args;
    args.keys = job.store->keys(task.layer, task.kv_head);
    args.queries = task.scratch.queries.data();
    args.num_queries = per_group;
    args.tokens = {0, job.num_offloaded};
    args.logits = logits;
    args.logits_stride = stride;
    kernels_.blocked_logits(args);
    return;
  }
  kernels::ChosenLogitsArgs args;
  args.keys = job.store->keys(task.layer, task.kv_head);
  args.queries = task.scratch.queries.data();
  args.num_queries = per_group;
  args.positions = chosen.data();
  args.count = count;
  args.logits = logits;
  args.logits_stride = stride;
  kernels_.chosen_logits(args);
}

void CpuStage::choose_by_logits(const Task& task) const {
  const HostJob& job = task.job;
  const std::int64_t per_group = num_heads_ / num_kv_heads_;
  const std::int64_t first_head = task.kv_head * per_group;
  const HostJobBuffers& out = job.buffers;
  const std::int64_t chosen = job.num_chosen;
  logits_of(task, {}, task.scratch.logits.data(), job.num_offloaded);
  for (std::int64_t r = 0; r < per_group; ++r) {
    const std::int64_t row = (first_head + r) * chosen;
    const std::span<std::int32_t> positions{out.positions + row, static_cast<std::size_t>(chosen)};
    job.selector->select(task.layer,
                         first_head + r,
                         {task.scratch.logits.data() + r * job.num_offloaded,
                          static_cast<std::size_t>(job.num_offloaded)},
                         positions,
                         {out.logits + row, static_cast<std::size_t>(chosen)},
                         task.scratch.selection);
    check_positions(*job.selector, positions, job.num_offloaded, chosen);
  }
  out.union_sizes[task.kv_head] =
      kernels::merge_positions(out.positions + first_head * chosen,
                               per_group,
                               chosen,
                               out.merged + task.kv_head * out.union_capacity,
                               out.index + first_head * chosen);
}

void CpuStage::score_planned(const Task& task, std::span<const std::int32_t> chosen) const {
  if (!chosen.empty()) {
    const std::int64_t first_head = task.kv_head * (num_heads_ / num_kv_heads_);
    logits_of(task,
              chosen,
              task.job.buffers.logits + first_head * task.job.num_chosen,
              task.job.num_chosen);
  }
}

// Steps 2 and 3: rows of the tokens in `merged`, in token order.
void CpuStage::gather(const Task& task, bool keys) const {
  const HostJob& job = task.job;
  const HostJobBuffers& out = job.buffers;
  const auto row_bytes = head_dim_ * static_cast<std::int64_t>(size_of(job.store->shape().dtype));
  const std::int32_t* merged = out.merged + task.kv_head * out.union_capacity;
  const std::int64_t rows = out.union_sizes[task.kv_head];
  const std::int64_t offset = task.kv_head * out.union_capacity * row_bytes;
  kernels::gather_rows(job.store->values(task.layer, task.kv_head).data,
                       row_bytes,
                       merged,
                       rows,
                       static_cast<std::byte*>(out.values) + offset);
  task.result.value_bytes += rows * row_bytes;
  if (!keys) {
    return;
  }
  task.result.key_bytes += rows * row_bytes;
  auto* key_rows = static_cast<std::byte*>(out.keys) + offset;
  if (job.store->shape().key_layout == KeyLayout::kRows) {
    kernels::gather_rows(
        job.store->key_rows(task.layer, task.kv_head).data, row_bytes, merged, rows, key_rows);
  } else {
    kernels::gather_blocked_keys(job.store->keys(task.layer, task.kv_head), merged, rows, key_rows);
  }
}

void CpuStage::ship_all(const Task& task) const {
  const HostJob& job = task.job;
  const HostJobBuffers& out = job.buffers;
  const auto row_bytes = head_dim_ * static_cast<std::int64_t>(size_of(job.store->shape().dtype));
  const std::int64_t offset = task.kv_head * out.union_capacity * row_bytes;
  const auto bytes = static_cast<std::size_t>(job.num_offloaded * row_bytes);
  std::memcpy(static_cast<std::byte*>(out.keys) + offset,
              job.store->key_rows(task.layer, task.kv_head).data,
              bytes);
  out.union_sizes[task.kv_head] = job.num_offloaded;
  task.result.key_bytes += job.num_offloaded * row_bytes;
  if (job.rule.payload == PayloadKind::kKeysThenValues) {
    return;  // which values follow is known once the device has the weights
  }
  std::memcpy(static_cast<std::byte*>(out.values) + offset,
              job.store->values(task.layer, task.kv_head).data,
              bytes);
  task.result.value_bytes += job.num_offloaded * row_bytes;
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
  if (count > 0) {
    logits_of(task, chosen, logits, count);
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
