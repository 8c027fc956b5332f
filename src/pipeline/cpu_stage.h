// SPDX-License-Identifier: Apache-2.0
// The host half of a layer (paper §4.2.2, steps 1 to 3 of Figure 12): for one layer of a
// micro-batch, plan or score and select, then gather what crosses the link into staging, or compute
// attention here and send its result. Runs on the worker pool beside the device; knows no Torch, no
// method name and no schedule.
#pragma once

#include <cstdint>
#include <exception>
#include <functional>
#include <mutex>
#include <span>
#include <vector>

#include "hybridgen/core/model_config.h"
#include "hybridgen/methods/method.h"
#include "hybridgen/runtime/trace_recorder.h"
#include "hybridgen/selection/token_selector.h"
#include "kvcache/host_kv_store.h"
#include "kvcache/scoring_shadow.h"
#include "memory/numa_division.h"
#include "runtime/worker_pool.h"

namespace hybridgen::kernels {
struct CpuKernels;
}

namespace hybridgen {

/// Staging of one (request, layer) job. Owned by the request; reused by every second layer. What a
/// method never sends is null.
struct HostJobBuffers {
  float* logits = nullptr;              ///< [H, S] scaled logits of the chosen tokens
  std::int32_t* positions = nullptr;    ///< [H, S] chosen per query head, ascending
  std::int32_t* index = nullptr;        ///< [H, S] row of `values` for each of them
  std::int32_t* merged = nullptr;       ///< [G, union_capacity] a group's chosen tokens, ascending
  std::int64_t* union_sizes = nullptr;  ///< [G]
  void* values = nullptr;               ///< [G, union_capacity, D]
  void* keys = nullptr;                 ///< [G, union_capacity, D]
  void* output = nullptr;               ///< [H, D] attention over the chosen tokens
  float* lse = nullptr;                 ///< [H] natural log-sum-exp of their logits
  std::int64_t union_capacity = 0;
  bool device_reads = false;  ///< `values` and `keys` next: by a device, or by the CPU's cores
  /// [H, stride of score_stride()] logits of all offloaded tokens; null: heads are not cut into
  /// ranges. Never leaves the host.
  float* scores = nullptr;
};

/// Between the rows of HostJobBuffers::scores, for `num_tokens` offloaded tokens.
constexpr std::int64_t score_stride(std::int64_t num_tokens) {
  return (num_tokens + kKeyBlockTokens - 1) / kKeyBlockTokens * kKeyBlockTokens;
}

struct HostJob {
  HostKvStore* store = nullptr;
  LayerRule rule;
  bool is_planned = false;      ///< kSelector: chosen before their logits are known
  const void* query = nullptr;  ///< [H, D] in the store's dtype, on the host, unscaled; may be null
  const TokenSelector* selector = nullptr;  ///< kSelector only
  /// Rows [G, D] that become the last offloaded token first; null: nothing is appended.
  const void* new_key = nullptr;
  const void* new_value = nullptr;
  std::int64_t num_offloaded = 0;  ///< n_c >= 1
  std::int64_t num_chosen = 0;     ///< S in [1, n_c]
  /// Scanned instead of the keys (not is_planned only); then the best `num_candidates` in [S, n_c)
  /// of each query head get exact logits. Null: the keys are scanned.
  const ScoringShadow* shadow = nullptr;
  std::int64_t num_candidates = 0;
  HostJobBuffers buffers;

  /// All query heads of a KV head use the same tokens: `merged`, without `positions` and `index`.
  bool is_shared() const { return rule.choice != HostChoice::kSelector || is_planned; }
};

/// The jobs of one micro-batch in one layer. Not movable; reuse it.
struct HostJobBatch {
  std::int64_t layer = -1;
  std::int64_t step = -1;
  std::vector<HostJob> jobs;
  /// Called by each task before anything else, from a worker: waits until the queries are on the
  /// host and the device has done with the staging. Empty: both is so.
  std::function<void()> wait_for_device;

  // Results, valid after wait().
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  std::int64_t key_bytes_read = 0;
  std::int64_t value_bytes_read = 0;

  /// What a job threw, or null; then its buffers hold nothing of use. Of several tasks that failed
  /// it is the first one's, whatever the timing.
  const std::exception_ptr& error(std::size_t job) const { return failures[job].error; }

