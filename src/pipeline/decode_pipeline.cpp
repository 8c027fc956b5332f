// SPDX-License-Identifier: Apache-2.0
#include "pipeline/decode_pipeline.h"

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "pipeline/feedback.h"
#include "pipeline/new_token.h"
#include "pipeline/staged_values.h"

namespace hybridgen {
namespace {

// A request that failed attends to whatever was left of it: its row is not to overflow on the way.
void clear_failed_rows(MicroBatch& batch) {
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    if (batch.requests[row]->failure != nullptr) {
      batch.ws.attended.select(0, static_cast<std::int64_t>(row)).zero_();
    }
  }
}

}  // namespace

DecodePipeline::DecodePipeline(const DecoderModel& model,
                               WeightStore& weights,
                               const DeviceOps& ops,
                               const Method& method,
                               CpuStage* cpu_stage,
                               WorkerPool* pool,
                               TraceRecorder& trace,
                               PipelineStatistics& statistics,
                               PipelineProbe* probe)
    : model_(model),
      weights_(weights),
      ops_(ops),
      method_(method),
      loop_{model,
            ops,
            method,
            pool,
            trace,
            statistics,
            probe,
            cpu_stage == nullptr ? nullptr : &cpu_stage->kernels()},
      host_(loop_, cpu_stage),
      guess_distance_(probe == nullptr ? 1 : probe->guess_distance()) {}

void DecodePipeline::step(Batches batches) {
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  loop_.sample = {};
  try {
    weights_.begin_pass();
    fetch_leaving(batches);
    for (const auto& batch : batches) {
      begin_step(*batch);
    }
    run_layers(batches);
  } catch (...) {
    for (const auto& batch : batches) {
      host_.wait_for_all(*batch);
      for (RequestState* request : batch->requests) {
        request->end_reading();
      }
    }
    leases_ = {};
    loop_.timer.reset();
    throw;
  }
  end_step(batches);
  loop_.statistics.decode_steps += 1;
  loop_.statistics.decode_s += static_cast<double>(TraceRecorder::now_ns() - begin_ns) * 1e-9;
  ++loop_.step;
}

void DecodePipeline::run_layers(Batches batches) {
  const auto num_batches = static_cast<std::int64_t>(batches.size());
  const std::int64_t lookahead = method_.batches.lookahead > 0
                                     ? std::min(method_.batches.lookahead, num_batches)
                                     : num_batches;
  const std::int64_t num_units = model_.config().num_layers * num_batches;
  const auto batch_of = [&](std::int64_t unit) -> MicroBatch& {
    return *batches[static_cast<std::size_t>(unit % num_batches)];
  };
  std::int64_t started = 0;
  for (std::int64_t unit = 0; unit < num_units; ++unit) {
    // A micro-batch enters layer i+1 as soon as it has left layer i.
    for (; started < std::min(num_units, unit + lookahead); ++started) {
      if (started % num_batches == 0) {
        lease(started / num_batches) = weights_.lease(started / num_batches);
      }
      start_layer(started / num_batches, batch_of(started));
    }
    finish_layer(unit / num_batches, batch_of(unit));
    if ((unit + 1) % num_batches == 0) {
      lease(unit / num_batches) = {};
    }
  }
  for (const auto& batch : batches) {
    for (RequestState* request : batch->requests) {
      contain(*request, [&] { send_leaving(method_, *request); });
    }
    compute_logits(*batch);
  }
  wait_for_device(batches);
  weights_.check_pass();
}

void DecodePipeline::start_layer(std::int64_t layer, MicroBatch& batch) {
  const ScopedSpan span = loop_.span("norm, q k v", layer);
  const std::int64_t next = layer + 1;
  loop_.timer.begin(/*paired=*/starts_by(HostQuery::kGuessed, next));
  // 1: the host starts on layer i+1, with a query guessed from layer i's input or with none.
  if (layer == 0 && starts_by(HostQuery::kNone, 0)) {
    host_.start(0, batch);
  }
  if (starts_by(HostQuery::kNone, next)) {
    host_.start(next, batch);
  }
  // This layer's own job, if it has one, is the more urgent: it goes to the workers first.
  const bool is_exact = starts_by(HostQuery::kExact, layer);
  const bool guesses_first = !is_exact && method_.guess_source == GuessSource::kNextWeights;
  if (guesses_first) {
    start_guessed(layer, batch, /*comes_first=*/true);
  }
  describe_rows(layer, batch);
  const AttentionBatch attention = batch.attention(layer);
  model_.attention_inputs(
      ops_, *lease(layer), batch.ws, method_.positions != PositionMode::kCacheIndex, &attention);
  if (is_exact) {
    host_.start(layer, batch, batch.ws.query);
  }
  if (!guesses_first) {
    start_guessed(layer, batch, /*comes_first=*/false);
  }
  loop_.timer.end();
}

