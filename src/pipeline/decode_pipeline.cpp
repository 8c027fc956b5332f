// SPDX-License-Identifier: Apache-2.0
#include "pipeline/decode_pipeline.h"

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>

#include "hybridgen/core/error.h"
#include "pipeline/feedback.h"
#include "pipeline/offload.h"
#include "pipeline/random_delay.h"
#include "pipeline/sparse_values.h"

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

// How many of the offloaded tokens a finished job let take part.
void note_attended(const Method& method,
                   const HostJob& job,
                   std::int64_t num_kv_heads,
                   RequestState& request) {
  const std::int64_t others = request.tokens.num_tokens() - 1;
  std::int64_t attended = 0;
  for (std::int64_t g = 0; g < num_kv_heads; ++g) {
    attended +=
        job.rule.payload == PayloadKind::kKeysThenValues
            ? std::min(job.num_offloaded,
                       static_cast<std::int64_t>(method.value_share * static_cast<double>(others)))
        : job.rule.choice == HostChoice::kAll ? job.num_offloaded
        : job.is_shared()                     ? job.buffers.union_sizes[g]
                                              : job.num_chosen;
  }
  request.attended_offloaded += attended;
  request.available_offloaded += num_kv_heads * job.num_offloaded;
  request.last_chosen = attended / num_kv_heads;
}

// A request that failed attends to whatever was left of it: its row is not to overflow on the way.
void clear_failed_rows(MicroBatch& batch) {
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    if (batch.requests[row]->failure != nullptr) {
      batch.ws.attended.select(0, static_cast<std::int64_t>(row)).zero_();
    }
  }
}

const std::byte* row_of(const at::Tensor& staging, std::size_t row) {
  return static_cast<const std::byte*>(staging.const_data_ptr()) +
         static_cast<std::int64_t>(row) * staging.stride(0) *
             static_cast<std::int64_t>(staging.element_size());
}

}  // namespace

DecodePipeline::DecodePipeline(const DecoderModel& model,
                               const DeviceOps& ops,
                               const Method& method,
                               CpuStage* cpu_stage,
                               WorkerPool* pool,
                               TraceRecorder& trace,
                               PipelineStatistics& statistics,
                               const TestSwitches& test)
    : model_(model),
      ops_(ops),
      method_(method),
      cpu_stage_(cpu_stage),
      pool_(pool),
      trace_(trace),
      statistics_(statistics),
      test_(test),
      timer_(model.device()) {}

void DecodePipeline::step(std::span<const std::unique_ptr<MicroBatch>> batches) {
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  try {
    for (const auto& batch : batches) {
      for (RequestState* request : batch->requests) {
        contain(*request, [&] { fill_shadow(*request); });
      }
    }
    run_layers(batches);
  } catch (...) {
    // Workers may still write into the requests' staging: let them finish before it goes away.
    for (const auto& batch : batches) {
      for (MicroBatch::HostSlot& slot : batch->slots) {
        if (cpu_stage_ != nullptr) {
          cpu_stage_->wait(slot.batch);
        }
      }
    }
    throw;
  }
  end_step(batches);
  statistics_.decode_steps += 1;
  statistics_.decode_s += static_cast<double>(TraceRecorder::now_ns() - begin_ns) * 1e-9;
  ++step_;
}

void DecodePipeline::run_layers(std::span<const std::unique_ptr<MicroBatch>> batches) {
  const auto compute = model_.device().use_compute();
  sample_ = {};
  for (const auto& batch : batches) {
    begin_step(*batch);
  }
  const auto num_batches = static_cast<std::int64_t>(batches.size());
  const std::int64_t lookahead =
      method_.lookahead > 0 ? std::min(method_.lookahead, num_batches) : num_batches;
  const std::int64_t num_units = model_.config().num_layers * num_batches;
  std::int64_t started = 0;
  for (std::int64_t unit = 0; unit < num_units; ++unit) {
    // A micro-batch enters layer i+1 as soon as it has left layer i.
    for (; started < std::min(num_units, unit + lookahead); ++started) {
      start_layer(started / num_batches, *batches[static_cast<std::size_t>(started % num_batches)]);
    }
    finish_layer(unit / num_batches, *batches[static_cast<std::size_t>(unit % num_batches)]);
  }
  for (const auto& batch : batches) {
    const std::int64_t begin_ns = TraceRecorder::now_ns();
    timer_.begin();
    model_.head(ops_, batch->ws, batch->logits);
    timer_.end();
    if (!model_.device().is_cpu()) {
      batch->host_logits.copy_(batch->logits);  // the host waits for the device
    }
    trace_device("head", -1, begin_ns);
  }
}

