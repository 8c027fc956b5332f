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

#include <array>
#include <memory>
#include <optional>
#include <span>

#include "models/weight_store.h"
#include "pipeline/host_jobs.h"
#include "pipeline/loop_context.h"
#include "pipeline/micro_batch.h"

namespace hybridgen {

/// To be used with the compute stream current (DeviceContext::enter_compute).
class DecodePipeline {
 public:
  /// `cpu_stage` may be null for methods that offload nothing; `pool` (may be null) helps with what
  /// the driver does between stages. All references must outlive this.
  DecodePipeline(const DecoderModel& model,
                 WeightStore& weights,
                 const DeviceOps& ops,
                 const Method& method,
                 CpuStage* cpu_stage,
                 WorkerPool* pool,
                 TraceRecorder& trace,
                 PipelineStatistics& statistics,
                 PipelineProbe* probe = nullptr);
  DecodePipeline(const DecodePipeline&) = delete;
  DecodePipeline& operator=(const DecodePipeline&) = delete;

  using Batches = std::span<const std::unique_ptr<MicroBatch>>;

  /// One step of all rows: feeds batch.tokens, leaves float32 logits in batch.host_logits (ready
  /// for the host when this returns). What fails for one request becomes its `failure`: its logits
  /// then mean nothing, those of all others are as without it. Throws what concerns all of them,
  /// after all host jobs have ended; the requests' caches are then in an undefined state.
  void step(Batches batches);

 private:
  void run_layers(Batches batches);
  void start_layer(std::int64_t layer, MicroBatch& batch);
  void finish_layer(std::int64_t layer, MicroBatch& batch);

  /// The lease of a layer under way.
  LayerLease& lease(std::int64_t layer) { return leases_[static_cast<std::size_t>(layer % 2)]; }

  /// Whether there is such a layer and its host job starts by such a query.
  bool starts_by(HostQuery query, std::int64_t layer) const;
  /// The host's job for which `layer` is early enough to guess a query, if any.
  /// `comes_first`: the layer's own projections come next.
  void start_guessed(std::int64_t layer, MicroBatch& batch, bool comes_first);
  void fetch_leaving(Batches batches);
  void begin_step(MicroBatch& batch);
  /// Where the layer's keys and values of every row lie.
  void describe_rows(std::int64_t layer, MicroBatch& batch);
  void score_resident(std::int64_t layer, MicroBatch& batch);
  void turn_keys(std::int64_t layer, MicroBatch& batch);
  void merge(std::int64_t layer, MicroBatch& batch);
  void compute_logits(MicroBatch& batch);
  void wait_for_device(Batches batches);
  void end_step(Batches batches);
  void finish_feedback(MicroBatch& batch);
  void end_request_step(RequestState& request);
  void end_loss(const MicroBatch& batch, std::size_t row);
  void trace_decision(const RequestState& request) const;
  void trace_request(const RequestState& request, const char* name, TraceSpan span) const;

  const DecoderModel& model_;
  WeightStore& weights_;
  const DeviceOps& ops_;
  const Method& method_;
  std::array<LayerLease, 2> leases_;  ///< of the layers under way, which alternate
  LoopContext loop_;
  HostJobs host_;
  std::optional<c10::Event> step_done_;  ///< all that the device does in a step
  std::int64_t guess_distance_;
};

}  // namespace hybridgen
