// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/engine/engine.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <utility>

#include "device/driver_thread.h"
#include "device/own_error.h"
#include "engine/admission.h"
#include "engine/lower_tiers.h"
#include "engine/machine.h"
#include "engine/memory_report.h"
#include "engine/method_checks.h"
#include "engine/request_queue.h"
#include "engine/resolved_options.h"
#include "engine/window_shrinking.h"
#include "hybridgen/core/error.h"
#include "hybridgen/methods/method.h"
#include "memory/budgets.h"
#include "memory/disk_queue.h"
#include "memory/host_tiers.h"
#include "models/decoder_model.h"
#include "pipeline/decode_pipeline.h"
#include "pipeline/prefill.h"
#include "pipeline/shrink_window.h"
#include "pipeline/test_probe.h"
#include "runtime/cpus.h"
#include "runtime/process.h"

namespace hybridgen {
namespace {

double seconds_since(std::int64_t begin_ns) {
  return static_cast<double>(TraceRecorder::now_ns() - begin_ns) * 1e-9;
}

/// Its weights; CheckpointError if they are not all there.
const Weights& finished(DecoderModel& model) {
  model.weights().finish();
  return model.weights();
}

}  // namespace

struct Engine::Impl {
  Impl(std::shared_ptr<DecoderModel> model_, const EngineOptions& asked, std::optional<Method> own);

  void step(std::vector<TokenEvent>& events);
  KvDiskDevice disk();
  /// Whether there is a request to prefill now. One that cannot be admitted ends.
  bool admit_next(std::vector<TokenEvent>& events);
  /// Whether running requests gave up enough of their windows for one that waits, whose plan may
  /// get a smaller one, too. They give up nothing unless that is so.
  bool shrink_for(const Request& waiting, RequestPlan& needed);
  /// One chunk of each request that is being read.
  void prefill_chunks(std::vector<TokenEvent>& events);
  /// What follows a request's chunk; null: it had none to read.
  void end_chunk(Request& request,
                 const PrefillChunk* chunk,
                 std::int64_t begin_ns,
                 std::vector<TokenEvent>& events);
  /// Scores the prompt tokens that follow those of a chunk, whose first token is number `done`.
  void score_chunk(Request& request, const PrefillChunk& chunk, std::int64_t done);
  void decode(std::vector<TokenEvent>& events);
  void rebuild_batches();
  void feed_tokens();
  /// What a decode step gave to each of the requests that took part.
  void emit_all(double step_s, std::vector<TokenEvent>& events);
  void emit(Request& request, std::span<float> logits, std::vector<TokenEvent>& events);
  void end(Request& request, FinishReason reason);
  /// Ends it by a failure of its own, which an event hands over.
  void fail(Request& request, std::exception_ptr error, std::vector<TokenEvent>& events);

