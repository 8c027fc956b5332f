// SPDX-License-Identifier: Apache-2.0
// The host half of a layer (paper §4.2.2, steps 1 to 3 of Figure 12): for one layer of a
// micro-batch, plan or score and select, then gather what crosses the link into staging, or compute
// attention here and send its result. Cuts the jobs into pieces for the worker pool, beside the
// device; what a piece does is a HostTask. Knows no Torch, no method name and no schedule.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <vector>

#include "hybridgen/core/model_config.h"
#include "hybridgen/runtime/trace_recorder.h"
#include "memory/numa_division.h"
#include "pipeline/device_gate.h"
#include "pipeline/host_job.h"
#include "pipeline/host_task.h"
#include "runtime/worker_pool.h"

namespace hybridgen {

class PipelineProbe;

/// The jobs of one micro-batch in one layer. Not movable; reuse it.
struct HostJobBatch {
  std::int64_t layer = -1;
  std::int64_t step = -1;
  std::vector<HostJob> jobs;
  /// Called once before any piece runs, from a thread that is no worker: waits until the queries
  /// are on the host and the device has done with the staging, and completes jobs by what the
  /// device planned: their num_chosen is unknown until wait(). Empty: all is so.
  std::function<void()> wait_for_device;

  // Results, valid after wait().
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  std::int64_t key_bytes_read = 0;
  std::int64_t value_bytes_read = 0;
  std::int64_t cxl_key_bytes_read = 0;  ///< of them, by the shares that lie there
  std::int64_t cxl_value_bytes_read = 0;

  /// What a job threw, or null; then its buffers hold nothing of use. Of several pieces that failed
  /// it is the first one's, whatever the timing.
  const std::exception_ptr& error(std::size_t job) const { return failures[job].error; }

 private:
  friend class CpuStage;
  struct Failure {
    std::int64_t piece = 0;
    std::exception_ptr error;
  };
  /// A range of one (job, KV head)'s offloaded tokens; all of them unless all are attended to here,
  /// or scored for a selector, and there are too few heads to keep all workers busy.
  struct Piece {
    std::int64_t job = 0;
    std::int64_t kv_head = 0;
    TokenRange tokens;
    bool is_whole = true;
    HostTaskResult result{};
  };
  /// Pieces [next, end) belong to a memory node and are not claimed yet. A cache line each: nodes
  /// would slow each other down.
  struct alignas(64) NodeQueue {
    std::int64_t next = 0;
    std::int64_t end = 0;
  };
  class CpuStage* stage = nullptr;
  TaskGroup group;
  std::int64_t ticket = 0;          ///< of the gate
  std::exception_ptr device_error;  ///< what wait_for_device threw: every job's failure
  std::vector<Piece> pieces;
  std::vector<std::int32_t> unfinished;  ///< ranges that each (job, KV head) still waits for
  std::vector<NodeQueue> queues;         ///< one per part of the stage's division
  std::vector<Failure> failures;         ///< one per job
  std::mutex failures_mutex;             ///< of the line above, while pieces run
  bool in_flight = false;
};

class CpuStage {
 public:
  /// All references must outlive the stage. With a `division` of the pool's workers, pieces of a KV
  /// head go to workers of its memory node first; one whose node has none left helps the others.
  /// `waiter_helps`: the thread in wait() takes tasks too, which it should if it has a core of its
  /// own and the device is the CPU, so that waiting would leave that core idle.
  CpuStage(WorkerPool& pool,
           const kernels::CpuKernels& kernels,
           const ModelConfig& config,
           TraceRecorder& trace,
           PipelineProbe* probe = nullptr,
           NumaDivision division = {},
           bool waiter_helps = false);

  const kernels::CpuKernels& kernels() const { return runner_.kernels(); }

  /// Grows the workers' scratch for requests of up to `max_tokens` offloaded tokens,
  /// `max_candidates` of which a proxy proposes to each query head, so that steady state does not
  /// allocate. Call while no batch is in flight.
  void reserve(std::int64_t max_tokens, std::int64_t max_candidates = 0);

  /// Starts all jobs of `batch` (none: nothing happens). The batch must stay alive and untouched
  /// until wait().
  void submit(HostJobBatch& batch);

  /// Blocks until the batch is done. At once if nothing was submitted. A job that throws leaves
  /// the others alone: see HostJobBatch::error().
  void wait(HostJobBatch& batch);

 private:
  static void run_task(void* batch, std::int64_t task, int worker);
  void cut(HostJobBatch& batch) const;
  void cut_heads(HostJobBatch& batch,
                 std::int64_t length,
                 std::int64_t first_head,
                 std::int64_t num_heads) const;
  std::int64_t claim(HostJobBatch& batch, int worker) const;
  void run(HostJobBatch& batch, std::int64_t piece, int worker);
  void run_range(HostJobBatch& batch, const HostTask& task, std::int64_t job, int worker) const;
  void take_time_of_cxl(const HostJob& job, const HostTaskResult& result) const;
  static void note_failure(HostJobBatch& batch, std::int64_t piece);
  void trace(const HostJobBatch& batch,
             const char* name,
             int worker,
             std::int64_t begin_ns,
             std::int64_t end_ns,
             std::int64_t bytes) const;

  WorkerPool& pool_;
  HostTaskRunner runner_;
  TraceRecorder& trace_;
  std::int64_t num_kv_heads_;
  PipelineProbe* probe_;
  NumaDivision division_;
  bool waiter_helps_;
  std::vector<HostScratch> scratch_;  ///< one per worker, then one of the waiter
  std::unique_ptr<DeviceGate> gate_;  ///< made by the first batch that waits for a device
};

}  // namespace hybridgen
