// SPDX-License-Identifier: Apache-2.0
// The driver's side of host jobs: sends what they read, hands them to the CPU stage, and takes
// their payloads to the device.
#pragma once

#include <ATen/core/Tensor.h>

#include "pipeline/cpu_stage.h"
#include "pipeline/loop_context.h"
#include "pipeline/micro_batch.h"

namespace hybridgen {

class HostJobs {
 public:
  /// `stage` may be null for methods that offload nothing: then all of this does nothing.
  HostJobs(LoopContext& loop, CpuStage* stage) : loop_(loop), stage_(stage) {}

  /// The jobs of `layer` go to the workers. `query` [B, H, D] or [B, H D]; undefined for work that
  /// needs none.
  void start(std::int64_t layer, MicroBatch& batch, const at::Tensor& query = {});
  /// Waits for the jobs of `layer` and starts the copies of their payloads, which the compute
  /// stream waits for.
  void receive(std::int64_t layer, MicroBatch& batch);
  /// Nobody reads offloaded tokens of `layer` any more: what was read of the disk for it goes, and
  /// the next layer's is begun to be read.
  void release(std::int64_t layer, MicroBatch& batch);
  /// After a failure that concerns everybody: workers may still write into requests' staging.
  void wait_for_all(MicroBatch& batch);

 private:
  void read_for(const HostJob& job, std::int64_t layer, RequestState& request) const;
  void read_ahead(RequestState& request) const;
  bool add_job(std::int64_t layer, MicroBatch& batch, std::size_t row);
  void note_plan(std::int64_t layer, const HostJob& job, const RequestState& request);
  void send(const at::Tensor& from, at::Tensor& staging, std::size_t num_jobs);
  void ship(std::int64_t layer, MicroBatch& batch);
  /// What a row's finished job left out.
  void note_loss(std::int64_t layer, MicroBatch& batch, std::int64_t row, const HostJob& job);
  void count(const HostJobBatch& jobs, const HostWork& work);

  LoopContext& loop_;
  CpuStage* stage_;
};

}  // namespace hybridgen
