// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/pipeline/decode_pipeline.h"

#include <ATen/ATen.h>

#include <cstring>

#include "hybridgen/core/error.h"
#include "hybridgen/pipeline/eviction.h"
#include "random_delay.h"

namespace hybridgen {
namespace {

// Rows of `query` [B, ...] (own row stride, contiguous within a row) into staging [B, H D].
void copy_query_rows(const at::Tensor& query, at::Tensor& staging) {
  const auto element = static_cast<std::int64_t>(staging.element_size());
  const std::int64_t row_bytes = staging.size(1) * element;
  const auto* from = static_cast<const std::byte*>(query.const_data_ptr());
  auto* to = static_cast<std::byte*>(staging.mutable_data_ptr());
  for (std::int64_t row = 0; row < staging.size(0); ++row) {
    std::memcpy(to + row * row_bytes,
                from + row * query.stride(0) * element,
                static_cast<std::size_t>(row_bytes));
  }
}

}  // namespace

DecodePipeline::DecodePipeline(const DecoderModel& model,
                               const DeviceOps& ops,
                               const Method& method,
                               CpuStage* cpu_stage,
                               TraceRecorder& trace,
                               PipelineStatistics& statistics,
                               const TestSwitches& test)
    : model_(model),
      ops_(ops),
      method_(method),
      cpu_stage_(cpu_stage),
      trace_(trace),
      statistics_(statistics),
      test_(test),
      timer_(model.device()) {}

void DecodePipeline::step(std::span<const std::unique_ptr<MicroBatch>> batches) {
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  try {
    run_layers(batches);
  } catch (...) {
    // Workers may still write into the requests' staging: let them finish before it goes away.
    for (const auto& batch : batches) {
      for (MicroBatch::HostSlot& slot : batch->slots) {
        try {
          if (cpu_stage_ != nullptr) {
            cpu_stage_->wait(slot.batch);
          }
        } catch (...) {  // NOLINT(bugprone-empty-catch): the first error is on its way already
        }
      }
    }
    throw;
  }
  const StageTimes times = timer_.take();
  statistics_.device_s += times.device_s;
  statistics_.wait_s += times.wait_s;
  statistics_.link_s += times.link_s;
  statistics_.decode_steps += 1;
  statistics_.decode_s += static_cast<double>(TraceRecorder::now_ns() - begin_ns) * 1e-9;
  ++step_;
}

void DecodePipeline::run_layers(std::span<const std::unique_ptr<MicroBatch>> batches) {
  const auto compute = model_.device().use_compute();
  for (const auto& batch : batches) {
    begin_step(*batch);
  }
  const std::int64_t num_layers = model_.config().num_layers;
  for (std::int64_t layer = 0; layer < num_layers; ++layer) {
    for (const auto& batch : batches) {
      const std::int64_t begin_ns = TraceRecorder::now_ns();
      timer_.begin();
      // 1: the host starts on layer i+1 with a query guessed from layer i's input.
      const std::int64_t ahead = test_.oracle_proxy ? layer : layer + 1;
      if (guesses(ahead)) {
        model_.project_query(ops_, ahead, batch->ws);
        start_host_jobs(ahead, *batch, batch->ws.guess);
      }
      model_.attention_inputs(ops_, layer, batch->ws);
      append_key_value(layer, *batch);
      if (!guesses(layer)) {
        start_host_jobs(layer, *batch, batch->ws.query);
      }
      timer_.end();
      trace_device("norm, q k v", layer, begin_ns);
    }
    for (const auto& batch : batches) {
      std::int64_t begin_ns = TraceRecorder::now_ns();
      timer_.begin();
      ops_.resident_logits(batch->ws.query, batch->items);  // 4
      random_delay(test_.random_delay_us);
      trace_device("resident logits", layer, begin_ns);
      receive_payloads(layer, *batch);  // 2, 3
      begin_ns = TraceRecorder::now_ns();
      ops_.merge(batch->ws.query, batch->items, batch->ws.attended_heads);  // 5
      model_.finish_block(ops_, layer, batch->ws);                          // 5, 6
      timer_.end();
      trace_device("merge, output, FFN", layer, begin_ns);
    }
  }
  for (const auto& batch : batches) {
    const std::int64_t begin_ns = TraceRecorder::now_ns();
    timer_.begin();
    model_.head(ops_, batch->ws, batch->logits);
    timer_.end();
    if (!model_.device().is_cpu()) {
      batch->host_logits.copy_(batch->logits);  // the step's only wait of the host for the device
    }
    trace_device("head", -1, begin_ns);
  }
}

bool DecodePipeline::guesses(std::int64_t layer) const {
  return cpu_stage_ != nullptr && layer < model_.config().num_layers &&
         method_.query_of(layer) == HostQuery::kGuessed;
}

void DecodePipeline::begin_step(MicroBatch& batch) {
  auto* positions = batch.ws.positions.mutable_data_ptr<std::int64_t>();
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    make_room(request);
    request.tokens.append(1);
    positions[row] = request.tokens.num_tokens() - 1;
    [[maybe_unused]] const std::int64_t slot = request.resident.append_slot();
    AttentionItem& item = batch.items[row];
    item.row = static_cast<std::int64_t>(row);
    item.first_slot = request.resident.first_slot();
    item.num_resident = request.resident.size();
    item.resident_logits = &request.resident_logits;
    item.merged_logits = &request.merged_logits;
    HYBRIDGEN_DCHECK(slot + 1 == item.first_slot + item.num_resident, slot);
    HYBRIDGEN_DCHECK(item.num_resident == request.tokens.num_resident(), item.num_resident);
    HYBRIDGEN_DCHECK(request.tokens.num_resident() <= request.plan.window,
                     request.tokens.num_resident());
    request.available_offloaded += request.tokens.num_offloaded();
    request.attended_offloaded += request.k.resolve(request.tokens.num_offloaded());
  }
  model_.embed(ops_, batch.tokens, batch.ws);
  statistics_.decode_tokens += batch.rows();
}

