// SPDX-License-Identifier: Apache-2.0
// Prompt processing in chunks: exact full attention whatever the window is. Tokens that do not fit
// the window leave for the host while prefilling; later chunks stream them back in blocks, and the
// parts (offloaded, resident, own chunk) are merged by log-sum-exp. So a prompt larger than the
// device never has its whole KV cache there.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <exception>
#include <span>

#include "hybridgen/pipeline/statistics.h"
#include "hybridgen/runtime/trace_recorder.h"
#include "kernels/cpu_kernels.h"
#include "models/decoder_model.h"
#include "models/weight_store.h"
#include "pipeline/offloaded_blocks.h"
#include "pipeline/request_state.h"
#include "runtime/link_meter.h"

namespace hybridgen {

/// Tokens that follow those of a request that are there.
struct PrefillChunk {
  RequestState* request = nullptr;
  std::span<const std::int64_t> tokens{};  ///< >= 1
  bool wants_logits = false;
  at::Tensor logits{};           ///< out: float32 [V] that follow the last one, on the host
  std::exception_ptr failure{};  ///< out
  BlockWorkspace ws{};           ///< of Prefill: views but for x and positions, where chunks differ
  std::int64_t leaving = 0;      ///< of Prefill: rows that leave the device
  std::int64_t keep = 0;         ///< of Prefill: rows that are on the device then
};

/// To be used with the compute stream current (DeviceContext::enter_compute).
class Prefill {
 public:
  /// All references must outlive this.
  Prefill(const DecoderModel& model,
          WeightStore& weights,
          const DeviceOps& ops,
          const kernels::CpuKernels& kernels,
          const Method& method,
          TraceRecorder& trace,
          PipelineStatistics& statistics);

  /// Appends the tokens of each chunk to its request's caches. All of them pass through a layer
  /// before the next layer's weights are needed, each by itself: its numbers are those that it has
  /// alone. What fails for one request becomes its chunk's `failure`; throws what concerns all.
  void run(std::span<PrefillChunk> chunks);

  /// The float32 logits [count, V] that follow a chunk's tokens from `first` on, on the host; of
  /// the last run().
  at::Tensor chunk_logits(const PrefillChunk& chunk, std::int64_t first, std::int64_t count) const;

  /// After the last chunk (or none): a retention policy chooses what stays; else nothing happens.
  void finish(RequestState& request);

 private:
  void begin(PrefillChunk& chunk);
  void run_layer(std::int64_t layer, const LayerWeights& weights, PrefillChunk& chunk);
  void end(PrefillChunk& chunk);
  at::Tensor attend(RequestState& request,
                    const at::Tensor& query,
                    std::int64_t layer,
                    const at::Tensor& keys,
                    const at::Tensor& values);
  /// Of a chunk in one layer. `device`: attention over what is on the device, `offloaded` over the
  /// rest, `all` over both.
  void tell_parts(RequestState& request,
                  const at::Tensor& query,
                  std::int64_t layer,
                  const at::Tensor& keys,
                  const PartialAttention& device,
                  const PartialAttention& offloaded,
                  const PartialAttention& all);
  /// Sums of the chunk's softmax weights, of the softmaxes that these log-sum-exps belong to.
  void give_weights(RequestState& request,
                    KvPart& part,
                    const PromptRows& rows,
                    const at::Tensor& offloaded_lse,
                    const at::Tensor& device_lse);
  /// `unrotation`: undoes the rotation of the prompt's keys; undefined: they stay rotated.
  void keep_layer(RequestState& request,
                  std::int64_t layer,
                  const RopeTable& unrotation,
                  ResidentCache& kept);
  void read_ahead(const RequestState& request, std::int64_t layer) const;
  std::int64_t rows_to_keep(const RequestState& request, std::int64_t rows) const;
  void place(RequestState& request,
             std::int64_t layer,
             const at::Tensor& keys,
             const at::Tensor& values);

  const DecoderModel& model_;
  WeightStore& weights_;
  const DeviceOps& ops_;
  const Method& method_;
  TraceRecorder& trace_;
  PipelineStatistics& statistics_;
  LinkMeter link_;
  OffloadedBlocks offloaded_;
  BlockWorkspace ws_;    ///< of the largest chunk's size
  BlockWorkspace last_;  ///< one row, for the head
};

}  // namespace hybridgen