 private:
  friend class CpuStage;
  struct Failure {
    std::int64_t task = 0;
    std::exception_ptr error;
  };
  struct TaskResult {
    std::int64_t begin_ns = 0;
    std::int64_t end_ns = 0;
    std::int64_t key_bytes = 0;
    std::int64_t value_bytes = 0;
  };
  /// A range of one (job, KV head)'s offloaded tokens; all of them unless they are scored for a
  /// selector and there are too few heads to keep all workers busy.
  struct Task {
    std::int64_t job = 0;
    std::int64_t kv_head = 0;
    TokenRange tokens;
    bool is_whole = true;
    TaskResult result{};
  };
  /// Tasks [next, end) belong to a memory node and are not claimed yet. A cache line each: nodes
  /// would slow each other down.
  struct alignas(64) NodeQueue {
    std::int64_t next = 0;
    std::int64_t end = 0;
  };
  class CpuStage* stage = nullptr;
  TaskGroup group;
  std::vector<Task> tasks;
  std::vector<std::int32_t> unscored;  ///< ranges that each (job, KV head) still waits for
  std::vector<NodeQueue> queues;       ///< one per part of the stage's division
  std::vector<Failure> failures;       ///< one per job
  std::mutex failures_mutex;           ///< of the line above, while tasks run
  bool in_flight = false;
};

class CpuStage {
 public:
  /// All references must outlive the stage. With a `division` of the pool's workers, tasks of a KV
  /// head go to workers of its memory node first; one whose node has none left helps the others.
  /// `waiter_helps`: the thread in wait() takes tasks too, which it should if it has a core of its
  /// own and the device is the CPU, so that waiting would leave that core idle.
  CpuStage(WorkerPool& pool,
           const kernels::CpuKernels& kernels,
           const ModelConfig& config,
           TraceRecorder& trace,
           std::int64_t random_delay_us = 0,
           NumaDivision division = {},
           bool waiter_helps = false);

  /// Grows the workers' scratch for requests of up to `max_tokens` offloaded tokens,
  /// `max_candidates` of which a shadow proposes to each query head, so that steady state does not
  /// allocate. Call while no batch is in flight.
  void reserve(std::int64_t max_tokens, std::int64_t max_candidates = 0);

  /// Starts all jobs of `batch` (none: nothing happens). The batch must stay alive and untouched
  /// until wait().
  void submit(HostJobBatch& batch);

  /// Blocks until the batch is done. At once if nothing was submitted. A job that throws leaves
  /// the others alone: see HostJobBatch::error().
  void wait(HostJobBatch& batch);

 private:
  /// What the way from a shadow's scores to exact choices needs.
  struct Rescoring {
    std::vector<std::int8_t> queries;
    std::vector<float> scales;
    std::vector<std::int32_t> candidates;  // [R, candidates], then the union and the places in it
    std::vector<std::int32_t> merged;
    std::vector<std::int32_t> index;
    std::vector<float> logits;  // [R, union]
  };
  struct Scratch {
    std::vector<float> queries;
    std::vector<float> logits;
    std::vector<float> selection;
    std::vector<std::uint64_t> merging;
    std::vector<std::int32_t> planned;
    Rescoring rescoring;
  };
  /// One task of a batch on one worker.
  struct Task {
    const HostJob& job;
    std::int64_t layer;
    std::int64_t kv_head;
    TokenRange tokens;
    Scratch& scratch;
    HostJobBatch::TaskResult& result;
  };
  static void run_task(void* batch, std::int64_t task, int worker);
  void cut(HostJobBatch& batch) const;
  void cut_heads(HostJobBatch& batch,
                 std::int64_t length,
                 std::int64_t first_head,
                 std::int64_t num_heads) const;
  std::int64_t claim(HostJobBatch& batch, int worker) const;
  void run(HostJobBatch& batch, std::int64_t task, int worker);
  static void note_failure(HostJobBatch& batch, std::int64_t task);
  void scale_query(const Task& task) const;
  void append_new_token(const Task& task) const;
  const char* run_whole(const Task& task) const;
  std::span<const std::int32_t> plan(const Task& task) const;
  void choose(const Task& task, const float* logits, std::int64_t stride) const;
  void choose_by_logits(const Task& task, const float* logits, std::int64_t stride) const;
  void choose_by_shadow(const Task& task, const float* scores, std::int64_t stride) const;
  void prepare_for_shadow(const Task& task) const;
  void score_by_shadow(const Task& task, float* scores, std::int64_t stride) const;
  void score_planned(const Task& task, std::span<const std::int32_t> chosen) const;
  void gather(const Task& task, bool keys) const;
  void ship_all(const Task& task) const;
  void attend(const Task& task, std::span<const std::int32_t> chosen) const;
  void logits_of_range(const Task& task, float* logits, std::int64_t stride) const;
  void logits_of_chosen(const Task& task,
                        std::span<const std::int32_t> chosen,
                        float* logits,
                        std::int64_t stride) const;
  void trace(const HostJobBatch& batch,
             const char* name,
             int worker,
             std::int64_t begin_ns,
             std::int64_t end_ns,
             std::int64_t bytes) const;

  WorkerPool& pool_;
  const kernels::CpuKernels& kernels_;
  TraceRecorder& trace_;
  std::int64_t num_heads_;
  std::int64_t num_kv_heads_;
  std::int64_t head_dim_;
  std::int64_t random_delay_us_;
  NumaDivision division_;
  bool waiter_helps_;
  std::vector<Scratch> scratch_;  ///< one per worker, then one of the waiter
};

}  // namespace hybridgen
