// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/engine/engine.h"

#include <ATen/core/Tensor.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <map>
#include <utility>

#include "device/driver_thread.h"
#include "device/own_error.h"
#include "engine/admission.h"
#include "engine/host_threads.h"
#include "engine/method_checks.h"
#include "hybridgen/core/error.h"
#include "hybridgen/methods/method.h"
#include "kernels/cpu_kernels.h"
#include "memory/memory_budget.h"
#include "memory/numa.h"
#include "memory/numa_division.h"
#include "pipeline/decode_pipeline.h"
#include "pipeline/prefill.h"
#include "runtime/cpus.h"
#include "runtime/worker_pool.h"

namespace hybridgen {
namespace {

constexpr std::int64_t kScoredRows = 32;  // whose logits are there at a time: V floats each

/// A request from add() to release().
struct Request {
  explicit Request(SamplingOptions options) : sampler(options), sampling(std::move(options)) {}

  std::int64_t id = 0;
  std::vector<std::int64_t> tokens;  ///< prompt, then generated
  std::int64_t prompt_tokens = 0;
  std::int64_t max_tokens = 0;  ///< prompt plus generated, at most
  std::uint64_t content = 0;    ///< content_of the prompt
  std::vector<std::int64_t> forced;
  std::int64_t prefill_tokens = 0;  ///< of the prompt; the rest passes through decode steps
  Sampler sampler;
  SamplingOptions sampling;
  std::vector<std::vector<std::pair<std::int64_t, float>>>
      prompt_logprobs;                  ///< until the first token
  std::unique_ptr<RequestState> state;  ///< while it runs
  std::int64_t added_ns = 0;
  RequestStatistics statistics;

  std::int64_t generated() const {
    return static_cast<std::int64_t>(tokens.size()) - prompt_tokens;
  }
  RequestShape shape() const { return {id, prompt_tokens, max_tokens, content}; }
  bool finished() const { return statistics.finish_reason != FinishReason::kNone; }

  /// Notes what the model thinks of the prompt token at `position`, if that was asked for.
  void score_prompt_token(std::span<const float> logits, std::int64_t position) {
    const int count = sampling.num_prompt_logprobs;
    if (count < 0) {
      return;
    }
    SampledToken scored = sampler.score(logits, tokens[static_cast<std::size_t>(position)], count);
    auto& noted = prompt_logprobs.emplace_back();
    noted.emplace_back(scored.token, scored.logprob);
    noted.insert(noted.end(), scored.top_logprobs.begin(), scored.top_logprobs.end());
  }
};

double seconds_since(std::int64_t begin_ns) {
  return static_cast<double>(TraceRecorder::now_ns() - begin_ns) * 1e-9;
}

void describe(const Method& method, const RequestState& state, RequestStatistics& statistics) {
  statistics.offloaded_tokens = state.tokens.num_offloaded();
  statistics.resident_tokens = state.tokens.num_resident();
  statistics.dropped_tokens = state.tokens.num_dropped();
  const bool is_steerable = method.rule.choice == HostChoice::kSelector &&
                            method.rule.payload != PayloadKind::kPartialAttention;
  statistics.k = is_steerable ? state.num_chosen(statistics.offloaded_tokens) : state.last_chosen;
  if (statistics.strategy != "none") {
    statistics.strategy = std::string(name_of(state.strategy()));
  }
  if (state.scheduler) {
    statistics.scheduler_decisions = state.scheduler->num_decisions();
    statistics.last_decision = std::string(name_of(state.scheduler->last_decision()));
  }
}

}  // namespace

struct Engine::Impl {
  Impl(std::shared_ptr<DecoderModel> model_, EngineOptions options_, std::optional<Method> method_);

