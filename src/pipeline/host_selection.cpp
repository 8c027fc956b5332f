// SPDX-License-Identifier: Apache-2.0
#include "pipeline/host_selection.h"

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "hybridgen/core/error.h"

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

// Log-sum-exp of all scores of a query head but those of the chosen tokens, which are overwritten.
float sum_unchosen(const HostTaskRunner& runner,
                   std::span<const std::int32_t> chosen,
                   float* scores,
                   std::int64_t count) {
  for (const std::int32_t position : chosen) {
    scores[position] = -std::numeric_limits<float>::infinity();
  }
  return runner.kernels().log_sum_exp(scores, count);
}

void choose_by_logits(const HostTaskRunner& runner,
                      const HostTask& task,
                      const SelectedHere& selected,
                      float* logits,
                      std::int64_t stride) {
  const HostJob& job = task.job;
  const std::int64_t per_group = runner.query_heads_per_kv_head();
  const std::int64_t first_head = task.kv_head * per_group;
  const std::int64_t chosen = job.num_chosen;
  for (std::int64_t r = 0; r < per_group; ++r) {
    const std::int64_t row = (first_head + r) * chosen;
    const std::span<std::int32_t> positions{job.buffers.positions + row,
                                            static_cast<std::size_t>(chosen)};
    selected.selector->select(task.layer,
                              first_head + r,
                              {logits + r * stride, static_cast<std::size_t>(job.num_offloaded)},
                              positions,
                              {job.buffers.logits + row, static_cast<std::size_t>(chosen)},
                              task.scratch.selection);
    check_positions(*selected.selector, positions, job.num_offloaded, chosen);
    if (job.buffers.unchosen != nullptr) {
      job.buffers.unchosen[first_head + r] =
          sum_unchosen(runner, positions, logits + r * stride, job.num_offloaded);
    }
  }
}

// What the proxy proposes to each query head, into rescoring.candidates; returns their union.
std::span<const std::int32_t> propose(const HostTask& task,
                                      const SelectedHere& selected,
                                      std::int64_t per_group,
                                      const float* scores,
                                      std::int64_t stride) {
  const auto num_offloaded = static_cast<std::size_t>(task.job.num_offloaded);
  const auto count = static_cast<std::size_t>(selected.num_candidates);
  const auto all = static_cast<std::size_t>(per_group) * count;
  HostScratch::Rescoring& rescoring = task.scratch.rescoring;
  rescoring.candidates.resize(all);
  rescoring.merged.resize(all);
  rescoring.index.resize(all);
  rescoring.logits.resize(
      std::max(count, static_cast<std::size_t>(per_group) * std::min(all, num_offloaded)));
  for (std::int64_t r = 0; r < per_group; ++r) {
    const auto positions =
        std::span(rescoring.candidates).subspan(static_cast<std::size_t>(r) * count, count);
    selected.selector->select(task.layer,
                              task.kv_head * per_group + r,
                              {scores + r * stride, num_offloaded},
                              positions,
                              std::span(rescoring.logits).first(count),  // of no further use
                              task.scratch.selection);
    check_positions(*selected.selector, positions, task.job.num_offloaded, selected.num_candidates);
  }
  const std::int64_t num_merged = kernels::merge_positions(rescoring.candidates.data(),
                                                           per_group,
                                                           selected.num_candidates,
                                                           rescoring.merged.data(),
                                                           rescoring.index.data(),
                                                           task.scratch.merging);
  return {rescoring.merged.data(), static_cast<std::size_t>(num_merged)};
}

// A proxy's scores are logits less a constant of the query head, which the chosen tokens tell: both
// are known of them.
float estimate_unchosen(const HostTaskRunner& runner,
                        const HostTask& task,
                        std::span<const std::int32_t> chosen,
                        const float* logits,
                        float* scores) {
  const auto num_chosen = static_cast<std::int64_t>(chosen.size());
  std::vector<float>& of_chosen = task.scratch.rescoring.scores;
  of_chosen.clear();
  for (const std::int32_t position : chosen) {
    of_chosen.push_back(scores[position]);
  }
  const kernels::CpuKernels& kernels = runner.kernels();
  const float constant =
      kernels.log_sum_exp(logits, num_chosen) - kernels.log_sum_exp(of_chosen.data(), num_chosen);
  return sum_unchosen(runner, chosen, scores, task.job.num_offloaded) + constant;
}

// The proxy proposes; exact logits of what it proposed to any query head of the group decide.
void choose_by_proxy(const HostTaskRunner& runner,
                     const HostTask& task,
                     const SelectedHere& selected,
                     float* scores,
                     std::int64_t stride) {
  const HostJob& job = task.job;
  const std::int64_t per_group = runner.query_heads_per_kv_head();
  const std::span<const std::int32_t> merged = propose(task, selected, per_group, scores, stride);
  const auto num_merged = static_cast<std::int64_t>(merged.size());
  float* const logits = task.scratch.rescoring.logits.data();
  runner.score_chosen(task, merged, logits, num_merged);
  for (std::int64_t r = 0; r < per_group; ++r) {
    const std::int64_t head = task.kv_head * per_group + r;
    std::int32_t* const positions = job.buffers.positions + head * job.num_chosen;
    if (!kernels::top_k(logits + r * num_merged,
                        num_merged,
                        job.num_chosen,
                        positions,
                        job.buffers.logits + head * job.num_chosen,
                        task.scratch.selection)) {
      throw NumericError(message("[scoring] a logit of layer ",
                                 task.layer,
                                 ", query head ",
                                 head,
                                 " is NaN; check the checkpoint, or run it in float32 if "
                                 "activations overflow"));
    }
    // Places in an ascending list: the positions ascend, too, and ties go to the lowest.
    for (std::int64_t j = 0; j < job.num_chosen; ++j) {
      positions[j] = merged[static_cast<std::size_t>(positions[j])];
    }
    if (job.buffers.unchosen != nullptr) {
      job.buffers.unchosen[head] =
          estimate_unchosen(runner,
                            task,
                            {positions, static_cast<std::size_t>(job.num_chosen)},
                            job.buffers.logits + head * job.num_chosen,
                            scores + r * stride);
    }
  }
}

