// SPDX-License-Identifier: Apache-2.0
// Which values are read where keys came alone (FetchKeys), for all rows of a micro-batch: the
// device ranks the weights that it made in one operation, and its choice crosses in one copy.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "device/device_ops.h"
#include "pipeline/request_state.h"

namespace hybridgen {

/// Memory for the places of a KV head's query heads on their way to one list.
struct UnionScratch {
  std::vector<std::int32_t> lists;   ///< [R, fetched]
  std::vector<std::int32_t> merged;  ///< [R * fetched]
  std::vector<std::uint64_t> merging;
};

class ValuePlans {
 public:
  /// Nothing where no KeptValues part says how many.
  ValuePlans(const DecoderModel& model, std::span<RequestState* const> requests);

  /// Of one row, with RequestPlan::max_kept tokens per query head.
  static std::int64_t device_bytes(const ModelConfig& config,
                                   bool device_is_host,
                                   const RequestPlan& plan);
  static std::int64_t host_bytes(const ModelConfig& config, const RequestPlan& plan);

  /// One per row, where the device is not the host.
  std::int64_t num_flat_rows() const { return scratch_.defined() ? num_rows_ : 0; }
  /// What the rows rank in this step, left in `flat` too, [num_flat_rows()]. `items`: of the rows.
  void begin_step(std::span<RequestState* const> requests,
                  std::span<const AttentionItem> items,
                  std::span<kernels::PlanRow> flat);

  /// Of the rows that have not failed. `flat`: what begin_step() left, on a device that is not the
  /// host.
  PlanBatch of(std::span<RequestState* const> requests,
               std::int64_t layer,
               const kernels::PlanRow* flat);
  /// Starts the copy of all places to the host, on the current stream; they must not be read before
  /// it has ended.
  void send();
  /// Of a row, on the host: [H, most].
  std::span<const std::int32_t> places(const PlanItem& item) const;
  /// The same, to be filled where nobody has chosen: of a timed device.
  std::span<std::int32_t> places_to_invent(const PlanItem& item);
  /// Kept from row to row.
  UnionScratch& scratch() { return union_scratch_; }

 private:
  std::int64_t num_rows_ = 0;
  std::int64_t num_heads_ = 0;
  std::vector<PlanItem> items_;
  PlanBatch largest_;            ///< that of all rows of the step, without its items
  std::int64_t num_places_ = 0;  ///< of the step at hand
  at::Tensor places_;            ///< int32, [H, most] of the items one behind the other
  at::Tensor host_places_;       ///< the same tensor on a CPU device
  UnionScratch union_scratch_;
  at::Tensor scratch_;  ///< bytes of the items' work, where the device is not the host
};

}  // namespace hybridgen
