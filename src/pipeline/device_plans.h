// SPDX-License-Identifier: Apache-2.0
// Which offloaded tokens the device chooses, for all rows of a micro-batch: one operation and one
// copy to the host per layer. The host reads them once it has waited for both, where it waits for
// the layer's queries anyhow.
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <span>
#include <vector>

#include "device/device_ops.h"
#include "hybridgen/methods/method.h"
#include "pipeline/host_job.h"
#include "pipeline/request_state.h"

namespace hybridgen {

class DevicePlans {
 public:
  /// Nothing where the method has no planner. `requests`: of the rows.
  DevicePlans(const DecoderModel& model,
              const Method& method,
              std::span<RequestState* const> requests);

  /// Of one row, with a plan of RequestPlan::max_planned tokens per KV head.
  static std::int64_t device_bytes(const ModelConfig& config,
                                   bool device_is_host,
                                   const RequestPlan& plan);
  static std::int64_t host_bytes(const ModelConfig& config, const RequestPlan& plan);

  /// One per row for layers of the method's work, then as many for its early ones; where the device
  /// is not the host.
  std::int64_t num_flat_rows() const { return counts_.defined() ? 2 * counts_.numel() : 0; }
  /// What the rows choose from in this step, left in `flat` too, [num_flat_rows()].
  void begin_step(std::span<RequestState* const> requests, std::span<kernels::PlanRow> flat);

  /// Plans for all rows, and starts the copy of that to the host, on the current stream. `flat`:
  /// what begin_step() left, on a device that is not the host. query [B, H, D].
  void start(const DeviceOps& ops,
             std::int64_t layer,
             const at::Tensor& query,
             const kernels::PlanRow* flat);
  /// With where the host finds the plan of a row that has a job in the layer.
  ChosenOnDevice of(std::int64_t layer, std::size_t row, ChosenOnDevice chosen) const;

 private:
  /// What is planned in layers of one kind of work. Both use the same memory, layer by layer.
  struct Step {
    std::vector<PlanItem> items;
    std::vector<std::int64_t> item_of_row;  ///< [B]; -1: none
    std::int64_t num_guesses = 0;
    std::int64_t num_places = 0;
    std::int64_t work_bytes = 0;
  };
  void begin_step(Step& step,
                  const HostWork& work,
                  std::span<RequestState* const> requests,
                  std::span<kernels::PlanRow> flat);
  kernels::PlanRow add(Step& step, PlanItem item);
  const Step& step_of(std::int64_t layer) const { return steps_[layer < first_layer_ ? 1 : 0]; }

  HostWork work_;
  HostWork early_work_;
  std::int64_t first_layer_ = 0;
  std::int64_t num_heads_ = 0;
  std::int64_t num_kv_heads_ = 0;
  std::int64_t head_dim_ = 0;
  bool is_timed_ = false;
  std::array<Step, 2> steps_;              ///< of `work_`, of `early_work_`
  at::Tensor guesses_;                     ///< float32, [G, N] of the items one behind the other
  at::Tensor places_;                      ///< int32, [G, most] of the items likewise
  at::Tensor counts_;                      ///< int64 [B], where the device is not the host
  at::Tensor scratch_;                     ///< bytes of the items' work, there too
  std::array<at::Tensor, 2> host_places_;  ///< layer i uses i % 2
};

/// The jobs' numbers of tokens, by plans that have arrived.
void read_plans(std::span<HostJob> jobs);

}  // namespace hybridgen
