// SPDX-License-Identifier: Apache-2.0
// One block of a launch: runs its CUDA threads as fibers of one OS thread, a round of all that can
// go on after the other, and lets them wait for each other. Kernels reach it through the
// intrinsics; nothing of it is called from elsewhere but run().
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <memory>
#include <random>
#include <source_location>
#include <string>
#include <vector>

#include "support/cuda_emulator/async_copies.h"
#include "support/cuda_emulator/fiber.h"
#include "support/cuda_emulator/sanitizer.h"
#include "support/cuda_emulator/schedule.h"
#include "support/cuda_emulator/shared_arena.h"
#include "support/cuda_emulator/vector_types.h"
#include "support/cuda_emulator/warps.h"

namespace hybridgen::cuda_emulator {

using Where = std::source_location;

class Block {
 public:
  /// That of the CUDA thread which calls. Throws KernelError outside of a kernel.
  static Block& current();
  /// The one that this OS thread runs its blocks in: its stacks are kept.
  static Block& of_this_os_thread();

  Block() = default;
  ~Block() = default;
  Block(const Block&) = delete;
  Block& operator=(const Block&) = delete;

  /// Runs kernel(arguments) in every thread of the block. Throws KernelError, or what the kernel
  /// threw; the block's other threads are dropped where they stand.
  void run(dim3 shape,
           std::size_t dynamic_shared_bytes,
           ThreadOrder order,
           std::mt19937_64& random,
           void (*kernel)(const void* arguments),
           const void* arguments);

  // ---- For the running CUDA thread; none is inline, as that would put what ThreadSanitizer adds
  // to a kernel into the emulator ----

  /// __syncthreads().
  void synchronize(Where where);
  /// Its number in the block, and that in its warp.
  int thread() const;
  int lane() const;
  SharedArena& shared();
  AsyncCopies& async_copies();
  Warps& warps();
  /// Ends the launch with this error, by an exception in the running thread.
  [[noreturn]] void fail(const std::string& what);

  // ---- For Warps, which decides who waits for whom in a warp ----

  /// The lanes of a warp that exist and have not ended yet.
  std::uint32_t live_lanes(int warp) const;
  /// Lets the running thread wait until let_go() is called for it.
  void wait_for_warp(const char* operation, Where where);
  void let_go(int thread);

 private:
  enum class State : std::uint8_t { kReady, kAtBarrier, kInWarp, kEnded };

  struct Thread {
    explicit Thread(std::size_t number) : fiber(number) {}
    Fiber fiber;
    State state = State::kReady;
    uint3 place{};
    const char* operation = nullptr;  ///< what it waits in
    Where where;
    AsyncCopies copies;
  };

  static std::size_t index(int thread) { return static_cast<std::size_t>(thread); }
  void start_threads(dim3 shape);
  void run_round(ThreadOrder order, std::mt19937_64& random);
  void run_thread();
  void end_barrier();
  void throw_if_failed();
  void suspend_running();
  std::string waiting_threads() const;

  std::vector<std::unique_ptr<Thread>> threads_;  // as many as the largest block had
  std::vector<int> order_;
  int size_ = 0;
  int running_ = 0;
  int ready_ = 0;
  int at_barrier_ = 0;
  int live_ = 0;
  std::array<std::uint32_t, 32> live_lanes_{};  // by warp

  void (*kernel_)(const void*) = nullptr;
  const void* arguments_ = nullptr;
  std::exception_ptr thrown_;
  std::string failure_;

  SharedArena shared_;
  Warps warps_;
  Ordering start_;
  Ordering end_;
  // Barriers take them in turn: who is late for one must not learn what others did behind it.
  Ordering barrier_[2];
  int barrier_turn_ = 0;
};

}  // namespace hybridgen::cuda_emulator
