// SPDX-License-Identifier: Apache-2.0
// Prompt processing in chunks: exact full attention whatever the window is. Tokens that do not fit
// the window leave for the host while prefilling; later chunks stream them back in blocks, and the
// parts (offloaded, resident, own chunk) are merged by log-sum-exp. So a prompt larger than the
// device never has its whole KV cache there.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <span>

#include "hybridgen/pipeline/statistics.h"
#include "hybridgen/runtime/trace_recorder.h"
#include "kernels/cpu_kernels.h"
#include "models/decoder_model.h"
#include "pipeline/request_state.h"
#include "runtime/link_meter.h"

namespace hybridgen {

/// To be used with the compute stream current (DeviceContext::enter_compute).
class Prefill {
 public:
  static constexpr std::int64_t kStreamedBlock = 1024;  ///< tokens from the host at a time

  /// All references must outlive this.
  Prefill(const DecoderModel& model,
          const DeviceOps& ops,
          const kernels::CpuKernels& kernels,
          const Method& method,
          TraceRecorder& trace,
          PipelineStatistics& statistics);

  /// Appends `tokens` (>= 1) to the request's caches. With `want_logits` the float32 logits [V]
  /// that follow the last of them, on the host; else an undefined tensor.
  at::Tensor run_chunk(RequestState& request,
                       std::span<const std::int64_t> tokens,
                       bool want_logits);

  /// The float32 logits [count, V] that follow the last chunk's tokens from `first` on, on the
  /// host.
  at::Tensor chunk_logits(std::int64_t first, std::int64_t count) const;

  /// After the last chunk (or none): a retention policy chooses what stays; else nothing happens.
  void finish(RequestState& request);

 private:
  at::Tensor attend(RequestState& request,
                    std::int64_t layer,
                    const at::Tensor& keys,
                    const at::Tensor& values);
  /// Calls visit(first position, keys, values) for blocks of offloaded tokens, on the device.
  void for_offloaded_blocks(const RequestState& request,
                            std::int64_t layer,
                            const std::function<void(const at::Tensor&, const at::Tensor&)>& visit);
  /// Of a chunk in one layer. `device`: attention over what is on the device, `offloaded` over the
  /// rest, `all` over both.
  void tell_parts(RequestState& request,
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
  void keep_layer(RequestState& request, std::int64_t layer, ResidentCache& kept);
  void read_ahead(const RequestState& request, std::int64_t layer) const;
  std::int64_t rows_to_keep(const RequestState& request, std::int64_t rows) const;
  void place(RequestState& request,
             std::int64_t layer,
             const at::Tensor& keys,
             const at::Tensor& values);

  const DecoderModel& model_;
  const DeviceOps& ops_;
  const kernels::CpuKernels& kernels_;
  const Method& method_;
  TraceRecorder& trace_;
  PipelineStatistics& statistics_;
  LinkMeter link_;
  BlockWorkspace ws_;                     ///< of the last chunk's size
  BlockWorkspace last_;                   ///< one row, for the head
  at::Tensor block_keys_, block_values_;  ///< host staging of streamed blocks
};

}  // namespace hybridgen