  /// Whether there is a request to prefill now. One that cannot be admitted ends.
  bool admit_next(std::vector<TokenEvent>& events);
  /// Which cores and how many OpenMP threads the driver uses; cheap when nothing changes.
  enum class Phase : std::uint8_t { kNone, kPrefill, kDecode };
  void enter(Phase phase);
  void prefill_chunk(std::vector<TokenEvent>& events);
  void decode(std::vector<TokenEvent>& events);
  /// Scores the prompt tokens that follow those of the chunk `done` to `done` + `count`.
  void score_chunk(Request& request, std::int64_t done, std::int64_t count);
  void rebuild_batches();
  void emit(Request& request, std::span<float> logits, std::vector<TokenEvent>& events);
  void end(Request& request, FinishReason reason);
  /// Ends it by a failure of its own, which an event hands over.
  void fail(Request& request, std::exception_ptr error, std::vector<TokenEvent>& events);
  Request& find(std::int64_t id) const;

  std::shared_ptr<DecoderModel> model;
  EngineOptions options;
  Method method;
  AttendedTokens attended;
  MemoryBudget device_budget;
  MemoryBudget dram_budget;
  Admission admission{*model, options, method, attended, device_budget, dram_budget};
  std::unique_ptr<DeviceOps> ops;
  TraceRecorder trace;
  PipelineStatistics statistics;
  std::int64_t num_requests = 0;
  std::int64_t prompt_tokens = 0;
  std::int64_t generated_tokens = 0;
  std::unique_ptr<WorkerPool> pool;
  std::unique_ptr<CpuStage> cpu_stage;
  std::unique_ptr<Prefill> prefill;
  std::unique_ptr<DecodePipeline> pipeline;

