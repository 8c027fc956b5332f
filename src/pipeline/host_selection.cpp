// SPDX-License-Identifier: Apache-2.0
// The part of the CPU stage that asks selectors, and does not trust them; with a shadow of the keys
// it asks for candidates and decides by exact logits.
#include <algorithm>

#include "hybridgen/core/error.h"
#include "kernels/cpu_kernels.h"
#include "pipeline/cpu_stage.h"

namespace hybridgen {
namespace {

// What any selector returns is checked: one from a user's own code may be wrong.
void check_positions(const TokenSelector& selector,
                     std::span<const std::int32_t> positions,
                     std::int64_t num_offloaded,
                     std::int64_t most) {
  const auto refuse = [&](const std::string& what) {
    throw ConfigError(message("[selector ",
                              selector.name(),
                              "] ",
                              what,
                              "; allowed: at most ",
                              most,
                              " positions, ascending, each once, from 0 to ",
                              num_offloaded - 1));
  };
  if (static_cast<std::int64_t>(positions.size()) > most) {
    refuse(message(positions.size(), " positions were chosen"));
  }
  std::int64_t before = -1;
  for (const std::int32_t position : positions) {
    if (position < 0 || position >= num_offloaded) {
      refuse(message("position ", position, " was chosen"));
    }
    if (position <= before) {
      refuse(message("position ", position, " was chosen after ", before));
    }
    before = position;
  }
}

}  // namespace

// The tokens of a Pre-QKT choice, left in `merged` as well.
std::span<const std::int32_t> CpuStage::plan(const Task& task) const {
  const HostJob& job = task.job;
  std::int32_t* merged = job.buffers.merged + task.kv_head * job.buffers.union_capacity;
  std::int64_t& count = job.buffers.union_sizes[task.kv_head];
  if (job.rule.choice == HostChoice::kPartialKeys || job.selector == nullptr) {
    return {merged, static_cast<std::size_t>(count)};  // planned on the device
  }
  const PlanContext context{
      task.layer, task.kv_head, job.num_offloaded, job.num_chosen, task.scratch.queries};
  const std::span<const std::int32_t> chosen = job.selector->plan(context, task.scratch.planned);
  check_positions(*job.selector, chosen, job.num_offloaded, job.num_chosen);
  count = static_cast<std::int64_t>(chosen.size());
  if (job.rule.payload == PayloadKind::kPartialAttention) {
    return chosen;  // nothing but the result leaves the host
  }
  std::ranges::copy(chosen, merged);
  return {merged, chosen.size()};
}

// `logits`: of all offloaded tokens, row r of the KV head's query heads at r * stride; a shadow's
// scores if the job has one.
void CpuStage::choose(const Task& task, const float* logits, std::int64_t stride) const {
  if (task.job.shadow != nullptr) {
    choose_by_shadow(task, logits, stride);
  } else {
    choose_by_logits(task, logits, stride);
  }
  const HostJobBuffers& out = task.job.buffers;
  const std::int64_t per_group = num_heads_ / num_kv_heads_;
  const std::int64_t first = task.kv_head * per_group * task.job.num_chosen;
  out.union_sizes[task.kv_head] =
      kernels::merge_positions(out.positions + first,
                               per_group,
                               task.job.num_chosen,
                               out.merged + task.kv_head * out.union_capacity,
                               out.index + first,
                               task.scratch.merging);
}

void CpuStage::choose_by_logits(const Task& task, const float* logits, std::int64_t stride) const {
  const HostJob& job = task.job;
  const std::int64_t per_group = num_heads_ / num_kv_heads_;
  const std::int64_t first_head = task.kv_head * per_group;
  const HostJobBuffers& out = job.buffers;
  const std::int64_t chosen = job.num_chosen;
  for (std::int64_t r = 0; r < per_group; ++r) {
    const std::int64_t row = (first_head + r) * chosen;
    const std::span<std::int32_t> positions{out.positions + row, static_cast<std::size_t>(chosen)};
    job.selector->select(task.layer,
                         first_head + r,
                         {logits + r * stride, static_cast<std::size_t>(job.num_offloaded)},
                         positions,
                         {out.logits + row, static_cast<std::size_t>(chosen)},
                         task.scratch.selection);
    check_positions(*job.selector, positions, job.num_offloaded, chosen);
  }
}

void CpuStage::prepare_for_shadow(const Task& task) const {
  kernels::prepare_shadow_queries(task.job.shadow->keys(task.layer, task.kv_head),
                                  task.scratch.queries.data(),
                                  num_heads_ / num_kv_heads_,
                                  task.scratch.rescoring.queries.data(),
                                  task.scratch.rescoring.scales.data());
}

void CpuStage::score_by_shadow(const Task& task, float* scores, std::int64_t stride) const {
  kernels::ShadowLogitsArgs args;
  args.keys = task.job.shadow->keys(task.layer, task.kv_head);
  args.queries = task.scratch.rescoring.queries.data();
  args.scales = task.scratch.rescoring.scales.data();
  args.num_queries = num_heads_ / num_kv_heads_;
  args.tokens = task.tokens;
  args.scores = scores;
  args.scores_stride = stride;
  kernels_.shadow_logits(args);
  task.result.key_bytes += task.tokens.size() * args.keys.block_bytes / kKeyBlockTokens;
}

// The shadow proposes; exact logits of what it proposed to any query head of the group decide.
void CpuStage::choose_by_shadow(const Task& task, const float* scores, std::int64_t stride) const {
  const HostJob& job = task.job;
  const std::int64_t per_group = num_heads_ / num_kv_heads_;
  const std::int64_t first_head = task.kv_head * per_group;
  const auto count = static_cast<std::size_t>(job.num_candidates);
  const auto all = static_cast<std::size_t>(per_group) * count;
  Rescoring& rescoring = task.scratch.rescoring;
  rescoring.candidates.resize(all);
  rescoring.merged.resize(all);
  rescoring.index.resize(all);
  rescoring.logits.resize(std::max(count,
                                   static_cast<std::size_t>(per_group) *
                                       std::min(all, static_cast<std::size_t>(job.num_offloaded))));
  for (std::int64_t r = 0; r < per_group; ++r) {
    const auto positions =
        std::span(rescoring.candidates).subspan(static_cast<std::size_t>(r) * count, count);
    job.selector->select(task.layer,
                         first_head + r,
                         {scores + r * stride, static_cast<std::size_t>(job.num_offloaded)},
                         positions,
                         std::span(rescoring.logits).first(count),  // of no further use
                         task.scratch.selection);
    check_positions(*job.selector, positions, job.num_offloaded, job.num_candidates);
  }
  const std::int64_t num_merged = kernels::merge_positions(rescoring.candidates.data(),
                                                           per_group,
                                                           job.num_candidates,
                                                           rescoring.merged.data(),
                                                           rescoring.index.data(),
                                                           task.scratch.merging);
  const std::span<const std::int32_t> merged{rescoring.merged.data(),
                                             static_cast<std::size_t>(num_merged)};
  logits_of_chosen(task, merged, rescoring.logits.data(), num_merged);
  for (std::int64_t r = 0; r < per_group; ++r) {
    const std::int64_t row = (first_head + r) * job.num_chosen;
    std::int32_t* const positions = job.buffers.positions + row;
    if (!kernels::top_k(rescoring.logits.data() + r * num_merged,
                        num_merged,
                        job.num_chosen,
                        positions,
                        job.buffers.logits + row,
                        task.scratch.selection)) {
      throw NumericError(message("[scoring] a logit of layer ",
                                 task.layer,
                                 ", query head ",
                                 first_head + r,
                                 " is NaN; check the checkpoint, or run it in float32 if "
                                 "activations overflow"));
    }
    // Places in an ascending list: the positions ascend, too, and ties go to the lowest.
    for (std::int64_t j = 0; j < job.num_chosen; ++j) {
      positions[j] = merged[static_cast<std::size_t>(positions[j])];
    }
  }
}

}  // namespace hybridgen
