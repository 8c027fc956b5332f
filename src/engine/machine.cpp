// SPDX-License-Identifier: Apache-2.0
#include "engine/machine.h"

#include <algorithm>
#include <optional>
#include <utility>

#include "device/driver_thread.h"
#include "emulated/backend.h"
#include "hybridgen/core/error.h"
#include "kernels/cuda_attention.h"
#include "kernels/cuda_kernels.h"
#include "memory/numa.h"
#include "runtime/control_group.h"
#include "runtime/cpus.h"

namespace hybridgen {
namespace {

// Why our CUDA kernels do not take this model there; empty: they do, or a timed device takes their
// time.
std::string why_no_kernels(const DecoderModel& model) {
  const at::Device device = model.device().device();
  if (model.config().head_dim > kernels::kMostHeadDim) {
    return message("heads have more than ", kernels::kMostHeadDim, " dimensions");
  }
  if (model.device().is_timed()) return {};
  if (!device.is_cuda()) return "kernels are for cpu and cuda";
  if (!kernels::has_cuda_kernels()) return "this build found no nvcc";
  if (!runs_cuda_kernels()) return "LibTorch before 2.13 does not tell a stream's handle";
  if (!emulated::is_registered(device.type()) &&
      kernels::cuda_compute_capability(device.index()) < kernels::kLeastComputeCapability) {
    return "the GPU's compute capability is below 8.0";
  }
  return {};
}

Math resolve_math(Math asked, const DecoderModel& model) {
  if (model.device().is_cpu()) {
    return asked == Math::kAuto ? Math::kKernels : asked;
  }
  const std::string why_not = why_no_kernels(model);
  if (asked == Math::kKernels && !why_not.empty()) {
    throw ConfigError(message("[engine] math is 'kernels' on ",
                              model.device().name(),
                              "; allowed there: aten (",
                              why_not,
                              ")"));
  }
  if (asked != Math::kAuto) return asked;
  // A stand-in for a GPU that has values runs them only where a test has brought their emulation.
  const bool is_stand_in =
      emulated::is_registered(model.device().device().type()) && !model.device().is_timed();
  return why_not.empty() && !is_stand_in ? Math::kKernels : Math::kAten;
}

// What is made of invented logits would pass for a measure of the method.
void check_choice(const Method& method, const DeviceContext& device) {
  const PartFactory* selector = find_part(method.parts, PartRole::kSelector);
  if (device.is_timed() && selector != nullptr && selector->says_how_many) {
    throw ConfigError(message("[engine] method ",
                              method.name,
                              " takes as many tokens as their logits say on ",
                              device.name(),
                              ", which is timed and has none; allowed there: a number, such as k; "
                              "or the device 'emulated'"));
  }
}

}  // namespace

Machine::Machine(const EngineOptions& options, const Method& method, const DecoderModel& model)
    : device_is_cpu_(model.device().is_cpu()),
      isa_(kernels::resolve_isa(options.isa)),
      math_(resolve_math(options.math, model)),
      cores_(available_cpus()) {
  check_choice(method, model.device());
  const bool divides = options.numa_node == -1 && options.divides_heads && method.offloads();
  const std::vector<NumaNode> nodes = divides ? numa_nodes() : std::vector<NumaNode>{};
  const std::vector<int> cores = spread_over_nodes(cores_, nodes);
  const std::vector<int> host_cpus =
      options.numa_node == -1 ? cores : cpus_of_node(find_numa_node(options.numa_node), cores);
  threads_ = resolve_threads({options.threads, options.device_threads},
                             device_is_cpu_,
                             method.offloads(),
                             static_cast<std::int64_t>(host_cpus.size()));
  // One pool for host jobs and the device's operations: whoever is free takes what is there.
  const std::int64_t helpers = device_is_cpu_ && math_ == Math::kKernels ? threads_.device - 1 : 0;
  WorkerPool::Options pool_options;
  pool_options.cpus = worker_cpus(cores, host_cpus, threads_.host, helpers);
  if (!pool_options.cpus.empty()) {
    if (pool_options.cpus.front() >= 0) {
      pool_cpus_ = pool_options.cpus;
    }
    pool_ = std::make_unique<WorkerPool>(std::move(pool_options));
    const std::optional<double> quota = control_group_quota();
    quota_lasts_ = !quota || pool_->size() + 1 <= *quota;
  }
  if (math_ == Math::kKernels && model.device().is_timed()) {
    ops_ = make_timed_ops(model.device().device());
  } else if (math_ == Math::kKernels && !device_is_cpu_) {
    ops_ = make_cuda_ops(model.device().device());
  } else if (math_ == Math::kKernels) {
    ops_ = make_cpu_ops(name_of(isa_), pool_.get());
    prompt_ops_ = make_cpu_ops(name_of(isa_), pool_.get(), RowsOf::kPrompt);
  } else {
    ops_ = make_aten_ops();
  }
  if (divides) {
    const std::int64_t num_kv_heads = model.config().num_kv_heads;
    const auto num_workers = static_cast<std::int64_t>(pool_->size());
    division_ =
        options.test.invented_nodes > 0
            ? divide_over_invented_nodes(options.test.invented_nodes, num_workers, num_kv_heads)
            : divide_heads(nodes, pool_cpus_, num_kv_heads);
  }
}

void Machine::start_driver() {
  if (openmp_binds_threads()) {
    pin_current_thread(cores_);  // not the place of the thread that made this one
  }
  // No more than OMP_NUM_THREADS unless the user asked for more by device_threads.
  const std::int64_t all =
      std::min<std::int64_t>(threads_.device + threads_.host, default_intra_op_threads());
  prefill_threads_ = static_cast<int>(std::max(threads_.device, all));
  if (device_is_cpu_) {
    flush_denormals_in_current_thread();  // as the workers, which share its operations
    start_intra_op_threads(prefill_threads_);
  }
}

void Machine::enter(Phase next) {
  if (phase_ == next) {
    return;
  }
  phase_ = next;
  if (pool_) {
    // While prefilling, LibTorch's threads need the cores that workers would spin on; so does the
    // driver in decode steps, where workers are not pinned beside it. Under a quota that does not
    // last for all of them, what they spin is missing where they work.
    const bool spins_long = next == Phase::kDecode && !pool_cpus_.empty() && quota_lasts_;
    pool_->set_spin(spins_long ? WorkerPool::kDecodeSpin : WorkerPool::Options{}.spin);
  }
  if (!device_is_cpu_) {
    set_intra_op_threads(1);
    return;
  }
  // While prefilling the host workers have nothing to do: the whole machine works on the prompt. In
  // decode steps the driver keeps off their cores, or they would run only while it waits for them.
  std::vector<int> cpus = cores_;
  if (next == Phase::kDecode) {
    std::erase_if(cpus,
                  [&](int cpu) { return std::ranges::find(pool_cpus_, cpu) != pool_cpus_.end(); });
  }
  if (!pool_cpus_.empty() || openmp_binds_threads()) {
    pin_current_thread(cpus);
  }
  set_intra_op_threads(next == Phase::kPrefill ? prefill_threads_
                                               : static_cast<int>(threads_.device));
}

}  // namespace hybridgen