  std::map<std::int64_t, std::unique_ptr<Request>> requests;
  std::map<std::int64_t, Request*> waiting;  ///< by id, which is the order of their coming
  Request* prefilling = nullptr;
  std::vector<Request*> running;
  std::vector<Request*> stepped;  ///< those of the current step
  std::vector<std::unique_ptr<MicroBatch>> batches;
  bool batches_stale = true;
  Phase phase = Phase::kNone;
  std::vector<int> pool_cpus;  ///< pinned cores of the pool's workers; empty if they are not pinned
  std::vector<int> available_cores = available_cpus();
  NumaDivision division;
  MakerProcess maker;
  int prefill_threads = 1;
  std::int64_t next_id = 0;
  // Last: joins before anything its work refers to is destroyed.
  std::unique_ptr<DriverThread> driver;
};

namespace {

std::int64_t budget_or(std::int64_t asked, double share_of_free, int node = -1) {
  return asked > 0 ? asked
                   : std::max<std::int64_t>(
                         1,
                         static_cast<std::int64_t>(
                             share_of_free * static_cast<double>(available_node_bytes(node))));
}

// A user's own composition is checked as the library's methods are.
Method checked_method(const EngineOptions& options, std::optional<Method> composition) {
  options.validate();
  if (!composition) {
    return make_method(options);
  }
  refuse_unread(*composition, options);
  return std::move(*composition);
}

}  // namespace

Engine::Impl::Impl(std::shared_ptr<DecoderModel> model_,
                   EngineOptions options_,
                   std::optional<Method> method_)
    : model(std::move(model_)),
      options(std::move(options_)),
      method(checked_method(options, std::move(method_))),
      attended{options.k, steering_of(method, options.scheduler)},
      device_budget(
          TierKind::kDevice, budget_or(options.device_bytes, 0.45), "KVConfig(device_tokens=...)"),
      dram_budget(TierKind::kDram,
                  budget_or(options.dram_bytes, 0.45, options.numa_node),
                  "KVConfig(dram=...)") {
  const ModelConfig& config = model->config();
  const DeviceContext& device = model->device();
  model->weights().finish();
  if (options.max_model_len == 0) {
    options.max_model_len = config.max_positions;
  }
  if (options.max_model_len > config.max_positions && method.positions == PositionMode::kOriginal) {
    throw ConfigError(message("[engine] max_model_len is ",
                              options.max_model_len,
                              "; allowed: 1 to ",
                              config.max_positions,
                              " (the model's positions); more with positions='shift' or 'clamp' of "
                              "streaming_llm or h2o"));
  }
  if (options.math == "auto") {
    options.math = device.is_cpu() ? "kernels" : "aten";
  }
  if (options.math == "kernels" && !device.is_cpu()) {
    throw ConfigError("[engine] math is 'kernels' on a CUDA device; allowed there: aten");
  }
  const kernels::Isa isa = kernels::resolve_isa(options.isa);
  options.isa = std::string(name_of(isa));
  options.device_bytes = device_budget.capacity_bytes();
  options.dram_bytes = dram_budget.capacity_bytes();
  const bool divides = options.numa_node == -1 && options.divides_heads && method.offloads();
  const std::vector<NumaNode> nodes = divides ? numa_nodes() : std::vector<NumaNode>{};
  const std::vector<int> cores = spread_over_nodes(available_cores, nodes);
  const std::vector<int> host_cpus =
      options.numa_node == -1 ? cores : cpus_of_node(find_numa_node(options.numa_node), cores);
  resolve_threads(options, device, method.offloads(), static_cast<std::int64_t>(host_cpus.size()));
  check_method(method, config);
  // One pool for host jobs and the device's operations: whoever is free takes what is there.
  const std::int64_t helpers = options.math == "kernels" ? options.device_threads - 1 : 0;
  WorkerPool::Options pool_options;
  pool_options.cpus = worker_cpus(cores, host_cpus, options.threads, helpers);
  if (!pool_options.cpus.empty()) {
    if (pool_options.cpus.front() >= 0) {
      pool_cpus = pool_options.cpus;
    }
    pool = std::make_unique<WorkerPool>(std::move(pool_options));
  }
  ops = options.math == "kernels" ? make_cpu_ops(options.isa, pool.get()) : make_aten_ops();
  if (divides) {
    const auto num_workers = static_cast<std::int64_t>(pool->size());
    division = options.test.invented_nodes > 0
                   ? divide_over_invented_nodes(
                         options.test.invented_nodes, num_workers, config.num_kv_heads)
                   : divide_heads(nodes, pool_cpus, config.num_kv_heads);
  }
  if (method.offloads()) {
    check_selector(options.selector, SelectionStrategy::kPostQkt, "selector");
    check_selector(options.pre_selector, SelectionStrategy::kPreQkt, "pre_selector");
    cpu_stage = std::make_unique<CpuStage>(*pool,
                                           kernels::cpu_kernels(isa),
                                           config,
                                           trace,
                                           options.test.random_delay_us,
                                           division,
                                           device.is_cpu());
  }
  prefill = std::make_unique<Prefill>(*model, *ops, method, trace, statistics);
  pipeline = std::make_unique<DecodePipeline>(
      *model, *ops, method, cpu_stage.get(), pool.get(), trace, statistics, options.test);
  driver = std::make_unique<DriverThread>();
  driver->run([this] {
    if (openmp_binds_threads()) {
      pin_current_thread(available_cores);  // not the place of the thread that made this one
    }
    if (model->device().is_cpu()) {
      flush_denormals_in_current_thread();  // as the workers, which share its operations
    }
    // No more than OMP_NUM_THREADS unless the user asked for more by device_threads.
    const std::int64_t all = std::min<std::int64_t>(options.device_threads + options.threads,
                                                    default_intra_op_threads());
    prefill_threads = static_cast<int>(std::max(options.device_threads, all));
    if (model->device().is_cpu()) {
      start_intra_op_threads(prefill_threads);
    }
  });
}

Request& Engine::Impl::find(std::int64_t id) const {
  const auto found = requests.find(id);
  if (found == requests.end()) {
    throw ConfigError(
        message("[engine] request ", id, " is not known; it was released or never added"));
  }
  return *found->second;
}

bool Engine::Impl::admit_next(std::vector<TokenEvent>& events) {
  if (waiting.empty() || static_cast<std::int64_t>(running.size()) >= options.max_batch) {
    return false;
  }
  Request& request = *waiting.begin()->second;
  try {
    const RequestPlan needed = admission.plan(request.shape());
    const bool is_alone = running.empty();
    if (!is_alone &&
        (needed.device_bytes + needed.prompt_device_bytes > device_budget.free_bytes() ||
         needed.dram_bytes > dram_budget.free_bytes())) {
      return false;  // when others finish there will be room
    }
    model->prepare_positions(needed.shape.max_tokens);
    request.state = std::make_unique<RequestState>(*model,
                                                   method,
                                                   attended,
                                                   needed,
                                                   device_budget,
                                                   dram_budget,
                                                   options.numa_node,
                                                   division.parts);
    if (cpu_stage != nullptr) {
      cpu_stage->reserve(needed.max_offloaded, needed.max_candidates);
    }
  } catch (...) {
    fail(request, std::current_exception(), events);
    return false;
  }
  waiting.erase(request.id);
  prefilling = &request;
  return true;
}

void Engine::Impl::enter(Phase next) {
  if (phase == next) {
    return;
  }
  phase = next;
  if (pool) {
    // While prefilling, LibTorch's threads need the cores that workers would spin on; so does the
    // driver in decode steps, where workers are not pinned beside it.
    const bool spins_long = next == Phase::kDecode && !pool_cpus.empty();
    pool->set_spin(spins_long ? WorkerPool::kDecodeSpin : WorkerPool::Options{}.spin);
  }
  if (!model->device().is_cpu()) {
    set_intra_op_threads(1);
    return;
  }
  // While prefilling the host workers have nothing to do: the whole machine works on the prompt. In
  // decode steps the driver keeps off their cores, or they would run only while it waits for them.
  std::vector<int> cpus = available_cores;
  if (next == Phase::kDecode) {
    std::erase_if(cpus,
                  [&](int cpu) { return std::ranges::find(pool_cpus, cpu) != pool_cpus.end(); });
  }
  if (!pool_cpus.empty() || openmp_binds_threads()) {
    pin_current_thread(cpus);
  }
  set_intra_op_threads(next == Phase::kPrefill ? prefill_threads
                                               : static_cast<int>(options.device_threads));
}

void Engine::Impl::prefill_chunk(std::vector<TokenEvent>& events) {
  Request& request = *prefilling;
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  const std::int64_t done = request.state->tokens.num_tokens();
  const std::int64_t count = std::min(options.prefill_chunk, request.prefill_tokens - done);
  const bool is_last = done + count == request.prefill_tokens;
  const bool samples = is_last && request.prefill_tokens == request.prompt_tokens;
  at::Tensor logits;
  try {
    if (count > 0) {
      enter(Phase::kPrefill);
      logits = prefill->run_chunk(
          *request.state, {request.tokens.data() + done, static_cast<std::size_t>(count)}, samples);
      if (request.sampling.num_prompt_logprobs >= 0) {
        score_chunk(request, done, count);
      }
    }
    request.statistics.prefill_s += seconds_since(begin_ns);
    if (is_last) {
      prefill->finish(*request.state);
      prefilling = nullptr;
      running.push_back(&request);
      batches_stale = true;
    }
    if (samples) {
      emit(request,
           {logits.mutable_data_ptr<float>(), static_cast<std::size_t>(logits.numel())},
           events);
    }
  } catch (...) {
    fail(request, std::current_exception(), events);
  }
}

void Engine::Impl::score_chunk(Request& request, std::int64_t done, std::int64_t count) {
  const std::int64_t end = std::min(done + count, request.prompt_tokens - 1);
  for (std::int64_t row = done; row < end; row += kScoredRows) {
    const std::int64_t rows = std::min(kScoredRows, end - row);
    const at::Tensor logits = prefill->chunk_logits(row - done, rows);
    const std::int64_t vocab = logits.size(1);
    const float* const first = logits.const_data_ptr<float>();
    for (std::int64_t i = 0; i < rows; ++i) {
      request.score_prompt_token({first + i * vocab, static_cast<std::size_t>(vocab)}, row + i + 1);
    }
  }
}

void Engine::Impl::rebuild_batches() {
  batches.clear();
  // Ascending ids, so that the composition does not depend on who finished when.
  std::ranges::sort(running, {}, &Request::id);
  // As few as the size allows, but no fewer than the method wants; sizes differ by one at most.
  const auto size = static_cast<std::size_t>(options.micro_batch);
  const std::size_t fewest = (running.size() + size - 1) / size;
  const std::size_t count =
      std::max(fewest, std::min(running.size(), static_cast<std::size_t>(method.micro_batches)));
  for (std::size_t i = 0, first = 0; i < count; ++i) {
    const std::size_t last = first + (running.size() - first) / (count - i);
    std::vector<RequestState*> states;
    for (; first < last; ++first) {
      states.push_back(running[first]->state.get());
    }
    batches.push_back(std::make_unique<MicroBatch>(*model, method, std::move(states)));
  }
  batches_stale = false;
}

void Engine::Impl::decode(std::vector<TokenEvent>& events) {
  const std::int64_t begin_ns = TraceRecorder::now_ns();
  stepped = running;  // a request that ends leaves `running`
  try {
    enter(Phase::kDecode);
    if (batches_stale) {
      rebuild_batches();
    }
    std::size_t next = 0;
    for (const auto& batch : batches) {
      auto* inputs = batch->tokens.mutable_data_ptr<std::int64_t>();
      for (std::int64_t row = 0; row < batch->rows(); ++row, ++next) {
        const Request& request = *running[next];
        inputs[row] = request.tokens[static_cast<std::size_t>(request.state->tokens.num_tokens())];
      }
    }
    pipeline->step(batches);
  } catch (...) {  // nobody's own failure: all caches are undefined now
    for (Request* request : stepped) {
      fail(*request, std::current_exception(), events);
    }
    return;
  }
  const double step_s = seconds_since(begin_ns);
  stepped = running;  // in the order of the batches
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
  generated_tokens += 1;
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
  RequestStatistics& statistics_of = request.statistics;
  statistics_of.finish_reason = reason;
  statistics_of.generated_tokens = request.generated();
  if (request.state != nullptr) {
    const RequestState& state = *request.state;
    describe(method, state, statistics_of);
    statistics_of.attended_offloaded_share =
        state.available_offloaded == 0 ? 0.0
                                       : static_cast<double>(state.attended_offloaded) /
                                             static_cast<double>(state.available_offloaded);
  }
  waiting.erase(request.id);
  if (prefilling == &request) {
    prefilling = nullptr;
  }
  // The batches refer to the request's state: rebuilt before the next step, which is when it
  // matters.
  if (std::erase(running, &request) > 0) {
    batches_stale = true;
  }
  request.state.reset();
}

std::string_view name_of(FinishReason reason) {
  switch (reason) {
    case FinishReason::kStop:
      return "stop";
    case FinishReason::kLength:
      return "length";
    case FinishReason::kAbort:
      return "abort";
    case FinishReason::kError:
      return "error";
    case FinishReason::kNone:
      break;
  }
  return "";
}

Engine::Engine(std::shared_ptr<DecoderModel> model, EngineOptions options)
    : impl_(std::make_unique<Impl>(std::move(model), std::move(options), std::nullopt)) {}

Engine::Engine(std::shared_ptr<DecoderModel> model, EngineOptions options, Method method)
    : impl_(std::make_unique<Impl>(std::move(model), std::move(options), std::move(method))) {}

Engine::~Engine() {
  if (!impl_->maker.is_this_one()) {
    static_cast<void>(impl_.release());  // it ends with the forked child
  }
}

const EngineOptions& Engine::options() const { return impl_->options; }

const std::vector<NumaPart>& Engine::numa_parts() const { return impl_->division.parts; }

std::int64_t Engine::add(std::vector<std::int64_t> prompt,
                         SamplingOptions sampling,
                         std::vector<std::int64_t> forced,
                         std::int64_t decode_prompt_tokens) {
  Impl& impl = *impl_;
  const ModelConfig& config = impl.model->config();
  const auto length = static_cast<std::int64_t>(prompt.size());
  if (length == 0) {
    throw ConfigError("[add request] the prompt is empty; allowed: at least one token");
  }
  for (const auto* ids : {&prompt, &forced}) {
    for (const std::int64_t id : *ids) {
      if (id < 0 || id >= config.vocab_size) {
        throw ConfigError(message("[add request] token id ",
                                  id,
                                  " is out of range; allowed: 0 to ",
                                  config.vocab_size - 1,
                                  "; check that the tokenizer belongs to the model"));
      }
    }
  }
  const auto num_forced = static_cast<std::int64_t>(forced.size());
  if (length + std::max<std::int64_t>(num_forced, 1) > impl.options.max_model_len) {
    throw ConfigError(message("[add request] the prompt has ",
                              length + num_forced,
                              " tokens",
                              num_forced > 0 ? " with its continuation" : " and needs one more",
                              "; allowed: at most ",
                              impl.options.max_model_len,
                              " prompt and new tokens (max_model_len); shorten it"));
  }
  if (decode_prompt_tokens < 0) {
    throw ConfigError(
        message("[add request] decode_prompt_tokens is ", decode_prompt_tokens, "; allowed: >= 0"));
  }
  if (num_forced > 0) {
    sampling.max_tokens = static_cast<int>(num_forced);
    sampling.min_tokens = 0;
  }
  sampling.validate();
  auto request = std::make_unique<Request>(std::move(sampling));
  request->id = impl.next_id;
  request->prompt_tokens = length;
  request->prefill_tokens = length - std::min(decode_prompt_tokens, length);
  request->content = content_of(prompt);
  request->max_tokens = std::min(length + request->sampling.max_tokens, impl.options.max_model_len);
  request->tokens = std::move(prompt);
  request->forced = std::move(forced);
  request->added_ns = TraceRecorder::now_ns();
  request->statistics.prompt_tokens = length;
  const bool chooses = impl.method.rule.choice != HostChoice::kAll;
  request->statistics.strategy = chooses ? std::string(name_of(impl.method.strategy)) : "none";
  impl.admission.check_positions(request->shape(), request->prefill_tokens);
  impl.admission.check_fits(request->shape());
  request->tokens.reserve(static_cast<std::size_t>(request->max_tokens));
  const std::int64_t id = request->id;
  impl.waiting.emplace(id, request.get());
  try {
    impl.requests.emplace(id, std::move(request));
  } catch (...) {
    impl.waiting.erase(id);
    throw;
  }
  impl.num_requests += 1;
  impl.prompt_tokens += length;
  impl.next_id += 1;
  return id;
}

bool Engine::has_work() const {
  return !impl_->waiting.empty() || impl_->prefilling != nullptr || !impl_->running.empty();
}

std::vector<TokenEvent> Engine::step() {
  Impl& impl = *impl_;
  std::vector<TokenEvent> events;
  impl.driver->run([&] {
    const at::NoGradGuard no_grad;
    if (impl.prefilling != nullptr || impl.admit_next(events)) {
      impl.prefill_chunk(events);
    } else if (!impl.running.empty()) {
      impl.decode(events);
    }
  });
  return events;
}

void Engine::finish(std::int64_t request_id, FinishReason reason) {
  Request& request = impl_->find(request_id);
  if (!request.finished()) {
    impl_->driver->run([&] { impl_->end(request, reason); });
  }
}

void Engine::release(std::int64_t request_id) {
  finish(request_id, FinishReason::kAbort);
  impl_->requests.erase(request_id);
}

RequestStatistics Engine::request_statistics(std::int64_t request_id) const {
  const Request& request = impl_->find(request_id);
  RequestStatistics statistics = request.statistics;
  statistics.generated_tokens = request.generated();
  if (request.state != nullptr) {
    describe(impl_->method, *request.state, statistics);
  }
  return statistics;
}

RunStatistics Engine::run_statistics() const {
  return {impl_->statistics, impl_->num_requests, impl_->prompt_tokens, impl_->generated_tokens};
}

void Engine::reset_statistics() {
  impl_->statistics = {};
  impl_->num_requests = 0;
  impl_->prompt_tokens = 0;
  impl_->generated_tokens = 0;
}

std::vector<TierUsage> Engine::memory() const {
  std::vector<TierUsage> usage;
  for (const MemoryBudget* budget : {&impl_->device_budget, &impl_->dram_budget}) {
    usage.push_back(
        {std::string(name_of(budget->tier())), budget->capacity_bytes(), budget->used_bytes()});
  }
  return usage;
}

TraceRecorder& Engine::trace() { return impl_->trace; }

}  // namespace hybridgen
