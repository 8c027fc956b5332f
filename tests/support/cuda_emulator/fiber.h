// SPDX-License-Identifier: Apache-2.0
// A call stack of its own inside one operating system thread. The emulator gives one to each CUDA
// thread, so that a barrier in the middle of a kernel can stop it there.
#pragma once

#include <cstddef>

namespace hybridgen::cuda_emulator {

/// Not movable: its address is known to the sanitizers. Belongs to the OS thread that made it.
class Fiber {
 public:
  /// `number` shifts where the stack starts, since equal places in all stacks share cache sets.
  explicit Fiber(std::size_t number);
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  /// Makes the next resume() call body(argument) on an empty stack. What the fiber was in the
  /// middle of is dropped: no destructor of it runs.
  void start(void (*body)(void* argument), void* argument);

  /// Runs the fiber until it suspends itself or its body returns.
  void resume();

  /// Called on the fiber: goes back to who called resume().
  void suspend();

 private:
  static void enter(Fiber* self);
  void leave(void** fake_stack);

  void* memory_ = nullptr;
  void* stack_bottom_ = nullptr;  // lowest usable address
  std::size_t stack_bytes_ = 0;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool is_running_ = false;  // between start() and the body's return

  void* own_place_ = nullptr;  // saved stack pointers, see fiber_switch.h
  void* resumer_place_ = nullptr;

  // What AddressSanitizer and ThreadSanitizer keep of each stack.
  void* own_fake_stack_ = nullptr;
  const void* resumer_stack_bottom_ = nullptr;
  std::size_t resumer_stack_bytes_ = 0;
  void* thread_of_tsan_ = nullptr;
  void* resumer_of_tsan_ = nullptr;
};

}  // namespace hybridgen::cuda_emulator
