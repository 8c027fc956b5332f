// SPDX-License-Identifier: Apache-2.0
#include "pipeline/host_jobs.h"

#include <algorithm>
#include <cstring>

#include "pipeline/make_host_job.h"

namespace hybridgen {
namespace {

// Rows of `from` [B, ...] (own row stride, contiguous within a row) into staging [B, N].
void copy_rows(const at::Tensor& from, at::Tensor& staging) {
  const auto element = static_cast<std::int64_t>(staging.element_size());
  const std::int64_t row_bytes = staging.size(1) * element;
  const auto* source = static_cast<const std::byte*>(from.const_data_ptr());
  auto* to = static_cast<std::byte*>(staging.mutable_data_ptr());
  for (std::int64_t row = 0; row < staging.size(0); ++row) {
    std::memcpy(to + row * row_bytes,
                source + row * from.stride(0) * element,
                static_cast<std::size_t>(row_bytes));
  }
}

const std::byte* row_of(const at::Tensor& staging, std::size_t row) {
  return static_cast<const std::byte*>(staging.const_data_ptr()) +
         static_cast<std::int64_t>(row) * staging.stride(0) *
             static_cast<std::int64_t>(staging.element_size());
}

// How many of the offloaded tokens a finished job let take part; whether all of them.
bool note_attended(const HostJob& job, std::int64_t num_kv_heads, RequestState& request) {
  std::int64_t attended = 0;
  for (std::int64_t g = 0; g < num_kv_heads; ++g) {
    attended += job.payload == Payload::kKeys
                    ? std::min(job.num_offloaded,
                               request.parts.kept_values->num_kept(request.tokens.num_tokens()))
                : job.takes_every_token() ? job.num_offloaded
                : job.is_shared()         ? job.buffers.union_sizes[g]
                                          : job.num_chosen;
  }
  request.attended.attended += attended;
  request.attended.available += num_kv_heads * job.num_offloaded;
  request.attended.last_attended = attended / num_kv_heads;
  return attended == num_kv_heads * job.num_offloaded;
}

// What a finished job tells of the tokens that it left out, if it did.
LossKind loss_of(const HostJob& job, HostQuery query) {
  if (job.buffers.unchosen == nullptr) {
    return LossKind::kUnknown;
  }
  return query == HostQuery::kExact && job.selection()->proxy == nullptr ? LossKind::kExact
                                                                         : LossKind::kEstimated;
}

}  // namespace

void HostJobs::start(std::int64_t layer, MicroBatch& batch, const at::Tensor& query) {
  if (stage_ == nullptr) {
    return;
  }
  MicroBatch::HostSlot& slot = batch.slot(layer);
  HostJobBatch& jobs = slot.batch;
  jobs.layer = layer;
  jobs.step = loop_.step;
  jobs.jobs.clear();
  slot.rows.clear();
  bool needs_query = false;
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    needs_query |= add_job(layer, batch, row);
  }
  if (jobs.jobs.empty()) {
    return;
  }
  if (std::ranges::any_of(jobs.jobs, &HostJob::is_chosen_on_device)) {
    batch.start_plans(loop_.ops, layer, query);
  }
  if (needs_query) {
    send(query, slot.queries, jobs.jobs.size());
  }
  if (slot.new_keys.defined()) {
    send(batch.ws.key, slot.new_keys, jobs.jobs.size());
    send(batch.ws.value, slot.new_values, jobs.jobs.size());
  }
  if (loop_.model.device().is_cpu()) {
    read_plans(jobs.jobs);
  } else {
    // For every job: the event also says that the merge of layer - 2 has left this staging.
    loop_.model.device().record_compute(slot.device_ready);
  }
  stage_->submit(jobs);
  if (loop_.probe != nullptr) {
    loop_.probe->after_submit(*stage_, jobs);
  }
}