void DecodePipeline::start_layer(std::int64_t layer, MicroBatch& batch) {
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  const std::int64_t next = layer + 1;
  const bool has_next = next < model_.config().num_layers;
  const auto query_of = [&](std::int64_t of) { return method_.rule_of(of).query; };
  timer_.begin(has_next && query_of(next) == HostQuery::kGuessed);
  // 1: the host starts on layer i+1, with a query guessed from layer i's input or with none.
  if (layer == 0 && query_of(0) == HostQuery::kNone) {
    start_host_jobs(0, batch, {});
  }
  if (has_next && query_of(next) == HostQuery::kNone) {
    start_host_jobs(next, batch, {});
  }
  const std::int64_t guessed = test_.oracle_proxy ? layer : next;
  const bool guesses =
      guessed < model_.config().num_layers && query_of(guessed) == HostQuery::kGuessed;
  const bool reuses_query = method_.guess_source == GuessSource::kPreviousQuery;
  const auto start_guessed = [&] {
    if (!reuses_query) {
      const bool uses_own_norm = method_.guess_norm == GuessNorm::kNext || test_.oracle_proxy;
      model_.project_query(ops_, guessed, uses_own_norm ? guessed : layer, batch.ws);
    }
    start_host_jobs(guessed, batch, reuses_query ? batch.ws.query : batch.ws.guess);
  };
  // This layer's own job, if it has one, is the more urgent: it goes to the workers first.
  const bool is_exact = query_of(layer) == HostQuery::kExact;
  const bool guesses_first = guesses && !is_exact && !reuses_query;
  if (guesses_first) {
    start_guessed();
  }
  model_.attention_inputs(ops_, layer, batch.ws, method_.positions != PositionMode::kCacheIndex);
  append_key_value(layer, batch);
  if (is_exact) {
    start_host_jobs(layer, batch, batch.ws.query);
  }
  if (guesses && !guesses_first) {
    start_guessed();
  }
  timer_.end();
  trace_device("norm, q k v", layer, begin_ns);
}

void DecodePipeline::finish_layer(std::int64_t layer, MicroBatch& batch) {
  std::int64_t begin_ns = TraceRecorder::now_ns();
  const bool has_next = layer + 1 < model_.config().num_layers;
  timer_.begin(has_next && method_.rule_of(layer + 1).query == HostQuery::kGuessed);
  shift_keys(layer, batch);
  ops_.resident_logits(batch.ws.query, batch.items);  // 4
  random_delay(test_.random_delay_us);
  trace_device("resident logits", layer, begin_ns);
  receive_payloads(layer, batch);  // 2, 3
  begin_ns = TraceRecorder::now_ns();
  if (method_.rule_of(layer).payload == PayloadKind::kKeysThenValues) {
    const LinkBytes bytes = attend_with_some_values(model_.device(), method_, layer, batch);  // 5
    statistics_.h2d_bytes += bytes.to_device;
    statistics_.d2h_bytes += bytes.to_host;
  } else {
    ops_.merge(batch.ws.query, batch.items, batch.ws.attended_heads);  // 5
  }
  clear_failed_rows(batch);
  feed_back(layer, batch);
  model_.finish_block(ops_, layer, batch.ws);  // 5, 6
  timer_.end();
  trace_device("merge, output, FFN", layer, begin_ns);
}

void DecodePipeline::begin_step(MicroBatch& batch) {
  auto* positions = batch.ws.positions.mutable_data_ptr<std::int64_t>();
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    AttentionItem& item = batch.items[row];
    item = {.row = static_cast<std::int64_t>(row),
            .resident_logits = &request.resident_logits,
            .merged_logits = &request.merged_logits};
    positions[row] = 0;
    contain(request, [&] {
      add_token(request);
      positions[row] = position_of(request);
      item.first_slot = request.resident.first_slot();
      item.num_resident = request.resident.size();
    });
  }
  model_.embed(ops_, batch.tokens, batch.ws);
  statistics_.decode_tokens += batch.rows();
}

