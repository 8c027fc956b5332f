// SPDX-License-Identifier: Apache-2.0
// kernel<<<grid, block, shared, stream>>>(arguments) without nvcc: launch(kernel, grid, block,
// shared, stream, arguments...). Refuses what a device refuses, by cudaGetLastError(); copies the
// arguments, as a device does; then runs the blocks one after the other, or hands the run to who
// owns the stream.
#pragma once

#include <cstddef>
#include <functional>
#include <tuple>

#include "support/cuda_emulator/runtime.h"
#include "support/cuda_emulator/schedule.h"
#include "support/cuda_emulator/vector_types.h"

namespace hybridgen::cuda_emulator {

/// Takes a launch (or a copy) for a stream's queue; the run may be called on any OS thread, later,
/// once. It throws KernelError for a faulty kernel.
using Enqueue = void (*)(cudaStream_t stream, std::function<void()> run);

/// Whoever owns the streams sets it, null for nobody: then everything runs where it is called.
void set_enqueue(Enqueue enqueue);

/// Runs at once or hands over, see set_enqueue.
void run_on_stream(cudaStream_t stream, std::function<void()> run);

struct Grid {
  dim3 blocks;
  dim3 threads;
  std::size_t dynamic_shared_bytes = 0;
  Schedule schedule;
};

/// Whether a device would start it; sets the error of cudaGetLastError() if not.
bool accepts(const void* kernel, const Grid& grid);

/// Runs kernel(arguments) in every thread of every block.
void run_grid(const Grid& grid, void (*kernel)(const void* arguments), const void* arguments);

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...),
            dim3 blocks,
            dim3 threads,
            std::size_t dynamic_shared_bytes,
            cudaStream_t stream,
            Arguments... arguments) {
  const Grid grid{.blocks = blocks,
                  .threads = threads,
                  .dynamic_shared_bytes = dynamic_shared_bytes,
                  .schedule = current_schedule()};
  if (!accepts(reinterpret_cast<const void*>(kernel), grid)) return;
  using Call = std::tuple<void (*)(Parameters...), std::tuple<Parameters...>>;
  run_on_stream(stream, [grid, call = Call(kernel, {static_cast<Parameters>(arguments)...})] {
    run_grid(
        grid,
        [](const void* given) {
          const auto& [function, parameters] = *static_cast<const Call*>(given);
          std::apply(function, parameters);
        },
        &call);
  });
}

}  // namespace hybridgen::cuda_emulator
