// SPDX-License-Identifier: Apache-2.0
#include "support/cuda_emulator/launch.h"

#include <atomic>
#include <cstdint>
#include <random>
#include <utility>

#include "support/cuda_emulator/block.h"
#include "support/cuda_emulator/error.h"

namespace hybridgen::cuda_emulator {

namespace {

std::atomic<Enqueue> enqueue_of_all_streams{nullptr};

constexpr unsigned kMaxThreads = 1024;
constexpr unsigned kMaxThreadsZ = 64;
constexpr unsigned kMaxGridX = 2147483647;
constexpr unsigned kMaxGridYz = 65535;

bool has_a_legal_shape(const Grid& grid) {
  const dim3& blocks = grid.blocks;
  const dim3& threads = grid.threads;
  if (blocks.x == 0 || blocks.y == 0 || blocks.z == 0) return false;
  if (blocks.x > kMaxGridX || blocks.y > kMaxGridYz || blocks.z > kMaxGridYz) return false;
  if (threads.x == 0 || threads.y == 0 || threads.z == 0) return false;
  if (threads.x > kMaxThreads || threads.y > kMaxThreads || threads.z > kMaxThreadsZ) return false;
  return threads.x * threads.y * threads.z <= kMaxThreads;
}

}  // namespace

void set_enqueue(Enqueue enqueue) { enqueue_of_all_streams = enqueue; }

void run_on_stream(cudaStream_t stream, std::function<void()> run) {
  if (const Enqueue enqueue = enqueue_of_all_streams) {
    enqueue(stream, std::move(run));
  } else {
    run();
  }
}

bool accepts(const void* kernel, const Grid& grid) {
  if (!has_a_legal_shape(grid)) {
    set_last_error(cudaErrorInvalidConfiguration);
    return false;
  }
  if (grid.dynamic_shared_bytes > max_dynamic_shared_bytes(kernel)) {
    set_last_error(cudaErrorInvalidValue);
    return false;
  }
  return true;
}

void run_grid(const Grid& grid, void (*kernel)(const void* arguments), const void* arguments) {
  Block& block = Block::of_this_os_thread();
  const std::uint64_t count =
      std::uint64_t{grid.blocks.x} * grid.blocks.y * std::uint64_t{grid.blocks.z};
  std::mt19937_64 random(grid.schedule.seed);
  gridDim = grid.blocks;
  blockDim = grid.threads;
  for (std::uint64_t i = 0; i < count; ++i) {
    const bool is_forward = grid.schedule.blocks == BlockOrder::kForward;
    const std::uint64_t number = is_forward ? i : count - 1 - i;
    blockIdx = {static_cast<unsigned>(number % grid.blocks.x),
                static_cast<unsigned>(number / grid.blocks.x % grid.blocks.y),
                static_cast<unsigned>(number / grid.blocks.x / grid.blocks.y)};
    try {
      block.run(grid.threads,
                grid.dynamic_shared_bytes,
                grid.schedule.threads,
                random,
                kernel,
                arguments);
    } catch (const KernelError& error) {
      throw KernelError(std::string(error.what()) + " (" + description(grid.schedule) + ")");
    }
  }
}

}  // namespace hybridgen::cuda_emulator