void DecodePipeline::add_token(RequestState& request) {
  make_room(request);
  request.tokens.append(1);
  if (method_.residency == Residency::kNone) {
    const std::int64_t newest = request.tokens.num_tokens() - 1;
    request.tokens.offload({newest, newest + 1});
  } else {
    [[maybe_unused]] const std::int64_t slot = request.resident.append_slot();
    HYBRIDGEN_DCHECK(slot + 1 == request.resident.first_slot() + request.resident.size(), slot);
  }
  HYBRIDGEN_DCHECK(request.resident.size() == request.tokens.num_resident(),
                   request.resident.size());
  HYBRIDGEN_DCHECK(request.tokens.num_resident() <= std::max<std::int64_t>(request.plan.window, 1),
                   request.tokens.num_resident());
}

void DecodePipeline::make_room(RequestState& request) {
  if (method_.residency != Residency::kWindow) {
    return;  // nobody leaves, or a retention policy decided in the step before
  }
  const EvictionPlan plan = request.eviction.plan(request.tokens, 1);
  if (plan.tokens.empty()) {
    return;
  }
  const std::int64_t room = request.pool == nullptr
                                ? plan.tokens.size()
                                : request.pool->capacity() - request.pool->size();
  const TokenRange moving{plan.tokens.begin,
                          plan.tokens.begin + std::min(room, plan.tokens.size())};
  const std::int64_t first = request.resident.first_slot();
  for (std::int64_t layer = 0; layer < model_.config().num_layers; ++layer) {
    const at::Tensor& keys = request.resident.keys(layer);
    const at::Tensor& values = request.resident.values(layer);
    if (!moving.empty()) {
      statistics_.evicted_bytes += offload_rows(request, layer, moving, keys, values, first);
    }
    for (std::int64_t row = moving.size(); row < plan.tokens.size(); ++row) {
      statistics_.evicted_bytes += replace_in_pool(request, layer, keys, values, first + row);
    }
  }
  request.resident.drop_front(plan.tokens.size());
  request.tokens.drop(plan.tokens.size() - moving.size());
  request.tokens.offload(moving);
}

// Where the new token stands; it is in the token mapper and, if resident, in the cache already.
std::int64_t DecodePipeline::position_of(const RequestState& request) const {
  const std::int64_t position = request.tokens.num_tokens() - 1;
  switch (method_.positions) {
    case PositionMode::kCacheIndex:
      return request.resident.size() - 1;
    case PositionMode::kClamped:
      return std::min(position, request.retention->budget());
    case PositionMode::kOriginal:
      break;
  }
  return position;
}

void DecodePipeline::append_key_value(std::int64_t layer, MicroBatch& batch) {
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    AttentionItem& item = batch.items[row];
    item.keys = &request.resident.keys(layer);
    item.values = &request.resident.values(layer);
    item.payload = nullptr;
    if (item.num_resident > 0) {
      const std::int64_t slot = item.first_slot + item.num_resident - 1;
      ops_.append_row(batch.ws.key, item.row, request.resident.keys(layer), slot);
      ops_.append_row(batch.ws.value, item.row, request.resident.values(layer), slot);
    }
  }
}

void DecodePipeline::shift_keys(std::int64_t layer, MicroBatch& batch) {
  if (method_.positions != PositionMode::kCacheIndex) {
    return;
  }
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    contain(request, [&] {
      shift_to_cache_places(model_, ops_, layer, request);
      batch.items[row].keys = &request.shifted_keys;
    });
  }
}