// As many tokens as the selector says; the group's query heads share what any of them took.
void choose_together(const HostTaskRunner& runner,
                     const HostTask& task,
                     const SelectedHere& selected,
                     float* scores,
                     std::int64_t stride) {
  const HostJob& job = task.job;
  const TokenSelector& selector = *selected.selector;
  const std::int64_t per_group = runner.query_heads_per_kv_head();
  const std::int64_t first_head = task.kv_head * per_group;
  float* const logits = job.buffers.logits + first_head * job.num_chosen;
  std::vector<std::int32_t>& lists = task.scratch.planned;
  lists.clear();
  std::vector<float>& weights = task.scratch.weights;
  weights.resize(static_cast<std::size_t>(job.num_offloaded));
  for (std::int64_t r = 0; r < per_group; ++r) {
    const std::span<const float> row{scores + r * stride,
                                     static_cast<std::size_t>(job.num_offloaded)};
    runner.kernels().softmax_weights(row.data(),
                                     job.num_offloaded,
                                     runner.kernels().log_sum_exp(row.data(), job.num_offloaded),
                                     weights.data());
    const std::int64_t count = std::clamp<std::int64_t>(
        selector.how_many(weights, selected.most, task.scratch.selection), 1, selected.most);
    const std::size_t before = lists.size();
    lists.resize(before + static_cast<std::size_t>(count));
    const std::span<std::int32_t> positions = std::span(lists).subspan(before);
    // The logits of what all of them took follow.
    selector.select(task.layer,
                    first_head + r,
                    row,
                    positions,
                    {logits, positions.size()},
                    task.scratch.selection);
    check_positions(selector, positions, job.num_offloaded, count);
  }
  std::int32_t* const merged = job.buffers.merged + task.kv_head * job.buffers.union_capacity;
  const std::int64_t num_merged =
      kernels::union_of(lists, job.num_offloaded, merged, task.scratch.merging);
  job.buffers.union_sizes[task.kv_head] = num_merged;
  const std::span<const std::int32_t> chosen{merged, static_cast<std::size_t>(num_merged)};
  for (std::int64_t r = 0; r < per_group; ++r) {
    float* const row = scores + r * stride;
    for (std::int64_t j = 0; !job.sends_keys() && j < num_merged; ++j) {
      logits[r * num_merged + j] = row[merged[j]];
    }
    if (job.buffers.unchosen != nullptr) {
      job.buffers.unchosen[first_head + r] =
          num_merged == job.num_offloaded ? -std::numeric_limits<float>::infinity()
                                          : sum_unchosen(runner, chosen, row, job.num_offloaded);
    }
  }
}

std::span<const std::int32_t> planned_on_device(const HostTask& task, const ChosenOnDevice& plan) {
  const std::int64_t count = task.job.num_chosen;
  if (count == 0) {
    throw NumericError(message("[partial keys] a guessed logit of layer ",
                               task.layer,
                               " is NaN; check the checkpoint, or run it in float32 if "
                               "activations overflow"));
  }
  return {plan.places + task.kv_head * plan.most, static_cast<std::size_t>(count)};
}

std::span<const std::int32_t> planned_here(const HostTask& task, const TokenSelector& selector) {
  const HostJob& job = task.job;
  const PlanContext context{
      task.layer, task.kv_head, job.num_offloaded, job.num_chosen, task.scratch.queries};
  const std::span<const std::int32_t> chosen = selector.plan(context, task.scratch.planned);
  check_positions(selector, chosen, job.num_offloaded, job.num_chosen);
  return chosen;
}

}  // namespace

std::span<const std::int32_t> plan_tokens(const HostTask& task) {
  const HostJob& job = task.job;
  const auto* on_device = std::get_if<ChosenOnDevice>(&job.chooser);
  const std::span<const std::int32_t> chosen =
      on_device != nullptr ? planned_on_device(task, *on_device)
                           : planned_here(task, *std::get<PlannedHere>(job.chooser).selector);
  job.buffers.union_sizes[task.kv_head] = static_cast<std::int64_t>(chosen.size());
  if (job.payload == Payload::kPartialAttention) {
    return chosen;  // nothing but the result leaves the host
  }
  std::int32_t* merged = job.buffers.merged + task.kv_head * job.buffers.union_capacity;
  std::ranges::copy(chosen, merged);
  return {merged, chosen.size()};
}

void select_tokens(const HostTaskRunner& runner,
                   const HostTask& task,
                   float* scores,
                   std::int64_t stride) {
  const SelectedHere& selected = *task.job.selection();
  const std::int64_t per_group = runner.query_heads_per_kv_head();
  if (selected.most > 0) {
    choose_together(runner, task, selected, scores, stride);
    return;
  }
  if (selected.proxy != nullptr) {
    choose_by_proxy(runner, task, selected, scores, stride);
  } else {
    choose_by_logits(runner, task, selected, scores, stride);
  }
  const HostJobBuffers& out = task.job.buffers;
  const std::int64_t first = task.kv_head * per_group * task.job.num_chosen;
  out.union_sizes[task.kv_head] =
      kernels::merge_positions(out.positions + first,
                               per_group,
                               task.job.num_chosen,
                               out.merged + task.kv_head * out.union_capacity,
                               out.index + first,
                               task.scratch.merging);
}

}  // namespace hybridgen
