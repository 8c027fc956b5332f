// SPDX-License-Identifier: Apache-2.0
// What one worker does of a host job: everything of one KV head, or the logits of a range of its
// tokens. Reads the store, asks selectors, writes into the job's staging.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "hybridgen/core/model_config.h"
#include "kernels/cpu_kernels.h"
#include "kvcache/stored_head.h"
#include "pipeline/host_job.h"

namespace hybridgen {

/// A worker's own memory, kept from task to task.
struct HostScratch {
  /// What the way from a proxy's scores to exact choices needs.
  struct Rescoring {
    KeyProxy::Queries queries;
    std::vector<std::int32_t> candidates;  ///< [R, candidates]; below: their union, places in it
    std::vector<std::int32_t> merged;
    std::vector<std::int32_t> index;
    std::vector<float> logits;  ///< [R, union]
    std::vector<float> scores;  ///< [K]
  };
  /// What attention that ends on the host needs.
  struct Attending {
    std::vector<float> sums;  ///< attend_scratch() floats
    std::vector<kernels::AttentionPart> parts;
    std::vector<float> shares;
    // Rows of a part that lie apart, put together.
    std::vector<std::byte> keys, values;
    std::vector<std::int32_t> places;
  };
  std::vector<float> queries;  ///< [R, D] float32, scaled
  std::vector<float> logits;   ///< [R, tokens]
  std::vector<float> selection;
  std::vector<std::uint64_t> merging;
  std::vector<std::int32_t> planned;  ///< a plan, or [R, ..] what query heads took
  std::vector<float> weights;         ///< [tokens]
  StoredHead::Scratch stored;
  Rescoring rescoring;
  Attending attending;
};

struct HostTaskResult {
  std::int64_t begin_ns = 0;
  std::int64_t end_ns = 0;
  std::int64_t key_bytes = 0;
  std::int64_t value_bytes = 0;
};

struct HostTask {
  const HostJob& job;
  std::int64_t layer;
  std::int64_t kv_head;
  TokenRange tokens;
  HostScratch& scratch;
  HostTaskResult& result;
};

/// Of a part of the attention.
struct AttendedRows {
  TokenRange tokens;                        ///< or places in `positions`
  const std::int32_t* positions = nullptr;  ///< null: all of the range
  const StoredRows* keys = nullptr;         ///< null: the logits are known
  const StoredRows* values = nullptr;
  bool are_apart() const {
    return !values->is_one_piece() || (keys != nullptr && !keys->is_one_piece());
  }
};

/// The work of tasks. Stateless but for sizes: any number of threads may use it at a time.
class HostTaskRunner {
 public:
  HostTaskRunner(const kernels::CpuKernels& kernels, const ModelConfig& config);

  std::int64_t query_heads_per_kv_head() const { return per_group_; }
  const kernels::CpuKernels& kernels() const { return kernels_; }

  /// Memory for requests of up to `max_tokens` offloaded tokens, `max_candidates` of which a proxy
  /// proposes to each query head, so that steady state does not allocate.
  void reserve(HostScratch& scratch, std::int64_t max_tokens, std::int64_t max_candidates) const;

  /// First of every task: the query in float32, the new token in the store, a proxy's queries.
  void prepare(const HostTask& task) const;
  /// All of a (job, KV head).
  void run_whole(const HostTask& task) const;
  /// Of a range of a job that selects by logits: row r of the KV head's query heads at r * stride.
  void score(const HostTask& task, float* logits, std::int64_t stride) const;
  /// The rest, once all ranges are scored: `logits` of all offloaded tokens, of no use afterwards.
  void finish(const HostTask& task, float* logits, std::int64_t stride) const;
  /// Of a range, which is not empty and begins at a multiple of kPartTokens, of a job that attends
  /// to every token. `positions`: of all tokens that were chosen instead, where the range counts
  /// places.
  void attend(const HostTask& task, const std::int32_t* positions = nullptr) const;
  /// The rest, once all ranges of `num_tokens` tokens are attended to.
  void join_parts(const HostTask& task, std::int64_t num_tokens) const;

  /// Exact logits of chosen tokens.
  void score_chosen(const HostTask& task,
                    std::span<const std::int32_t> chosen,
                    float* logits,
                    std::int64_t stride) const;

 private:
  void scale_query(const HostTask& task) const;
  void append_new_token(const HostTask& task) const;
  void gather(const HostTask& task) const;
  void copy_all(const HostTask& task) const;
  // `args` hold the count, the part, and the logits unless they are to be computed from rows.
  void attend_part(const HostTask& task, const AttendedRows& rows, kernels::AttendArgs args) const;
  // The same of values in codes; the logits are given, and become weights.
  void sum_value_codes(const HostTask& task,
                       const AttendedRows& rows,
                       const kernels::AttendArgs& args) const;
  kernels::AttentionPart part_of(const HostTask& task, std::int64_t part) const;
  StoredHead stored_head(const HostTask& task) const;
  StoredHead::Queries queries(const HostTask& task) const;
  std::int64_t row_bytes(const HostTask& task) const;  ///< as staging and the model have them

  const kernels::CpuKernels& kernels_;
  std::int64_t per_group_;  ///< R
  std::int64_t head_dim_;
};

/// Name of a whole task in a trace.
const char* label_of(const HostJob& job);

}  // namespace hybridgen
