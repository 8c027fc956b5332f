// SPDX-License-Identifier: Apache-2.0
// What an engine takes of the machine: cores, threads, memory nodes, instruction set, and the
// device's operations on them. Made once from the user's options, which stay as they are.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "device/device_ops.h"
#include "engine/host_threads.h"
#include "hybridgen/core/engine_options.h"
#include "hybridgen/methods/method.h"
#include "kernels/cpu_kernels.h"
#include "memory/numa_division.h"
#include "models/decoder_model.h"
#include "runtime/worker_pool.h"

namespace hybridgen {

/// What the driver thread is about to do.
enum class Phase : std::uint8_t { kNone, kPrefill, kDecode };

class Machine {
 public:
  /// ConfigError for cores, nodes, instruction sets or operations that this machine or this device
  /// does not have, DeviceError if threads cannot be created.
  Machine(const EngineOptions& options, const Method& method, const DecoderModel& model);

  kernels::Isa isa() const { return isa_; }
  Math math() const { return math_; }
  ThreadCounts threads() const { return threads_; }
  const NumaDivision& division() const { return division_; }
  const DeviceOps& ops() const { return *ops_; }
  const DeviceOps& prompt_ops() const { return prompt_ops_ ? *prompt_ops_ : *ops_; }
  WorkerPool* pool() const { return pool_.get(); }  ///< null: nothing for workers to do

  /// On the driver thread, once: its cores and its OpenMP team.
  void start_driver();
  /// On the driver thread: which cores and how many OpenMP threads it uses; cheap when nothing
  /// changes.
  void enter(Phase next);

 private:
  bool device_is_cpu_;
  kernels::Isa isa_;
  Math math_;
  std::vector<int> cores_;  ///< that this process may use
  std::vector<int>
      pool_cpus_;  ///< pinned cores of the pool's workers; empty if they are not pinned
  ThreadCounts threads_;
  NumaDivision division_;
  std::unique_ptr<WorkerPool> pool_;
  std::unique_ptr<DeviceOps> ops_;
  std::unique_ptr<DeviceOps> prompt_ops_;  ///< null: ops_
  int prefill_threads_ = 1;
  bool quota_lasts_ = true;  ///< for the driver and all workers, if there is a CPU quota
  Phase phase_ = Phase::kNone;
};

}  // namespace hybridgen
