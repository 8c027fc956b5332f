// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/engine/engine.h"

#include <ATen/core/grad_mode.h>

#include <tuple>
#include <utility>

#include "engine/engine_impl.h"
#include "engine/memory_report.h"
#include "engine/method_checks.h"
#include "memory/host_tiers.h"
#include "runtime/cpus.h"

namespace hybridgen {

const Weights& finished_weights(DecoderModel& model) {
  model.weights().finish();
  return model.weights();
}

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
