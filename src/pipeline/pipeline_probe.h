// SPDX-License-Identifier: Apache-2.0
// What tests may do inside a step: wait and sleep where order must not matter. There is none in
// production. Every call may come from the driver; at_seam() from host workers, too.
#pragma once

#include <cstdint>

namespace hybridgen {

class CpuStage;
struct HostJobBatch;

class PipelineProbe {
 public:
  virtual ~PipelineProbe() = default;
  /// Between two operations of the device, and before each task of the host.
  virtual void at_seam() {}
  /// A task of the host that began at `begin_ns` has read so much of CXL memory; from host workers.
  virtual void after_cxl_read(std::int64_t /*bytes*/, std::int64_t /*begin_ns*/) {}
  /// `batch` was handed to the workers just now.
  virtual void after_submit(CpuStage& /*stage*/, HostJobBatch& /*batch*/) {}
  /// A guess is made from the input of this many layers before the one that it is for: with 0 it is
  /// the layer's own query, and must give what an exact one does.
  virtual std::int64_t guess_distance() const { return 1; }
};

}  // namespace hybridgen
