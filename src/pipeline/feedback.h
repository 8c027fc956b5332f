// SPDX-License-Identifier: Apache-2.0
// What comes back from the softmax: weights for selectors and retention policies, and the moves of
// rows that a retention policy decides.
#pragma once

#include <cstdint>

#include "device/device_ops.h"
#include "models/decoder_model.h"
#include "pipeline/cpu_stage.h"
#include "pipeline/request_state.h"
#include "runtime/worker_pool.h"

namespace hybridgen {

/// Bytes that left the device.
struct FeedbackBytes {
  std::int64_t weights = 0;
  std::int64_t rows = 0;
};

/// After merge() of one request's layer: the weights of the attended tokens go to every selector
/// that wants them. `job`: the host job whose payload was merged; null if there was none.
FeedbackBytes give_weights_to_selectors(const ModelConfig& config,
                                        std::int64_t layer,
                                        RequestState& request,
                                        const AttentionItem& item,
                                        const HostJob* job);

/// After merge() of one request's layer: the new token's rows take the place that the retention
/// policy gives them, in the resident cache or in the host store. Workers of `pool` (may be null)
/// help the caller where the policy scores many tokens.
FeedbackBytes retain_new_token(const ModelConfig& config,
                               WorkerPool* pool,
                               std::int64_t layer,
                               RequestState& request,
                               const AttentionItem& item);

/// After the last layer: tells the token mapper and the resident cache what the policy dropped.
void end_retention_step(RequestState& request);

/// PositionMode::kCacheIndex: fills request.shifted_keys with the layer's un-rotated keys, each
/// rotated to its token's place among the retained ones.
void shift_to_cache_places(const DecoderModel& model,
                           const DeviceOps& ops,
                           std::int64_t layer,
                           RequestState& request);

}  // namespace hybridgen
