// SPDX-License-Identifier: Apache-2.0
// One step of an engine: who may start, a chunk of prompts or a decode step of all, and what
// requests get of it.
#include <ATen/core/Tensor.h>

#include <algorithm>
#include <utility>

#include "device/own_error.h"
#include "engine/engine_impl.h"
#include "engine/window_shrinking.h"
#include "hybridgen/core/error.h"
#include "pipeline/shrink_window.h"

namespace hybridgen {
namespace {

double seconds_since(std::int64_t begin_ns) {
  return static_cast<double>(TraceRecorder::now_ns() - begin_ns) * 1e-9;
}

}  // namespace

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

}  // namespace hybridgen
