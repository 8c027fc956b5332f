// SPDX-License-Identifier: Apache-2.0
// The part of the CPU stage that asks selectors, and does not trust them.
#include <algorithm>

#include "hybridgen/core/error.h"
#include "hybridgen/pipeline/cpu_stage.h"
#include "kernels/cpu_kernels.h"

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

// `logits`: of all offloaded tokens, row r of the KV head's query heads at r * stride.
void CpuStage::choose(const Task& task, const float* logits, std::int64_t stride) const {
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
  out.union_sizes[task.kv_head] =
      kernels::merge_positions(out.positions + first_head * chosen,
                               per_group,
                               chosen,
                               out.merged + task.kv_head * out.union_capacity,
                               out.index + first_head * chosen,
                               task.scratch.merging);
}

}  // namespace hybridgen