void DecodePipeline::start_host_jobs(std::int64_t layer,
                                     MicroBatch& batch,
                                     const at::Tensor& query) {
  if (cpu_stage_ == nullptr) {
    return;
  }
  const LayerRule& rule = method_.rule_of(layer);
  MicroBatch::HostSlot& slot = batch.slot(layer);
  slot.batch.layer = layer;
  slot.batch.step = step_;
  slot.batch.jobs.clear();
  slot.rows.clear();
  const bool appends = method_.residency == Residency::kNone;
  bool needs_query = false;
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    const std::int64_t num_offloaded = request.tokens.num_offloaded();
    if (num_offloaded == 0 || request.failure != nullptr) {
      continue;
    }
    HostJob job;
    job.store = request.host.get();
    job.rule = rule;
    job.num_offloaded = num_offloaded;
    job.num_chosen = num_offloaded;
    job.buffers = request.staging[static_cast<std::size_t>(layer % 2)].buffers();
    if (rule.choice == HostChoice::kSelector) {
      job.is_planned = request.strategy() == SelectionStrategy::kPreQkt;
      job.selector = request.active_selector();
      if (rule.payload != PayloadKind::kPartialAttention) {
        job.num_chosen = request.num_chosen(num_offloaded);
      }
      if (request.shadow != nullptr && !job.is_planned) {
        job.num_candidates = request.num_candidates(job.num_chosen, num_offloaded);
        // With every token a candidate there is nothing to propose.
        job.shadow = job.num_candidates < num_offloaded ? request.shadow.get() : nullptr;
      }
    }
    if (rule.choice != HostChoice::kAll && job.selector == nullptr) {
      contain(request, [&] {
        plan_by_partial_keys(layer, request, query.select(0, static_cast<std::int64_t>(row)), job);
      });
      if (request.failure != nullptr) {
        continue;
      }
    }
    // Where the device chose and will score, the host only copies rows.
    const bool only_copies = rule.payload == PayloadKind::kKeysAndValues && job.selector == nullptr;
    const bool reads_query = rule.query != HostQuery::kNone && !only_copies;
    if (reads_query) {
      job.query = row_of(slot.queries, row);
      needs_query = true;
    }
    if (appends) {
      job.new_key = row_of(slot.new_keys, row);
      job.new_value = row_of(slot.new_values, row);
    }
    slot.batch.jobs.push_back(job);
    slot.rows.push_back(static_cast<std::int64_t>(row));
  }
  if (slot.batch.jobs.empty()) {
    return;
  }
  const auto send = [&](const at::Tensor& from, at::Tensor& staging) {
    if (model_.device().is_cpu()) {
      copy_rows(from, staging);
    } else {
      staging.copy_(from.reshape(staging.sizes()), /*non_blocking=*/true);
    }
    statistics_.d2h_bytes += static_cast<std::int64_t>(slot.batch.jobs.size()) * staging.size(1) *
                             static_cast<std::int64_t>(staging.element_size());
  };
  if (needs_query) {
    send(query, slot.queries);
  }
  if (appends) {
    send(batch.ws.key, slot.new_keys);
    send(batch.ws.value, slot.new_values);
  }
  if (!model_.device().is_cpu()) {
    // For every job: the event also says that the merge of layer - 2 has left this staging.
    model_.device().record_compute(slot.device_ready);
  }
  cpu_stage_->submit(slot.batch);
  if (test_.synchronous) {
    cpu_stage_->wait(slot.batch);
  }
}

void DecodePipeline::plan_by_partial_keys(std::int64_t layer,
                                          RequestState& request,
                                          const at::Tensor& query,
                                          HostJob& job) {
  // HybridGen steers the number of tokens itself; InfiniGen's own rule finds it.
  const std::optional<std::int64_t> wanted =
      job.rule.choice == HostChoice::kSelector ? std::optional(job.num_chosen) : std::nullopt;
  const at::Tensor chosen =
      request.partial_keys->plan(ops_,
                                 layer,
                                 query.view({model_.config().num_heads, model_.config().head_dim}),
                                 job.num_offloaded,
                                 wanted);
  const std::int64_t groups = chosen.size(0);
  const std::int64_t count = chosen.size(1);
  const auto* from = chosen.const_data_ptr<std::int32_t>();
  for (std::int64_t g = 0; g < groups; ++g) {
    std::int32_t* merged = job.buffers.merged + g * job.buffers.union_capacity;
    std::copy_n(from + g * count, count, merged);
    job.buffers.union_sizes[g] = count;
    if (request.pool != nullptr) {
      request.pool->on_fetch(layer, g, {merged, static_cast<std::size_t>(count)});
    }
  }
  job.num_chosen = count;
  statistics_.d2h_bytes += groups * count * static_cast<std::int64_t>(sizeof(std::int32_t));
}

