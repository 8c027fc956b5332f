// SPDX-License-Identifier: Apache-2.0
// Offloaded rows on their way back to the device, a block of tokens at a time, for a prompt's
// chunks. The device copies them out of the store where full rows lie on pinned pages; else the
// host copies them to pinned staging first.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "kernels/cpu_kernels.h"
#include "models/decoder_model.h"
#include "pipeline/request_state.h"
#include "runtime/link_meter.h"

namespace hybridgen {

/// To be used with the compute stream current, by one thread.
class OffloadedBlocks {
 public:
  static constexpr std::int64_t kTokens = 1024;

  /// All references must outlive this.
  OffloadedBlocks(const DecoderModel& model, const kernels::CpuKernels& kernels, LinkMeter& link)
      : model_(model), kernels_(kernels), link_(link) {}

  /// Calls visit(keys, values), [G, count, D] on the device, for all offloaded tokens in their
  /// order. When it returns the device has read them. Throws what LibTorch does where the device or
  /// the host have no memory for them.
  void for_each_block(const RequestState& request,
                      std::int64_t layer,
                      const std::function<void(const at::Tensor&, const at::Tensor&)>& visit);

 private:
  at::Tensor send(const HostKvStore& store, KvSide side, std::int64_t layer, TokenRange tokens);
  at::Tensor send_in_place(const HostKvStore& store,
                           KvSide side,
                           std::int64_t layer,
                           TokenRange tokens) const;

  const DecoderModel& model_;
  const kernels::CpuKernels& kernels_;
  LinkMeter& link_;
  at::Tensor keys_, values_;  ///< staging, once it was needed
};

}  // namespace hybridgen