// Starts to read what lies on the disk of that which the job reads as a whole.
void HostJobs::read_for(const HostJob& job, std::int64_t layer, RequestState& request) const {
  KvDisk& disk = *request.host->disk();
  if (job.reads_all_keys()) {
    disk.expect(layer, KvSide::kKeys);
  }
  if (job.reads_all_values()) {
    disk.expect(layer, KvSide::kValues);
  }
  request.next_read = std::max(request.next_read, layer + 1);
}

// Memory is reserved for what two layers read: the one whose job runs and the one that is next.
void HostJobs::read_ahead(RequestState& request) const {
  while (request.next_read < loop_.config().num_layers &&
         request.host->disk()->num_layers_read() < KvDisk::kLayersRead) {
    const std::int64_t layer = request.next_read++;
    const HostWork& work = loop_.method.work_of(layer);
    if (!is<Nothing>(work)) {
      read_for(host_job(request, layer, work), layer, request);
    }
  }
}

void HostJobs::release(std::int64_t layer, MicroBatch& batch) {
  for (RequestState* request : batch.requests) {
    if (request->on_disk() == nullptr) {
      continue;
    }
    request->on_disk()->release(layer);
    contain(*request, [&] { read_ahead(*request); });
  }
}

// Returns whether there is a job for the row and it reads the query.
bool HostJobs::add_job(std::int64_t layer, MicroBatch& batch, std::size_t row) {
  const HostWork& work = loop_.method.work_of(layer);
  RequestState& request = *batch.requests[row];
  if (request.tokens.num_offloaded() == 0 || request.failure != nullptr) {
    return false;
  }
  MicroBatch::HostSlot& slot = batch.slot(layer);
  HostJob job = host_job(request, layer, work);
  job.buffers.union_sizes = slot.union_sizes.mutable_data_ptr<std::int64_t>() +
                            static_cast<std::int64_t>(row) * slot.union_sizes.size(1);
  if (job.leaves_scored_tokens()) {
    job.buffers.unchosen = batch.lost.unchosen(layer, static_cast<std::int64_t>(row));
  }
  if (request.on_disk() != nullptr) {
    contain(request, [&] {
      read_for(job, layer, request);
      read_ahead(request);
    });
    if (request.failure != nullptr) {
      return false;
    }
  }
  if (auto* chosen = std::get_if<ChosenOnDevice>(&job.chooser)) {
    *chosen = batch.plans.of(layer, row, *chosen);
  }
  const bool reads_query = query_of(work) != HostQuery::kNone && !job.only_copies();
  if (reads_query) {
    job.query = row_of(slot.queries, row);
  }
  if (slot.new_keys.defined()) {
    job.new_key = row_of(slot.new_keys, row);
    job.new_value = row_of(slot.new_values, row);
  }
  slot.batch.jobs.push_back(job);
  slot.rows.push_back(static_cast<std::int64_t>(row));
  return reads_query;
}

// What the device planned for a finished job is told to whoever wants to know.
void HostJobs::note_plan(std::int64_t layer, const HostJob& job, const RequestState& request) {
  const auto* plan = std::get_if<ChosenOnDevice>(&job.chooser);
  if (plan == nullptr) {
    return;
  }
  const std::int64_t groups = loop_.config().num_kv_heads;
  const auto count = static_cast<std::size_t>(job.num_chosen);
  for (std::int64_t g = 0; g < groups; ++g) {
    const std::span<const std::int32_t> slots{plan->places + g * plan->most, count};
    request.parts.tell([&](KvPart& part) { part.on_fetch(layer, g, slots); });
  }
  loop_.link.to_host(groups * job.num_chosen * static_cast<std::int64_t>(sizeof(std::int32_t)));
}

void HostJobs::send(const at::Tensor& from, at::Tensor& staging, std::size_t num_jobs) {
  if (loop_.model.device().is_cpu()) {
    copy_rows(from, staging);
  } else {
    staging.copy_(from.reshape(staging.sizes()), /*non_blocking=*/true);
  }
  loop_.link.to_host(static_cast<std::int64_t>(num_jobs) * staging.size(1) *
                     static_cast<std::int64_t>(staging.element_size()));
}