void DecodePipeline::receive_payloads(std::int64_t layer, MicroBatch& batch) {
  MicroBatch::HostSlot& slot = batch.slot(layer);
  if (cpu_stage_ == nullptr || slot.batch.jobs.empty() ||
      method_.rule_of(layer).payload == PayloadKind::kNothing) {
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
      RequestState& request = *batch.requests[row];
      HostStaging& staging = request.staging[static_cast<std::size_t>(layer % 2)];
      contain(request, [&] {
        if (const std::exception_ptr& error = slot.batch.error(i)) {
          std::rethrow_exception(error);
        }
        bytes += staging.ship(model_.device(), slot.batch.jobs[i]);
        note_attended(method_, slot.batch.jobs[i], model_.config().num_kv_heads, request);
        batch.items[row].payload = &staging.payload();
      });
    }
    timer_.end_link();
    model_.device().record_copy(slot.payload_ready);
  }
  model_.device().compute_waits(slot.payload_ready);
  timer_.after_wait();
  const double host_s = static_cast<double>(slot.batch.end_ns - slot.batch.begin_ns) * 1e-9;
  if (method_.rule_of(layer).query == HostQuery::kGuessed) {
    sample_.host_s += host_s;
    sample_.num_pairs += 1;
  }
  statistics_.cpu_s += host_s;
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
    trace_.record({.name = "payload",
                   .lane = TraceLane::kLink,
                   .layer = static_cast<std::int32_t>(layer),
                   .step = step_,
                   .begin_ns = slot.batch.end_ns,
                   .end_ns = end_ns,
                   .bytes = bytes});
  }
}

void DecodePipeline::feed_back(std::int64_t layer, MicroBatch& batch) {
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  bool has_state = false;
  const MicroBatch::HostSlot& slot = batch.slot(layer);
  std::size_t job = 0;
  for (std::size_t row = 0; row < batch.requests.size(); ++row) {
    RequestState& request = *batch.requests[row];
    const AttentionItem& item = batch.items[row];
    const bool has_job = job < slot.rows.size() && slot.rows[job] == static_cast<std::int64_t>(row);
    const HostJob* own_job = has_job ? &slot.batch.jobs[job++] : nullptr;
    contain(request, [&] {
      const FeedbackBytes bytes = give_weights_to_selectors(
          model_.config(), layer, request, item, item.payload == nullptr ? nullptr : own_job);
      statistics_.d2h_bytes += bytes.weights;
      has_state |= bytes.weights > 0;
      if (request.retention != nullptr) {
        has_state = true;
        const FeedbackBytes retained =
            retain_new_token(model_.config(), pool_, layer, request, item);
        statistics_.d2h_bytes += retained.weights;
        statistics_.evicted_bytes += retained.rows;
      }
    });
  }
  if (has_state) {
    trace_device("selection state", layer, begin_ns);
  }
}

void DecodePipeline::end_step(std::span<const std::unique_ptr<MicroBatch>> batches) {
  const StageTimes times = timer_.take();
  statistics_.device_s += times.device_s;
  statistics_.wait_s += times.wait_s;
  statistics_.link_s += times.link_s;
  sample_.link_s = times.link_s;
  sample_.device_s = std::max(times.paired_s, 0.0);
  for (const auto& batch : batches) {
    for (RequestState* request : batch->requests) {
      contain(*request, [&] {
        end_retention_step(*request);
        if (request->pool != nullptr) {
          request->pool->end_step();
        }
        if (request->scheduler) {
          request->scheduler->end_step(sample_, request->tokens.num_offloaded());
        }
      });
      if (trace_.enabled() && request->tokens.num_offloaded() > 0) {
        const std::int64_t now_ns = TraceRecorder::now_ns();
        trace_.record({.name = request->strategy() == SelectionStrategy::kPreQkt ? "pre" : "post",
                       .lane = TraceLane::kScheduler,
                       .worker = static_cast<std::int32_t>(request->plan.shape.request_id),
                       .step = step_,
                       .begin_ns = now_ns,
                       .end_ns = now_ns,
                       .bytes = request->num_chosen(request->tokens.num_offloaded())});
      }
    }
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