void DecodePipeline::finish_layer(std::int64_t layer, MicroBatch& batch) {
  loop_.timer.begin(/*paired=*/starts_by(HostQuery::kGuessed, layer + 1));
  score_resident(layer, batch);  // 4
  host_.receive(layer, batch);   // 2, 3
  const ScopedSpan span = loop_.span("merge, output, FFN", layer);
  merge(layer, batch);  // 5
  host_.release(layer, batch);
  give_feedback(loop_, layer, batch);
  model_.attention_output(ops_, *lease(layer), batch.ws);
  model_.feed_forward(ops_, *lease(layer), batch.ws, /*may_wait=*/true);  // 5, 6
  loop_.timer.end();
}

bool DecodePipeline::starts_by(HostQuery query, std::int64_t layer) const {
  return layer < model_.config().num_layers && query_of(method_.work_of(layer)) == query;
}

void DecodePipeline::start_guessed(std::int64_t layer, MicroBatch& batch, bool comes_first) {
  const std::int64_t guessed = layer + guess_distance_;
  if (!starts_by(HostQuery::kGuessed, guessed)) {
    return;
  }
  if (method_.guess_source == GuessSource::kPreviousQuery) {
    host_.start(guessed, batch, batch.ws.query);
    return;
  }
  const LayerWeights& query = weights_.query(guessed);
  const LayerWeights& norm_of = method_.guess_norm == GuessNorm::kNext ? query : *lease(layer);
  model_.project_query(ops_, query, norm_of, comes_first ? &*lease(layer) : nullptr, batch.ws);
  host_.start(guessed, batch, batch.ws.guess);
}

// For requests whose prompt ended without a wait: one for all of them.
void DecodePipeline::fetch_leaving(Batches batches) {
  bool is_missing = false;
  for (const auto& batch : batches) {
    for (RequestState* request : batch->requests) {
      if (misses_leaving(method_, *request)) {
        is_missing = true;
        contain(*request, [&] { send_leaving(method_, *request); });
      }
    }
  }
  if (is_missing) {
    wait_for_device(batches);
  }
}

void DecodePipeline::begin_step(MicroBatch& batch) {
  auto* positions = batch.positions.mutable_data_ptr<std::int64_t>();
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    AttentionItem& item = batch.items[row];
    item = {.row = static_cast<std::int64_t>(row),
            .resident_logits = &request.logits.resident,
            .merged_logits = &request.logits.merged,
            .parts = &request.logits.parts,
            .finished = &request.logits.finished};
    positions[row] = 0;
    contain(request, [&] {
      request.parts.tell([&](KvPart& part) {
        part.before_step(request.tokens.num_offloaded(), request.host.get());
      });
      add_token(loop_, request);
      positions[row] = position_of_newest(method_.positions, request);
      item.first_slot = request.resident.first_slot();
      item.num_resident = request.resident.size();
      item.wants_weights = wants_weights(request) || is<FetchKeys>(method_.work) ||
                           is<FetchKeys>(method_.early_work);
      if (request.shifted) {
        request.shifted->begin_step(*request.parts.retention);
      }
    });
  }
  batch.send_inputs();
  batch.ws.lacks_projected = false;  // as a step that was broken off may leave it
  batch.ws.is_normed = false;
  batch.lost.begin_step();
  model_.embed(ops_, batch.device_tokens, batch.ws);
  loop_.statistics.decode_tokens += batch.rows();
}

void DecodePipeline::describe_rows(std::int64_t layer, MicroBatch& batch) {
  batch.slot(layer).has_payloads = false;
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    AttentionItem& item = batch.items[row];
    item.keys = &request.resident.keys(layer);
    item.values = &request.resident.values(layer);
    item.payload = nullptr;
    item.lse = nullptr;
  }
}

void DecodePipeline::score_resident(std::int64_t layer, MicroBatch& batch) {
  const ScopedSpan span = loop_.span("resident logits", layer);
  if (method_.positions == PositionMode::kCacheIndex) {
    turn_keys(layer, batch);
  }
  AttentionBatch attention = batch.attention(layer);
  attention.weights_only = is<FetchKeys>(method_.work_of(layer));
  ops_.resident_logits(batch.ws.query, attention);
  loop_.at_seam();
}

