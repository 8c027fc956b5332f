// SPDX-License-Identifier: Apache-2.0
// Staging of one host job: where the CPU stage writes (pinned memory beside a GPU) and where the
// device reads. On a CPU device both are the same memory and nothing is copied.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "hybridgen/core/model_config.h"
#include "hybridgen/models/device_context.h"
#include "hybridgen/models/device_ops.h"
#include "hybridgen/pipeline/cpu_stage.h"

namespace hybridgen {

class HostStaging {
 public:
  HostStaging() = default;
  /// Room for `max_chosen` tokens per query head and unions of `max_union` rows per KV head.
  HostStaging(const ModelConfig& config,
              DType dtype,
              const DeviceContext& device,
              std::int64_t max_chosen,
              std::int64_t max_union,
              bool with_keys);

  static std::int64_t required_bytes(const ModelConfig& config,
                                     DType dtype,
                                     std::int64_t max_chosen,
                                     std::int64_t max_union,
                                     bool with_keys);

  /// Host pointers for a job that ships keys or not.
  HostJobBuffers buffers(bool ship_keys);

  /// Starts the copies to the device on the current stream (none on a CPU device) and fills
  /// payload(). Returns the bytes that cross the link, counted the same on every device.
  std::int64_t ship(const DeviceContext& device, std::int64_t num_chosen, bool ship_keys);

  const HostPayload& payload() const { return payload_; }

 private:
  std::int64_t num_heads_ = 0;
  std::int64_t num_kv_heads_ = 0;
  std::int64_t head_dim_ = 0;
  std::int64_t union_capacity_ = 0;
  at::Tensor logits_, index_, values_, keys_;  ///< host side
  at::Tensor device_keys_;                     ///< kept here while a payload has no keys
  std::vector<std::int32_t> positions_;
  std::vector<std::int32_t> merged_;
  std::vector<std::int64_t> union_sizes_;
  HostPayload payload_;
};

}  // namespace hybridgen
