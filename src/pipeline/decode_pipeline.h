// SPDX-License-Identifier: Apache-2.0
// The decode loop. One step generates one token per request, layer by layer; within a layer over
// the micro-batches, so that a layer's weights serve all of them before the next layer's are
// needed.
//
//   device   | layer i: norm, q k v | resident logits | merge | output, FFN | layer i+1 ...
//   host     |       layer i+1: score offloaded keys, select, gather        | layer i+2 ...
//   link     | query ->                                   logits, values -> |
//
// Steps of the paper's Figure 12, as marked in decode_pipeline.cpp:
//   1 the host selects and scores offloaded tokens for layer i+1 from layer i's input
//   2, 3 logits and value rows of the chosen tokens cross the link
//   4 the device computes the logits of its resident tokens
//   5 concatenation in token order, one softmax, value aggregation, rest of the block
//   6 the block's output is the next layer's input, from which the next query is guessed
// Methods whose host jobs need no query (prefetches) or the layer's own differ in when a job may
// start, and in nothing else. This file owns order and waiting; what is sent, chosen and dropped is
// the method's business.
#pragma once

#include <memory>
#include <span>

#include "hybridgen/core/engine_options.h"
#include "hybridgen/methods/method.h"
#include "hybridgen/pipeline/statistics.h"
#include "hybridgen/runtime/trace_recorder.h"
#include "models/decoder_model.h"
#include "pipeline/cpu_stage.h"
#include "pipeline/micro_batch.h"
#include "pipeline/stage_timer.h"

namespace hybridgen {

class DecodePipeline {
 public:
  /// `cpu_stage` may be null for methods that offload nothing; `pool` (may be null) helps with what
  /// the driver does between stages. All references must outlive this.
  DecodePipeline(const DecoderModel& model,
                 const DeviceOps& ops,
                 const Method& method,
                 CpuStage* cpu_stage,
                 WorkerPool* pool,
                 TraceRecorder& trace,
                 PipelineStatistics& statistics,
                 const TestSwitches& test);

  /// One step of all rows: feeds batch.tokens, leaves float32 logits in batch.host_logits (ready
  /// for the host when this returns). What fails for one request becomes its `failure`: its logits
  /// then mean nothing, those of all others are as without it. Throws what concerns all of them,
  /// after all host jobs have ended; the requests' caches are then in an undefined state.
  void step(std::span<const std::unique_ptr<MicroBatch>> batches);

 private:
  void run_layers(std::span<const std::unique_ptr<MicroBatch>> batches);
  void begin_step(MicroBatch& batch);
  void add_token(RequestState& request);
  void make_room(RequestState& request);
  std::int64_t position_of(const RequestState& request) const;
  void start_layer(std::int64_t layer, MicroBatch& batch);
  void finish_layer(std::int64_t layer, MicroBatch& batch);
  void end_step(std::span<const std::unique_ptr<MicroBatch>> batches);
  void append_key_value(std::int64_t layer, MicroBatch& batch);
  void shift_keys(std::int64_t layer, MicroBatch& batch);
  /// `query` [B, H, D] or [B, H D]; undefined for host jobs that need none.
  void start_host_jobs(std::int64_t layer, MicroBatch& batch, const at::Tensor& query);
  void plan_by_partial_keys(std::int64_t layer,
                            RequestState& request,
                            const at::Tensor& query,
                            HostJob& job);
  void receive_payloads(std::int64_t layer, MicroBatch& batch);
  void feed_back(std::int64_t layer, MicroBatch& batch);
  void trace_device(const char* name, std::int64_t layer, std::int64_t begin_ns);

  const DecoderModel& model_;
  const DeviceOps& ops_;
  const Method& method_;
  CpuStage* cpu_stage_;
  WorkerPool* pool_;
  TraceRecorder& trace_;
  PipelineStatistics& statistics_;
  TestSwitches test_;
  StageTimer timer_;
  std::int64_t step_ = 0;
  StepSample sample_;  ///< of the step so far: host stages that ran beside the layer before
};

}  // namespace hybridgen