void DecodePipeline::turn_keys(std::int64_t layer, MicroBatch& batch) {
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    batch.items[row].turned = nullptr;
    contain(request, [&] {
      batch.items[row].turned = &request.shifted->of_layer(layer, *request.parts.retention);
    });
  }
  ops_.turn_keys(model_.step_rope(), batch.attention(layer));
  for (AttentionItem& item : batch.items) {
    if (item.turned != nullptr) {
      item.keys = &item.turned->keys;
    }
  }
}

void DecodePipeline::merge(std::int64_t layer, MicroBatch& batch) {
  if (is<FetchKeys>(method_.work_of(layer))) {
    attend_by_parts(loop_, layer, batch);
  } else {
    ops_.merge(batch.ws.query, batch.attention(layer), batch.ws.attended_heads);
  }
  clear_failed_rows(batch);
}

void DecodePipeline::compute_logits(MicroBatch& batch) {
  const ScopedSpan span = loop_.span("head");
  loop_.timer.begin();
  model_.head(ops_, batch.ws, batch.logits);
  loop_.timer.end();
  batch.lost.send();
  if (!model_.device().is_cpu()) {
    batch.host_logits.copy_(batch.logits, /*non_blocking=*/true);
  }
}

// The step's only wait for the device, but for that of values which its weights ask for.
void DecodePipeline::wait_for_device(Batches batches) {
  model_.device().record_compute(step_done_);
  DeviceContext::host_waits(step_done_);
  for (const auto& batch : batches) {
    for (RequestState* request : batch->requests) {
      if (request->leaving) {
        request->leaving->arrive();
      }
    }
  }
}

void DecodePipeline::end_step(Batches batches) {
  const StageTimes times = loop_.timer.take();
  PipelineStatistics& statistics = loop_.statistics;
  statistics.device_s += times.device_s;
  statistics.wait_s += times.wait_s;
  statistics.link_s += times.link_s;
  loop_.sample.link_s = times.link_s;
  loop_.sample.device_s = std::max(times.paired_s, 0.0);
  for (const auto& batch : batches) {
    for (RequestState* request : batch->requests) {
      request->end_reading();
    }
    if (!model_.device().is_cpu()) {
      finish_feedback(*batch);
    }
    for (std::size_t row = 0; row < batch->requests.size(); ++row) {
      RequestState& request = *batch->requests[row];
      contain(request, [&] {
        end_loss(*batch, row);
        end_request_step(request);
      });
      trace_decision(request);
    }
  }
}

// Moves are queued behind all that reads the rows, and before the caches forget the newest.
void DecodePipeline::finish_feedback(MicroBatch& batch) {
  batch.clear_moves();
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    contain(request, [&] { give_sent_feedback(loop_, request, batch.moves_of(row)); });
  }
  batch.move_rows(ops_);
}

// Of what a step left out; of tokens that are gone nobody knows.
void DecodePipeline::end_loss(const MicroBatch& batch, std::size_t row) {
  RequestState& request = *batch.requests[row];
  StepLoss loss = batch.lost.of(static_cast<std::int64_t>(row));
  const bool is_invented = model_.device().is_timed() && loss.kind != LossKind::kNone;
  if (request.tokens.num_dropped() > 0 || is_invented) {
    loss = {.kind = LossKind::kUnknown};
  }
  request.loss.add(loss);
  if (loss.kind != LossKind::kUnknown && request.tokens.num_offloaded() > 0) {
    trace_request(request,
                  loss.kind == LossKind::kEstimated ? "lost mass, estimated" : "lost mass, exact",
                  {.value = loss.mass});
  }
}

void DecodePipeline::end_request_step(RequestState& request) {
  end_retention_step(request);
  request.parts.tell([](KvPart& part) { part.end_step(); });
  request.steering.end_step(loop_.sample, request.tokens.num_offloaded());
}

// What the scheduler decided for the next step.
void DecodePipeline::trace_decision(const RequestState& request) const {
  const std::int64_t num_offloaded = request.tokens.num_offloaded();
  if (num_offloaded > 0) {
    trace_request(request,
                  request.steering.strategy() == SelectionStrategy::kPreQkt ? "pre" : "post",
                  {.bytes = request.num_attended(method_)});
  }
}

// On the scheduler's lane: `span` says what the event does not tell by itself.
void DecodePipeline::trace_request(const RequestState& request,
                                   const char* name,
                                   TraceSpan span) const {
  if (!loop_.trace.enabled()) {
    return;
  }
  span.name = name;
  span.lane = TraceLane::kScheduler;
  span.worker = static_cast<std::int32_t>(request.plan.shape.request_id);
  span.step = loop_.step;
  span.begin_ns = span.end_ns = TraceRecorder::now_ns();
  loop_.trace.record(span);
}

}  // namespace hybridgen
