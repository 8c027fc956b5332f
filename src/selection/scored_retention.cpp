// SPDX-License-Identifier: Apache-2.0
#include "selection/scored_retention.h"

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "hybridgen/core/error.h"
#include "kernels/cpu_kernels.h"

namespace hybridgen {

namespace {

/// NaN would make the choice depend on the order of comparisons.
[[noreturn]] void refuse_nan(std::string_view operation,
                             std::string_view what,
                             std::int64_t layer,
                             std::int64_t kv_head) {
  throw NumericError(message("[",
                             operation,
                             "] ",
                             what,
                             " of layer ",
                             layer,
                             ", KV head ",
                             kv_head,
                             " is NaN; allowed: numbers; check the checkpoint, or run it in "
                             "float32 if activations overflow"));
}

const kernels::CpuKernels& fastest() {
  static const kernels::CpuKernels& table = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  return table;
}

}  // namespace

ScoredRetention::ScoredRetention(std::string_view name,
                                 const RetentionShape& shape,
                                 std::int64_t heavy,
                                 std::int64_t recent)
    : RetentionBase(name, shape, heavy, recent),
      heavy_(heavy),
      recent_(recent),
      scores_(num_sets()) {}

std::span<const std::int32_t> ScoredRetention::keep_after_prefill(std::int64_t layer,
                                                                  std::int64_t kv_head,
                                                                  std::int64_t num_tokens,
                                                                  std::span<const float> sums) {
  const std::size_t set = index(layer, kv_head);
  check_prompt(num_tokens);
  if (static_cast<std::int64_t>(sums.size()) != num_tokens) {
    throw ConfigError(message("[",
                              name(),
                              "] number of sums is ",
                              sums.size(),
                              "; allowed: ",
                              num_tokens,
                              ", one per prompt token; this policy chooses by them"));
  }
  if (std::ranges::any_of(sums, [](float sum) { return std::isnan(sum); })) {
    refuse_nan(name(), "a sum of scores", layer, kv_head);
  }

  Slots& kept = start(set, num_tokens);
  std::vector<double>& accumulated = scores_[set];
  accumulated.clear();
  accumulated.reserve(static_cast<std::size_t>(room(num_tokens)));

  // Tokens before the recent ones compete for the heavy places; nothing is dropped while all fit.
  const std::int64_t competing = std::max<std::int64_t>(num_tokens - recent_, 0);
  const std::int64_t heavy = std::min(heavy_, competing);
  kept.positions.resize(static_cast<std::size_t>(heavy));
  std::vector<float> values(static_cast<std::size_t>(heavy));
  std::vector<float> scratch;
  kernels::top_k(sums.data(), competing, heavy, kept.positions.data(), values.data(), scratch);
  for (std::int64_t position = competing; position < num_tokens; ++position) {
    kept.positions.push_back(static_cast<std::int32_t>(position));
  }
  for (const std::int32_t position : kept.positions) {
    accumulated.push_back(sums[static_cast<std::size_t>(position)]);
  }
  return kept.positions;
}

std::int64_t ScoredRetention::replace(std::int64_t layer,
                                      std::int64_t kv_head,
                                      std::int64_t position,
                                      const float* weights,
                                      std::int64_t stride) {
  const std::size_t set = index(layer, kv_head);
  Slots& kept = slots(set);
  std::vector<double>& accumulated = scores_[set];
  check_position(kept, position);
  const std::int64_t used = kept.size();
  if (weights == nullptr) {
    throw ConfigError(message("[",
                              name(),
                              "] weights is null; allowed: the step's softmax weights, one row per "
                              "query head; this policy chooses by them"));
  }
  if (stride < used + 1) {
    throw ConfigError(message("[",
                              name(),
                              "] stride of the weights is ",
                              stride,
                              "; allowed: >= ",
                              used + 1,
                              ", one weight per slot and one of the new token; pass the distance "
                              "between rows"));
  }

  thread_local std::vector<float> scales;
  scales.assign(static_cast<std::size_t>(shape().query_heads_per_kv_head), 1.0F);
  const StepScores added = score({.layer = layer,
                                  .kv_head = kv_head,
                                  .forward = position - kept.prompt + 1,
                                  .position = position,
                                  .positions = kept.positions,
                                  .weights = weights,
                                  .stride = stride,
                                  .scales = scales});
  double newest = 0.0;
  for (std::size_t head = 0; head < scales.size(); ++head) {
    newest +=
        static_cast<double>(added.rows[static_cast<std::int64_t>(head) * added.stride + used]) *
        static_cast<double>(scales[head]);
  }
  if (std::isnan(newest)) refuse_nan(name(), "a score", layer, kv_head);
  // The new token is the newest of the recent ones and not yet in a slot.
  const kernels::LeastScore least =
      fastest().add_scores({.rows = added.rows,
                            .row_stride = added.stride,
                            .num_rows = shape().query_heads_per_kv_head,
                            .scales = scales.data(),
                            .positions = kept.positions.data(),
                            .count = used,
                            .before = kept.next + 1 - recent_,
                            .accumulated = accumulated.data()});
  if (least.has_nan) refuse_nan(name(), "a score", layer, kv_head);
  std::int64_t slot = used;
  if (used < budget()) {
    accumulated.push_back(newest);
  } else {
    slot = least.slot;
    accumulated[static_cast<std::size_t>(slot)] = newest;
  }
  kept.put(slot);
  return slot;
}

std::span<const double> ScoredRetention::scores(std::int64_t layer, std::int64_t kv_head) const {
  return scores_[index(layer, kv_head)];
}

}  // namespace hybridgen
