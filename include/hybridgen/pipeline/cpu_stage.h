// SPDX-License-Identifier: Apache-2.0
// The host half of hybrid attention (paper §4.2.2, steps 1 to 3 of Figure 12): for one layer of a
// micro-batch, plan or score and select, then gather what crosses the link into staging. Runs on
// the worker pool beside the device; knows no Torch, no method name and no schedule.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "hybridgen/core/model_config.h"
#include "hybridgen/device/trace_recorder.h"
#include "hybridgen/device/worker_pool.h"
#include "hybridgen/kvcache/host_kv_store.h"
#include "hybridgen/selection/token_selector.h"

namespace hybridgen::kernels {
struct CpuKernels;
}

namespace hybridgen {

/// Staging of one (request, layer) job. Owned by the request; reused by every second layer.
struct HostJobBuffers {
  float* logits = nullptr;              ///< [H, S] scaled logits of the chosen tokens
  std::int32_t* positions = nullptr;    ///< [H, S] the chosen tokens, ascending per head
  std::int32_t* index = nullptr;        ///< [H, S] row of `values` for each chosen token
  std::int32_t* merged = nullptr;       ///< [G, union_capacity] union of a group's chosen tokens
  std::int64_t* union_sizes = nullptr;  ///< [G]
  void* values = nullptr;               ///< [G, union_capacity, D]
  void* keys = nullptr;                 ///< [G, union_capacity, D]; null unless keys are shipped
  std::int64_t union_capacity = 0;
};

struct HostJob {
  const HostKvStore* store = nullptr;
  const void* query = nullptr;  ///< [H, D] in the store's dtype, on the host, unscaled
  TokenSelector* selector = nullptr;
  std::int64_t num_offloaded = 0;  ///< n_c >= 1
  std::int64_t num_chosen = 0;     ///< S in [1, n_c]
  bool ship_keys = false;
  HostJobBuffers buffers;
};

/// The jobs of one micro-batch in one layer. Not movable; reuse it.
struct HostJobBatch {
  std::int64_t layer = -1;
  std::int64_t step = -1;
  std::vector<HostJob> jobs;
  /// Called by each task before it reads a query, from a worker: waits until the queries are on the
  /// host. Empty: they are there.
  std::function<void()> wait_for_queries;

  // Results, valid after wait().
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  std::int64_t key_bytes_read = 0;
  std::int64_t value_bytes_read = 0;

 private:
  friend class CpuStage;
  struct TaskResult {
    std::int64_t begin_ns = 0;
    std::int64_t end_ns = 0;
    std::int64_t key_bytes = 0;
    std::int64_t value_bytes = 0;
  };
  class CpuStage* stage = nullptr;
  TaskGroup group;
  std::vector<TaskResult> results;  ///< one per task: a task is one (job, KV head)
  bool in_flight = false;
};

class CpuStage {
 public:
  /// All references must outlive the stage.
  CpuStage(WorkerPool& pool,
           const kernels::CpuKernels& kernels,
           const ModelConfig& config,
           TraceRecorder& trace,
           std::int64_t random_delay_us = 0);

  /// Grows the workers' scratch for requests of up to `max_tokens` offloaded tokens, so that steady
  /// state does not allocate. Call while no batch is in flight.
  void reserve(std::int64_t max_tokens);

  /// Starts all jobs of `batch` (none: nothing happens). Pre-QKT plans are made here, on the
  /// calling thread. The batch must stay alive and untouched until wait().
  void submit(HostJobBatch& batch);

  /// Blocks until the batch is done and rethrows a task's error. At once if nothing was submitted.
  void wait(HostJobBatch& batch);

 private:
  struct Scratch {
    std::vector<float> queries;
    std::vector<float> logits;
    std::vector<float> selection;
  };
  static void run_task(void* batch, std::int64_t task, int worker);
  void run(HostJobBatch& batch, std::int64_t task, int worker);
  void choose_by_logits(const HostJobBatch& batch,
                        const HostJob& job,
                        std::int64_t kv_head,
                        const float* queries,
                        Scratch& scratch) const;
  void score_planned(const HostJob& job,
                     std::int64_t layer,
                     std::int64_t kv_head,
                     const float* queries) const;

  WorkerPool& pool_;
  const kernels::CpuKernels& kernels_;
  TraceRecorder& trace_;
  std::int64_t num_heads_;
  std::int64_t num_kv_heads_;
  std::int64_t head_dim_;
  std::int64_t random_delay_us_;
  std::vector<Scratch> scratch_;  ///< one per worker
};

}  // namespace hybridgen
