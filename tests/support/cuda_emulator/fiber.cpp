// SPDX-License-Identifier: Apache-2.0
#include "support/cuda_emulator/fiber.h"

#include <sys/mman.h>

#include <new>

#include "support/cuda_emulator/fiber_switch.h"
#include "support/cuda_emulator/sanitizer.h"

#if HYBRIDGEN_SANITIZES_ADDRESS
#include <sanitizer/common_interface_defs.h>
#endif

namespace hybridgen::cuda_emulator {

namespace {

// Only touched pages take memory. The lowest page is forbidden: an overflow ends there.
constexpr std::size_t kStackBytes = std::size_t{256} << 10;
constexpr std::size_t kGuardBytes = 4096;
constexpr std::size_t kStaggerBytes = 128;
constexpr std::size_t kStaggers = 64;

void* allocate_stack() {
  void* memory = mmap(nullptr,
                      kGuardBytes + kStackBytes,
                      PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK | MAP_NORESERVE,
                      -1,
                      0);
  if (memory == MAP_FAILED || mprotect(memory, kGuardBytes, PROT_NONE) != 0) {
    throw std::bad_alloc();
  }
  return memory;
}

}  // namespace

Fiber::Fiber(std::size_t number)
    : memory_(allocate_stack()),
      stack_bottom_(static_cast<char*>(memory_) + kGuardBytes),
      stack_bytes_(kStackBytes - number % kStaggers * kStaggerBytes) {
#if HYBRIDGEN_SANITIZES_THREAD
  thread_of_tsan_ = __tsan_create_fiber(0);
#endif
}

Fiber::~Fiber() {
#if HYBRIDGEN_SANITIZES_THREAD
  __tsan_destroy_fiber(thread_of_tsan_);
#endif
  release_place(own_place_);
  release_place(resumer_place_);
  unpoison(stack_bottom_, kStackBytes);
  munmap(memory_, kGuardBytes + kStackBytes);
}

void Fiber::start(void (*body)(void*), void* argument) {
  body_ = body;
  argument_ = argument;
  // Frames that were never left keep their poison, and their place in ThreadSanitizer's call stack.
  unpoison(stack_bottom_, kStackBytes);
#if HYBRIDGEN_SANITIZES_THREAD
  if (is_running_) {
    __tsan_destroy_fiber(thread_of_tsan_);
    thread_of_tsan_ = __tsan_create_fiber(0);
  }
#endif
  is_running_ = true;
  own_fake_stack_ = nullptr;
  release_place(own_place_);
  own_place_ = prepare_stack(
      stack_bottom_,
      static_cast<char*>(stack_bottom_) + stack_bytes_,
      [](void* self) { enter(static_cast<Fiber*>(self)); },
      this);
}

void Fiber::resume() {
#if HYBRIDGEN_SANITIZES_ADDRESS
  void* fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&fake_stack, stack_bottom_, kStackBytes);
#endif
#if HYBRIDGEN_SANITIZES_THREAD
  resumer_of_tsan_ = __tsan_get_current_fiber();
  // Without a synchronisation: the scheduler must not order threads that the kernel does not.
  __tsan_switch_to_fiber(thread_of_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
  switch_stack(&resumer_place_, own_place_);
#if HYBRIDGEN_SANITIZES_ADDRESS
  __sanitizer_finish_switch_fiber(fake_stack, nullptr, nullptr);
#endif
}

void Fiber::suspend() {
  leave(&own_fake_stack_);
#if HYBRIDGEN_SANITIZES_ADDRESS
  __sanitizer_finish_switch_fiber(own_fake_stack_, &resumer_stack_bottom_, &resumer_stack_bytes_);
#endif
}

void Fiber::enter(Fiber* self) {
#if HYBRIDGEN_SANITIZES_ADDRESS
  __sanitizer_finish_switch_fiber(
      nullptr, &self->resumer_stack_bottom_, &self->resumer_stack_bytes_);
#endif
  self->body_(self->argument_);
  self->is_running_ = false;
  self->leave(nullptr);
}

// `fake_stack` null: for good, so AddressSanitizer frees what it keeps of this stack.
void Fiber::leave([[maybe_unused]] void** fake_stack) {
#if HYBRIDGEN_SANITIZES_ADDRESS
  __sanitizer_start_switch_fiber(fake_stack, resumer_stack_bottom_, resumer_stack_bytes_);
#endif
#if HYBRIDGEN_SANITIZES_THREAD
  __tsan_switch_to_fiber(resumer_of_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
  switch_stack(&own_place_, resumer_place_);
}

}  // namespace hybridgen::cuda_emulator
