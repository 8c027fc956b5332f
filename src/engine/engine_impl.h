// SPDX-License-Identifier: Apache-2.0
// What an engine is made of, in the order in which its parts need each other. engine.cpp makes and
// ends them; what a step does is in engine_step.cpp.
#pragma once

#include <cstdint>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "device/driver_thread.h"
#include "engine/admission.h"
#include "engine/lower_tiers.h"
#include "engine/machine.h"
#include "engine/request_queue.h"
#include "engine/resolved_options.h"
#include "hybridgen/engine/engine.h"
#include "hybridgen/methods/method.h"
#include "memory/budgets.h"
#include "memory/disk_queue.h"
#include "models/decoder_model.h"
#include "pipeline/decode_pipeline.h"
#include "pipeline/prefill.h"
#include "pipeline/test_probe.h"
#include "runtime/process.h"

namespace hybridgen {

/// A model's weights; CheckpointError if they are not all there.
const Weights& finished_weights(DecoderModel& model);

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
  WeightStore weights{finished_weights(*model), model->device(), trace, layers_at_a_time(method)};
  std::unique_ptr<Prefill> prefill;
  std::unique_ptr<DecodePipeline> pipeline;
  std::vector<std::unique_ptr<MicroBatch>> batches;
  std::vector<Request*> stepped;  ///< those of the current step, in the order of the batches
  MakerProcess maker;
  // Last: joins before anything its work refers to is destroyed.
  std::unique_ptr<DriverThread> driver;
};

}  // namespace hybridgen