void DecodePipeline::make_room(RequestState& request) {
  const EvictionPlan plan = request.eviction.plan(request.tokens, 1);
  if (plan.tokens.empty()) {
    return;
  }
  for (std::int64_t layer = 0; layer < model_.config().num_layers; ++layer) {
    statistics_.evicted_bytes += evict_rows(*request.host,
                                            layer,
                                            plan.tokens,
                                            request.resident.keys(layer),
                                            request.resident.values(layer),
                                            request.resident.first_slot());
  }
  request.resident.drop_front(plan.tokens.size());
  request.tokens.offload(plan.tokens);
}

void DecodePipeline::append_key_value(std::int64_t layer, MicroBatch& batch) {
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    AttentionItem& item = batch.items[row];
    item.keys = &request.resident.keys(layer);
    item.values = &request.resident.values(layer);
    item.payload = nullptr;
    const std::int64_t slot = item.first_slot + item.num_resident - 1;
    ops_.append_row(batch.ws.key, item.row, request.resident.keys(layer), slot);
    ops_.append_row(batch.ws.value, item.row, request.resident.values(layer), slot);
  }
}

void DecodePipeline::start_host_jobs(std::int64_t layer,
                                     MicroBatch& batch,
                                     const at::Tensor& query) {
  if (cpu_stage_ == nullptr) {
    return;
  }
  MicroBatch::HostSlot& slot = batch.slot(layer);
  slot.batch.layer = layer;
  slot.batch.step = step_;
  slot.batch.jobs.clear();
  slot.rows.clear();
  slot.ship_keys = method_.payload_of(layer) == PayloadKind::kKeysAndValues;
  const std::int64_t row_elements = slot.queries.size(1);
  const std::int64_t row_bytes =
      row_elements * static_cast<std::int64_t>(slot.queries.element_size());
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    const std::int64_t num_offloaded = request.tokens.num_offloaded();
    if (num_offloaded == 0) {
      continue;
    }
    HostJob job;
    job.store = request.host.get();
    job.query = static_cast<const std::byte*>(slot.queries.const_data_ptr()) +
                static_cast<std::int64_t>(row) * row_bytes;
    job.selector = request.selector.get();
    job.num_offloaded = num_offloaded;
    job.num_chosen = request.k.resolve(num_offloaded);
    job.ship_keys = slot.ship_keys;
    job.buffers = request.staging[static_cast<std::size_t>(layer % 2)].buffers(slot.ship_keys);
    slot.batch.jobs.push_back(job);
    slot.rows.push_back(static_cast<std::int64_t>(row));
  }
  if (slot.batch.jobs.empty()) {
    return;
  }
  if (model_.device().is_cpu()) {
    copy_query_rows(query, slot.queries);
  } else {
    slot.queries.copy_(query.reshape(slot.queries.sizes()), /*non_blocking=*/true);
    model_.device().record_compute(slot.queries_ready);
  }
  statistics_.d2h_bytes += static_cast<std::int64_t>(slot.batch.jobs.size()) * row_bytes;
  cpu_stage_->submit(slot.batch);
  if (test_.synchronous) {
    cpu_stage_->wait(slot.batch);
  }
}