void HostJobs::receive(std::int64_t layer, MicroBatch& batch) {
  MicroBatch::HostSlot& slot = batch.slot(layer);
  if (stage_ == nullptr || slot.batch.jobs.empty()) {
    return;
  }
  const ScopedSpan waiting = loop_.span("wait for payload", layer);
  loop_.timer.before_wait();
  stage_->wait(slot.batch);
  ship(layer, batch);
  loop_.model.device().compute_waits(slot.payload_ready);
  loop_.timer.after_wait();
  count(slot.batch, loop_.method.work_of(layer));
}

void HostJobs::ship(std::int64_t layer, MicroBatch& batch) {
  MicroBatch::HostSlot& slot = batch.slot(layer);
  const DeviceContext& device = loop_.model.device();
  const auto copy = device.use_copy();
  std::int64_t bytes = 0;
  loop_.timer.begin_link();
  for (std::size_t i = 0; i < slot.batch.jobs.size(); ++i) {
    const auto row = static_cast<std::size_t>(slot.rows[i]);
    RequestState& request = *batch.requests[row];
    HostStaging& staging = request.staging_of(layer);
    contain(request, [&] {
      if (const std::exception_ptr& error = slot.batch.error(i)) {
        std::rethrow_exception(error);
      }
      note_plan(layer, slot.batch.jobs[i], request);
      bytes += staging.ship(slot.batch.jobs[i], slot.union_rows[row], slot.device_union_rows[row]);
      batch.items[row].payload = &staging.payload();
      slot.has_payloads = true;
      note_loss(layer, batch, slot.rows[i], slot.batch.jobs[i]);
    });
  }
  if (slot.has_payloads) {
    loop_.ops.fetch(batch.payloads(layer));
  }
  loop_.timer.end_link();
  device.record_copy(slot.payload_ready);
  loop_.link.to_device(bytes);
  if (loop_.trace.enabled()) {
    loop_.trace.record({.name = "payload",
                        .lane = TraceLane::kLink,
                        .layer = static_cast<std::int32_t>(layer),
                        .step = loop_.step,
                        .begin_ns = slot.batch.end_ns,
                        .end_ns = TraceRecorder::now_ns(),
                        .bytes = bytes});
  }
}

void HostJobs::note_loss(std::int64_t layer,
                         MicroBatch& batch,
                         std::int64_t row,
                         const HostJob& job) {
  const auto index = static_cast<std::size_t>(row);
  if (note_attended(job, loop_.config().num_kv_heads, *batch.requests[index])) {
    return;
  }
  batch.lost.note(layer, row, loss_of(job, query_of(loop_.method.work_of(layer))));
  if (job.buffers.unchosen != nullptr) {
    batch.items[index].lse = batch.lost.merged(layer, row);
    loop_.link.to_host(loop_.config().num_heads * static_cast<std::int64_t>(sizeof(float)));
  }
}

void HostJobs::count(const HostJobBatch& jobs, const HostWork& work) {
  const double host_s = static_cast<double>(jobs.end_ns - jobs.begin_ns) * 1e-9;
  if (query_of(work) == HostQuery::kGuessed) {
    loop_.sample.host_s += host_s;
    loop_.sample.num_pairs += 1;
  }
  PipelineStatistics& statistics = loop_.statistics;
  statistics.cpu_s += host_s;
  statistics.host_jobs += static_cast<std::int64_t>(jobs.jobs.size());
  statistics.host_key_bytes += jobs.key_bytes_read;
  statistics.host_value_bytes += jobs.value_bytes_read;
  statistics.cxl_key_bytes += jobs.cxl_key_bytes_read;
  statistics.cxl_value_bytes += jobs.cxl_value_bytes_read;
}

void HostJobs::wait_for_all(MicroBatch& batch) {
  for (MicroBatch::HostSlot& slot : batch.slots) {
    if (stage_ != nullptr) {
      stage_->wait(slot.batch);
    }
  }
}

}  // namespace hybridgen