  std::shared_ptr<DecoderModel> model;
  Method method;
  AttendedTokens attended;
  LowerTiers lower;
  Budgets budgets;
  Machine machine;
  EngineOptions options;  ///< resolved
  Reservation engine_bytes{budgets[TierKind::kDevice].reserve(
      engine_bytes_of_device(
          model->config(), model->dtype(), model->device().is_cpu(), options, budgets) +
          bytes_of_coming_layers(model->weights(), model->device(), method, budgets),
      "engine")};
  Admission admission{model->config(),
                      model->dtype(),
                      model->device().is_cpu(),
                      options,
                      method,
                      attended,
                      budgets,
                      engine_bytes.bytes(),
                      &tiers};
  TraceRecorder trace;
  std::optional<DiskFile> disk_file;  ///< none: nothing goes to a disk
  std::optional<DiskQueue> disk_queue;
  RunStatistics statistics;
  KvTiers tiers{options.tiers.placement, lower.places(), budgets, trace, statistics.tiers};
  RequestQueue queue;
  std::unique_ptr<PipelineProbe> probe = make_test_probe(options.test);
  std::unique_ptr<CpuStage> cpu_stage;
  WeightStore weights{finished(*model), model->device(), trace, layers_at_a_time(method)};
  std::unique_ptr<Prefill> prefill;
  std::unique_ptr<DecodePipeline> pipeline;
  std::vector<std::unique_ptr<MicroBatch>> batches;
  std::vector<Request*> stepped;  ///< those of the current step, in the order of the batches
  MakerProcess maker;
  // Last: joins before anything its work refers to is destroyed.
  std::unique_ptr<DriverThread> driver;
};

Engine::Impl::Impl(std::shared_ptr<DecoderModel> model_,
                   const EngineOptions& asked,
                   std::optional<Method> own)
    : model(std::move(model_)),
      method(checked_method(asked, std::move(own), model->config())),
      attended(attended_tokens(method, hybridgen_options(asked))),
      lower(lower_tiers(asked, host_tiers(available_cpus()))),
      budgets(make_budgets(asked, model->device(), lower)),
      machine(asked, method, *model),
      options(resolved_options(asked, model->config(), budgets, machine)) {
  check_shrinking(options, method);
  check_lower_tiers(options, method, lower);
  if (!options.tiers.disk_path.empty()) {
    disk_file.emplace(options.tiers.disk_path, options.tiers.disk_bytes);
    disk_queue.emplace(*disk_file, trace);
  }
  admission.reads_together = weights.streams();
  // Whoever filled or changed weights did so on a stream of theirs, for which ours do not wait.
  model->device().synchronize();
  if (method.offloads()) {
    cpu_stage = std::make_unique<CpuStage>(*machine.pool(),
                                           kernels::cpu_kernels(machine.isa()),
                                           model->config(),
                                           trace,
                                           probe.get(),
                                           machine.division(),
                                           model->device().is_cpu());
  }
  prefill = std::make_unique<Prefill>(*model,
                                      weights,
                                      machine.prompt_ops(),
                                      kernels::cpu_kernels(machine.isa()),
                                      method,
                                      trace,
                                      statistics.pipeline);
  pipeline = std::make_unique<DecodePipeline>(*model,
                                              weights,
                                              machine.ops(),
                                              method,
                                              cpu_stage.get(),
                                              machine.pool(),
                                              trace,
                                              statistics.pipeline,
                                              probe.get());
  driver = std::make_unique<DriverThread>();
  driver->run([this] {
    machine.start_driver();
    model->device().enter_compute();
  });
}

KvDiskDevice Engine::Impl::disk() {
  if (!disk_file || !disk_queue) {
    return {};
  }
  return {.file = &*disk_file, .queue = &*disk_queue, .place = tiers.places().dram};
}

void Engine::Impl::step(std::vector<TokenEvent>& events) {
  tiers.settle();
  // Weights that come again for every pass come once for all prompts that can be read together;
  // else each is read as soon as it may be.
  while ((queue.prefilling().empty() || weights.streams()) && admit_next(events)) {
  }
  if (!queue.prefilling().empty()) {
    prefill_chunks(events);
  } else if (!queue.running().empty()) {
    decode(events);
  }
}

bool Engine::Impl::admit_next(std::vector<TokenEvent>& events) {
  Request* request = queue.first_waiting();
  if (request == nullptr) {
    return false;
  }
  const std::vector<const Request*> started = queue.started();
  const std::int64_t num_started = std::ssize(started);
  if (num_started >= options.max_batch) {
    return false;
  }
  std::int64_t momentary = 0;
  for (const Request* other : started) {
    momentary = std::max(momentary, other->state->plan.momentary_device_bytes);
  }
  // When others finish there will be room.
  const auto waits = [&](const RequestPlan& needed) {
    return num_started > 0 && !admission.fits_now(needed, momentary);
  };
  RequestPlan needed;
  try {
    needed = admission.plan(request->shape(), request->home);
    if (waits(needed) && !shrink_for(*request, needed)) {
      return false;
    }
    model->prepare_positions(needed.shape.max_tokens);
    request->state = std::make_unique<RequestState>(*model,
                                                    method,
                                                    attended,
                                                    needed,
                                                    budgets,
                                                    tiers,
                                                    options.numa_node,
                                                    machine.division().parts,
                                                    disk());
    request->state->prefill_tokens = request->prefill_tokens;
    if (cpu_stage != nullptr) {
      cpu_stage->reserve(needed.max_offloaded, request->state->max_candidates());
    }
  } catch (const OutOfMemoryError&) {
    // Unless another engine of this process has taken what there was a moment ago.
    if (!waits(needed)) {
      fail(*request, std::current_exception(), events);
    }
    return false;
  } catch (...) {
    fail(*request, std::current_exception(), events);
    return false;
  }
  queue.start_prefill(*request);
  return true;
}

bool Engine::Impl::shrink_for(const Request& waiting, RequestPlan& needed) {
  if (!options.tiers.shrink_windows) {
    return false;
  }
  const std::vector<Request*>& running = queue.running();
  std::vector<RequestShape> shapes;
  std::vector<ShrinkableWindow> windows;
  std::int64_t held = 0;
  for (const Request* request : running) {
    const RequestPlan& plan = request->state->plan;
    shapes.push_back(request->shape());
    windows.push_back({plan.window, admission.least_window(plan.window)});
    held += plan.device_bytes;
  }
  shapes.push_back(waiting.shape());
  windows.push_back({needed.window, admission.least_window(needed.window)});
  const auto plans = [&](const std::vector<std::int64_t>& tokens) {
    std::vector<RequestPlan> found;
    found.reserve(shapes.size());
    for (std::size_t i = 0; i < shapes.size(); ++i) {
      found.push_back(admission.plan_with(shapes[i], tokens[i]));
    }
    return found;
  };
  const auto tokens = shrink_windows(windows, [&](const std::vector<std::int64_t>& smaller) {
    return admission.fit_instead(plans(smaller), held);
  });
  if (!tokens) {
    return false;
  }
  const ScopedSpan span(trace, "shrink windows");
  const std::vector<RequestPlan> smaller = plans(*tokens);
  PipelineStatistics& sums = statistics.pipeline;
  LinkMeter link(sums.h2d_bytes, sums.d2h_bytes, sums.evicted_bytes);
  for (std::size_t i = 0; i < running.size(); ++i) {
    RequestState& state = *running[i]->state;
    if (smaller[i].window < state.plan.window) {
      contain(state, [&] { shrink_window(state, *model, method, smaller[i], link); });
    }
  }
  needed = smaller.back();
  return true;
}

void Engine::Impl::prefill_chunks(std::vector<TokenEvent>& events) {
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  const std::vector<Request*> requests = queue.prefilling();  // one that ends leaves it
  std::vector<PrefillChunk> chunks;
  for (const Request* request : requests) {
    const std::int64_t done = request->state->tokens.num_tokens();
    const std::int64_t left = request->prefill_tokens - done;
    if (left > 0) {
      const std::int64_t count = std::min(options.prefill_chunk, left);
      chunks.push_back(
          {.request = request->state.get(),
           .tokens = {request->tokens.data() + done, static_cast<std::size_t>(count)},
           .wants_logits = count == left && request->prefill_tokens == request->prompt_tokens});
    }
  }
  if (!chunks.empty()) {
    try {
      machine.enter(Phase::kPrefill);
      prefill->run(chunks);
    } catch (...) {  // nobody's own failure
      for (PrefillChunk& chunk : chunks) chunk.failure = std::current_exception();
    }
  }
  for (Request* request : requests) {
    const auto chunk = std::ranges::find(chunks, request->state.get(), &PrefillChunk::request);
    end_chunk(*request, chunk == chunks.end() ? nullptr : &*chunk, begin_ns, events);
  }
}

void Engine::Impl::end_chunk(Request& request,
                             const PrefillChunk* chunk,
                             std::int64_t begin_ns,
                             std::vector<TokenEvent>& events) {
  try {
    if (chunk != nullptr) {
      if (chunk->failure != nullptr) std::rethrow_exception(chunk->failure);
      if (request.sampling.num_prompt_logprobs >= 0) {
        score_chunk(request, *chunk, chunk->tokens.data() - request.tokens.data());
      }
    }
    request.statistics.prefill_s += seconds_since(begin_ns);
    if (request.state->tokens.num_tokens() == request.prefill_tokens) {
      prefill->finish(*request.state);
      queue.start_running(request);
    }
    if (chunk != nullptr && chunk->wants_logits) {
      emit(request,
           {chunk->logits.mutable_data_ptr<float>(),
            static_cast<std::size_t>(chunk->logits.numel())},
           events);
    }
  } catch (...) {
    fail(request, std::current_exception(), events);
  }
}

void Engine::Impl::score_chunk(Request& request, const PrefillChunk& chunk, std::int64_t done) {
  const std::int64_t end = std::min(done + std::ssize(chunk.tokens), request.prompt_tokens - 1);
  for (std::int64_t row = done; row < end; row += kScoredRows) {
    const std::int64_t rows = std::min(kScoredRows, end - row);
    const at::Tensor logits = prefill->chunk_logits(chunk, row - done, rows);
    const std::int64_t vocab = logits.size(1);
    const float* const first = logits.const_data_ptr<float>();
    for (std::int64_t i = 0; i < rows; ++i) {
      request.score_prompt_token({first + i * vocab, static_cast<std::size_t>(vocab)}, row + i + 1);
    }
  }
}

void Engine::Impl::rebuild_batches() {
  batches.clear();
  const std::vector<Request*>& running = queue.running();
  // As few as the size allows, but no fewer than the method wants; sizes differ by one at most.
  const auto size = static_cast<std::size_t>(options.micro_batch);
  const std::size_t fewest = (running.size() + size - 1) / size;
  const std::size_t count = std::max(
      fewest, std::min(running.size(), static_cast<std::size_t>(method.batches.micro_batches)));
  for (std::size_t i = 0, first = 0; i < count; ++i) {
    const std::size_t last = first + (running.size() - first) / (count - i);
    std::vector<RequestState*> states;
    for (; first < last; ++first) {
      states.push_back(running[first]->state.get());
    }
    batches.push_back(std::make_unique<MicroBatch>(*model, method, std::move(states)));
  }
}

void Engine::Impl::feed_tokens() {
  std::size_t next = 0;
  for (const auto& batch : batches) {
    auto* inputs = batch->tokens.mutable_data_ptr<std::int64_t>();
    for (std::int64_t row = 0; row < batch->rows(); ++row, ++next) {
      const Request& request = *stepped[next];
      inputs[row] = request.tokens[static_cast<std::size_t>(request.state->tokens.num_tokens())];
    }
  }
}

void Engine::Impl::decode(std::vector<TokenEvent>& events) {
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  stepped = queue.running();  // a request that ends leaves it
  try {
    machine.enter(Phase::kDecode);
    // Batches refer to the requests' states, so that they are stale once one has ended.
    if (queue.take_changed()) {
      rebuild_batches();
    }
    feed_tokens();
    pipeline->step(batches);
  } catch (...) {  // nobody's own failure: all caches are undefined now
    for (Request* request : stepped) {
      fail(*request, std::current_exception(), events);
    }
    return;
  }
  emit_all(seconds_since(begin_ns), events);
}

void Engine::Impl::emit_all(double step_s, std::vector<TokenEvent>& events) {
  events.reserve(stepped.size());
  std::size_t next = 0;
  for (const auto& batch : batches) {
    auto* logits = batch->host_logits.mutable_data_ptr<float>();
    const std::int64_t vocab = batch->host_logits.size(1);
    for (std::int64_t row = 0; row < batch->rows(); ++row, ++next) {
      Request& request = *stepped[next];
      request.statistics.decode_steps += 1;
      request.statistics.decode_s += step_s;
      if (request.state->failure != nullptr) {
        fail(request, request.state->failure, events);
        continue;
      }
      const auto position = request.state->tokens.num_tokens();
      const std::span<float> own{logits + row * vocab, static_cast<std::size_t>(vocab)};
      try {
        if (position < static_cast<std::int64_t>(request.tokens.size())) {
          request.score_prompt_token(own, position);  // still feeding the prompt
        } else {
          emit(request, own, events);
        }
      } catch (...) {
        fail(request, std::current_exception(), events);
      }
    }
  }
}

void Engine::Impl::emit(Request& request,
                        std::span<float> logits,
                        std::vector<TokenEvent>& events) {
  const std::int64_t index = request.generated();
  const bool is_forced = !request.forced.empty();
  const SampledToken sampled =
      is_forced ? request.sampler.score(logits,
                                        request.forced[static_cast<std::size_t>(index)],
                                        request.sampling.num_logprobs)
                : request.sampler.sample(logits, request.tokens, index);
  if (index == 0) {
    request.statistics.ttft_s = seconds_since(request.added_ns);
  }
  request.tokens.push_back(sampled.token);
  statistics.generated_tokens += 1;
  TokenEvent event;
  event.request_id = request.id;
  event.token_id = sampled.token;
  event.logprob = sampled.logprob;
  event.is_greedy = sampled.is_greedy;
  event.top_logprobs = sampled.top_logprobs;
  event.prompt_logprobs = std::exchange(request.prompt_logprobs, {});
  const auto& stops = request.sampling.stop_token_ids;
  if (!is_forced && std::ranges::find(stops, sampled.token) != stops.end()) {
    event.finish_reason = FinishReason::kStop;
  } else if (static_cast<std::int64_t>(request.tokens.size()) >= request.max_tokens) {
    event.finish_reason = FinishReason::kLength;
  }
  if (event.finish_reason != FinishReason::kNone) {
    end(request, event.finish_reason);
  }
  events.push_back(std::move(event));
}

void Engine::Impl::fail(Request& request,
                        std::exception_ptr error,
                        std::vector<TokenEvent>& events) {
  model->device().drain();  // copies to and from its memory may be under way
  end(request, FinishReason::kError);
  TokenEvent& event = events.emplace_back();
  event.request_id = request.id;
  event.finish_reason = FinishReason::kError;
  event.error = own_error(std::move(error));
}

void Engine::Impl::end(Request& request, FinishReason reason) {
  if (request.finished()) {
    return;
  }
  request.statistics = statistics_of(request, method);
  request.statistics.finish_reason = reason;
  queue.end(request);
  request.state.reset();
}

Engine::Engine(std::shared_ptr<DecoderModel> model, const EngineOptions& options)
    : impl_(std::make_unique<Impl>(std::move(model), options, std::nullopt)) {}

Engine::Engine(std::shared_ptr<DecoderModel> model, const EngineOptions& options, Method method)
    : impl_(std::make_unique<Impl>(std::move(model), options, std::move(method))) {}

Engine::~Engine() {
  if (!impl_->maker.is_this_one()) {
    std::ignore = impl_.release();  // it ends with the forked child
  }
}

const EngineOptions& Engine::options() const { return impl_->options; }

const std::vector<NumaPart>& Engine::numa_parts() const { return impl_->machine.division().parts; }

std::int64_t Engine::add(std::vector<std::int64_t> prompt,
                         SamplingOptions sampling,
                         std::vector<std::int64_t> forced,
                         std::int64_t decode_prompt_tokens,
                         const RequestHome& home) {
  Impl& impl = *impl_;
  std::unique_ptr<Request> request = make_request(
      {std::move(prompt), std::move(sampling), std::move(forced), decode_prompt_tokens},
      impl.model->config(),
      impl.options.max_model_len);
  request->added_ns = TraceRecorder::now_ns();
  request->statistics.strategy =
      chooses(impl.method.work) ? std::string(name_of(impl.method.strategy)) : "none";
  impl.admission.check_home(home);
  request->home = home;
  impl.admission.check_positions(request->shape(), request->prefill_tokens, home);
  impl.admission.check_fits(request->shape(), home);
  request->tokens.reserve(static_cast<std::size_t>(request->max_tokens));
  const std::int64_t length = request->prompt_tokens;
  const std::int64_t id = impl.queue.add(std::move(request));
  impl.statistics.requests += 1;
  impl.statistics.prompt_tokens += length;
  return id;
}

bool Engine::has_work() const { return impl_->queue.has_work(); }

std::vector<TokenEvent> Engine::step() {
  std::vector<TokenEvent> events;
  impl_->driver->run([&] {
    const at::NoGradGuard no_grad;
    impl_->step(events);
  });
  return events;
}

void Engine::finish(std::int64_t request_id, FinishReason reason) {
  Request& request = impl_->queue.find(request_id);
  if (!request.finished()) {
    impl_->driver->run([&] { impl_->end(request, reason); });
  }
}

void Engine::release(std::int64_t request_id) {
  finish(request_id, FinishReason::kAbort);
  impl_->queue.release(request_id);
}

RequestStatistics Engine::request_statistics(std::int64_t request_id) const {
  return statistics_of(impl_->queue.find(request_id), impl_->method);
}

RunStatistics Engine::run_statistics() const {
  RunStatistics statistics = impl_->statistics;
  if (impl_->disk_queue) {
    statistics.disk = impl_->disk_queue->statistics();
  }
  statistics.weights = impl_->weights.statistics();
  return statistics;
}

void Engine::reset_statistics() {
  impl_->statistics = {};
  if (impl_->disk_queue) {
    impl_->disk_queue->reset_statistics();
  }
  impl_->weights.reset_statistics();
}

std::vector<TierUsage> Engine::memory(bool looks_at_pages) const {
  std::vector<TierUsage> usage;
  for (const auto& [tier, budget] : impl_->budgets) {
    TierUsage& entry = usage.emplace_back();
    entry.tier = name_of(tier);
    entry.capacity_bytes = budget.capacity_bytes();
    entry.used_bytes = budget.used_bytes();
    entry.process_bytes = budget.process_bytes();
  }
  if (looks_at_pages) {
    impl_->driver->run([&] {
      add_pages(
          impl_->lower, impl_->tiers.ledger().bytes(TierKind::kCxl), impl_->queue.started(), usage);
    });
  }
  return usage;
}

TraceRecorder& Engine::trace() { return impl_->trace; }

}  // namespace hybridgen
