// SPDX-License-Identifier: Apache-2.0
// FlexGen's sparse attention (Sheng et al., ICML 2023; FMInference/FlexLLMGen, `attn-sparsity`):
// the softmax runs over all tokens, but only values of the tokens with the largest weights are
// fetched, and the weights are not renormalised. The fetch waits for the weights, so nothing hides
// it.
#pragma once

#include <cstdint>

#include "device/device_context.h"
#include "hybridgen/methods/method.h"
#include "pipeline/micro_batch.h"

namespace hybridgen {

struct LinkBytes {
  std::int64_t to_device = 0;
  std::int64_t to_host = 0;
};

/// In place of DeviceOps::merge for PayloadKind::kKeysThenValues: into batch.ws.attended_heads. Per
/// query head the new token and int(value_share (n - 1)) others contribute; resident ones are taken
/// before offloaded ones of the same weight.
LinkBytes attend_with_some_values(const DeviceContext& device,
                                  const Method& method,
                                  std::int64_t layer,
                                  MicroBatch& batch);

}  // namespace hybridgen
