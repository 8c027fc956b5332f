// SPDX-License-Identifier: Apache-2.0
// What all parts of the decode loop share: the machine it runs on and what it counts.
#pragma once

#include <vector>

#include "device/device_ops.h"
#include "hybridgen/methods/method.h"
#include "hybridgen/pipeline/statistics.h"
#include "hybridgen/runtime/trace_recorder.h"
#include "models/decoder_model.h"
#include "pipeline/pipeline_probe.h"
#include "pipeline/stage_timer.h"
#include "runtime/link_meter.h"
#include "runtime/scoped_span.h"
#include "runtime/worker_pool.h"
#include "scheduling/feedback_scheduler.h"

namespace hybridgen::kernels {
struct CpuKernels;
}

namespace hybridgen {

struct LoopContext {
  const DecoderModel& model;
  const DeviceOps& ops;
  const Method& method;
  WorkerPool* pool;  ///< helps with what the driver does between stages; may be null
  TraceRecorder& trace;
  PipelineStatistics& statistics;
  PipelineProbe* probe;                ///< null in production
  const kernels::CpuKernels* kernels;  ///< of the host's work; null: nothing leaves the device

  LinkMeter link{statistics.h2d_bytes, statistics.d2h_bytes, statistics.evicted_bytes};
  StageTimer timer{model.device()};
  StepSample sample{};  ///< of the step so far: host stages that ran beside the layer before
  std::int64_t step = 0;
  std::vector<std::int64_t> new_slots{};  ///< [G] where a retention policy puts a layer's new token
  std::vector<std::int64_t> new_counts{};  ///< [G] tokens that a layer's query heads chose

  const ModelConfig& config() const { return model.config(); }
  /// Of a stretch of the device stage, until the end of the scope.
  ScopedSpan span(const char* name, std::int64_t layer = -1) const {
    return {trace, name, layer, step};
  }
  void at_seam() const {
    if (probe != nullptr) {
      probe->at_seam();
    }
  }
};

}  // namespace hybridgen