void DecodePipeline::receive_payloads(std::int64_t layer, MicroBatch& batch) {
  MicroBatch::HostSlot& slot = batch.slot(layer);
  if (cpu_stage_ == nullptr || slot.batch.jobs.empty()) {
    return;
  }
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  timer_.before_wait();
  cpu_stage_->wait(slot.batch);
  std::int64_t bytes = 0;
  {
    const auto copy = model_.device().use_copy();
    timer_.begin_link();
    for (std::size_t i = 0; i < slot.batch.jobs.size(); ++i) {
      const auto row = static_cast<std::size_t>(slot.rows[i]);
      HostStaging& staging = batch.requests[row]->staging[static_cast<std::size_t>(layer % 2)];
      bytes += staging.ship(model_.device(), slot.batch.jobs[i].num_chosen, slot.ship_keys);
      batch.items[row].payload = &staging.payload();
    }
    timer_.end_link();
    model_.device().record_copy(slot.payload_ready);
  }
  model_.device().compute_waits(slot.payload_ready);
  timer_.after_wait();
  statistics_.cpu_s += static_cast<double>(slot.batch.end_ns - slot.batch.begin_ns) * 1e-9;
  statistics_.host_jobs += static_cast<std::int64_t>(slot.batch.jobs.size());
  statistics_.host_key_bytes += slot.batch.key_bytes_read;
  statistics_.host_value_bytes += slot.batch.value_bytes_read;
  statistics_.h2d_bytes += bytes;
  if (trace_.enabled()) {
    const std::int64_t end_ns = TraceRecorder::now_ns();
    trace_.record({.name = "wait for payload",
                   .lane = TraceLane::kDevice,
                   .layer = static_cast<std::int32_t>(layer),
                   .step = step_,
                   .begin_ns = begin_ns,
                   .end_ns = end_ns});
    trace_.record({.name = "logits, values",
                   .lane = TraceLane::kLink,
                   .layer = static_cast<std::int32_t>(layer),
                   .step = step_,
                   .begin_ns = slot.batch.end_ns,
                   .end_ns = end_ns,
                   .bytes = bytes});
  }
}

void DecodePipeline::trace_device(const char* name, std::int64_t layer, std::int64_t begin_ns) {
  if (trace_.enabled()) {
    trace_.record({.name = name,
                   .lane = TraceLane::kDevice,
                   .layer = static_cast<std::int32_t>(layer),
                   .step = step_,
                   .begin_ns = begin_ns,
                   .end_ns = TraceRecorder::now_ns()});
  }
}

}  // namespace hybridgen
