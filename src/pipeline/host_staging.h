// SPDX-License-Identifier: Apache-2.0
// Staging of one host job: where the CPU stage writes (pinned memory beside a GPU) and where the
// device reads. On a CPU device both are the same memory and nothing is copied.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "device/device_context.h"
#include "device/device_ops.h"
#include "hybridgen/core/model_config.h"
#include "memory/host_buffer.h"
#include "pipeline/host_job.h"

namespace hybridgen {

/// What the jobs of a request may send at most.
struct StagingShape {
  std::int64_t max_chosen = 0;   ///< S: tokens per query head with own logits
  std::int64_t union_rows = 0;   ///< tokens per KV head
  std::int64_t num_scored = 0;   ///< tokens whose logits a selector gets; not sent
  bool has_own_choices = false;  ///< query heads of a group may choose different tokens
  bool has_keys = false;
  std::int64_t num_attended = 0;  ///< tokens whose attention the host finishes; only that is sent
  friend bool operator==(const StagingShape&, const StagingShape&) = default;
};

/// The smallest shape that serves both.
StagingShape merge(const StagingShape& a, const StagingShape& b);

class HostStaging {
 public:
  HostStaging() = default;
  HostStaging(const ModelConfig& config,
              DType dtype,
              const DeviceContext& device,
              const StagingShape& shape);

  /// What a slot takes of host memory.
  static std::int64_t required_bytes(const ModelConfig& config,
                                     DType dtype,
                                     const StagingShape& shape);
  /// What of it may be sent; a device that is not the host holds as much again.
  static std::int64_t payload_bytes(const ModelConfig& config,
                                    DType dtype,
                                    const StagingShape& shape);

  HostJobBuffers buffers();

  /// Fills payload(), of which a device that is not the host has yet to fetch the rest
  /// (DeviceOps::fetch). Returns the bytes that cross the link, counted the same on every device.
  /// `union_sizes` [G]: the job's, and where they go on the device; undefined: the job has those of
  /// buffers(), on a CPU device.
  std::int64_t ship(const HostJob& job,
                    const at::Tensor& union_sizes = {},
                    const at::Tensor& device_union_sizes = {});

  /// FetchKeys: value rows alone, of `count` tokens per query head at most, with `index` [H,
  /// count]. Fills payload() likewise. Returns the values' bytes.
  std::int64_t ship_values(std::int64_t count,
                           const at::Tensor& union_sizes,
                           const at::Tensor& device_union_sizes);

  const HostPayload& payload() const { return payload_; }

 private:
  std::int64_t num_heads_ = 0;
  std::int64_t num_kv_heads_ = 0;
  std::int64_t head_dim_ = 0;
  StagingShape shape_;
  bool device_is_host_ = true;
  HostPayload host_;    ///< every tensor, where the CPU stage writes
  HostPayload device_;  ///< the same, where the device reads
  std::vector<std::int32_t> positions_;
  at::Tensor merged_;       ///< int32 [G * union_rows], on the host
  at::Tensor union_sizes_;  ///< int64 [G], on the host
  HostBuffer scores_;
  HostBuffer parts_;
  HostPayload payload_;  ///< of the last ship(): what the job sent and nothing else
  HostPayload staged_;   ///< the same on the host
};

}  // namespace hybridgen
