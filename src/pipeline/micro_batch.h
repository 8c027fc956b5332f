// SPDX-License-Identifier: Apache-2.0
// Requests whose decode rows pass through a layer together, with all tensors of a step. Built when
// the set of running requests changes and reused until then, so that steady state allocates
// nothing.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/Event.h>

#include <array>
#include <optional>
#include <span>
#include <vector>

#include "models/decoder_model.h"
#include "pipeline/cpu_stage.h"
#include "pipeline/device_plans.h"
#include "pipeline/lost_mass.h"
#include "pipeline/request_state.h"
#include "pipeline/value_plans.h"

namespace hybridgen {

struct MicroBatch {
  MicroBatch(const DecoderModel& model, const Method& method, std::vector<RequestState*> requests);

  std::int64_t rows() const { return static_cast<std::int64_t>(requests.size()); }

  std::vector<RequestState*> requests;  ///< row r belongs to requests[r]; not owned
  at::Tensor tokens;                    ///< [B] int64 on the host: this step's inputs
  at::Tensor positions;                 ///< [B] int64 on the host, where they stand
  at::Tensor device_tokens;             ///< `tokens` on the device, after send_inputs()
  BlockWorkspace ws;                    ///< its positions are `positions` after send_inputs()
  at::Tensor logits;                    ///< float32 [B, V] on the device
  at::Tensor host_logits;  ///< float32 [B, V] on the host; the same tensor on a CPU device

  /// What the rows plan in this step, then the copy of that, of tokens, positions and where the
  /// requests' tokens lie to the device, on the current stream: one copy; none on a CPU device.
  /// They must not change before the device has come here.
  void send_inputs();

  /// All rows in a layer; with payloads once fetch() was queued for it.
  AttentionBatch attention(std::int64_t layer);
  /// What the jobs of a layer left for the rows, flat too where the device is not the host.
  PayloadBatch payloads(std::int64_t layer);

  /// Plans on the device for all rows whose jobs want it; see DevicePlans.
  void start_plans(const DeviceOps& ops, std::int64_t layer, const at::Tensor& query);

  /// What the rows that have not failed rank by weights in a layer; see ValuePlans.
  PlanBatch kept(std::int64_t layer);
  /// The host waits for what is queued so far on the compute stream, for all rows at a time.
  /// Nothing on a CPU device.
  void wait_for_places(const DeviceContext& device);

  /// Where the newest token of a row's request goes, [L, G] slots on the host, -1: it stays. Empty
  /// where rows do not move, or at once (a CPU device). Written between a step's wait for the
  /// device and move_rows(): that wait is behind the copy that the step before started there.
  std::span<std::int32_t> moves_of(std::size_t row);
  void clear_moves();
  /// Carries them out for all rows, on the current stream.
  void move_rows(const DeviceOps& ops);

  /// One layer's host jobs; layers alternate between two of them.
  struct HostSlot {
    HostJobBatch batch;
    std::vector<std::int64_t> rows;      ///< row of each job
    at::Tensor queries;                  ///< [B, H D] on the host
    at::Tensor new_keys;                 ///< [B, G D] on the host; where the host holds every token
    at::Tensor new_values;               ///< the same
    at::Tensor union_sizes;              ///< [B, G] int64 on the host: of each row's payload
    at::Tensor device_union_sizes;       ///< the same on the device, with the payload
    std::vector<at::Tensor> union_rows;  ///< [G] views of both, one per row
    std::vector<at::Tensor> device_union_rows;
    at::Tensor payload_copies;   ///< PayloadCopy [B], pinned; where the device is not the host
    at::Tensor device_payloads;  ///< PayloadRow [B] on the device
    bool has_payloads = false;   ///< of the layer at hand
    std::optional<c10::Event> device_ready;
    std::optional<c10::Event> payload_ready;
  };
  std::array<HostSlot, 2> slots;
  std::vector<AttentionItem> items;  ///< one per row
  LostMass lost;
  DevicePlans plans;
  ValuePlans values;

  HostSlot& slot(std::int64_t layer) { return slots[static_cast<std::size_t>(layer % 2)]; }

 private:
  at::Tensor inputs_;         ///< bytes: tokens, positions and StepRow of every row, PlanRow
  at::Tensor device_inputs_;  ///< the same tensor on a CPU device
  at::Tensor moves_;          ///< int32 [B, L, G], pinned; undefined where nothing moves
  at::Tensor device_moves_;   ///< the same on the device
  std::vector<ResidentCache*> caches_;
  std::optional<c10::Event> places_;
};

}  // namespace hybridgen
