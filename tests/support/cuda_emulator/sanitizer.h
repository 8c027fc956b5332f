// SPDX-License-Identifier: Apache-2.0
// What the emulator tells the sanitizers; nothing in a build without them. The emulator's own
// sources are compiled without -fsanitize=thread, so the build says which sanitizer runs:
// HYBRIDGEN_SANITIZES_ADDRESS and HYBRIDGEN_SANITIZES_THREAD are 0 or 1.
#pragma once

#include <cstddef>

#if HYBRIDGEN_SANITIZES_ADDRESS
#include <sanitizer/asan_interface.h>
#endif

#if HYBRIDGEN_SANITIZES_THREAD
#include <sanitizer/tsan_interface.h>

extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

namespace hybridgen::cuda_emulator {

#if HYBRIDGEN_SANITIZES_ADDRESS
inline void poison(const void* memory, std::size_t bytes) {
  __asan_poison_memory_region(memory, bytes);
}
inline void unpoison(const void* memory, std::size_t bytes) {
  __asan_unpoison_memory_region(memory, bytes);
}
#else
inline void poison(const void* /*memory*/, std::size_t /*bytes*/) {}
inline void unpoison(const void* /*memory*/, std::size_t /*bytes*/) {}
#endif

/// While one lives, ThreadSanitizer takes no access of this CUDA thread for the kernel's: calls
/// into the C library are seen by it even in sources that it does not instrument.
class EmulatorsOwnAccesses {
 public:
#if HYBRIDGEN_SANITIZES_THREAD
  EmulatorsOwnAccesses() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~EmulatorsOwnAccesses() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  EmulatorsOwnAccesses() {}   // NOLINT(modernize-use-equals-default): no "unused variable"
  ~EmulatorsOwnAccesses() {}  // NOLINT(modernize-use-equals-default)
#endif
  EmulatorsOwnAccesses(const EmulatorsOwnAccesses&) = delete;
  EmulatorsOwnAccesses& operator=(const EmulatorsOwnAccesses&) = delete;
};

/// An order between CUDA threads, for ThreadSanitizer: what a thread did before its release() comes
/// before what others do after a later acquire().
class Ordering {
 public:
#if HYBRIDGEN_SANITIZES_THREAD
  Ordering() = default;
  ~Ordering() { forget(); }
  /// Starts a new order: nothing released before counts any more.
  void renew() {
    forget();
    variable_ = new char;
  }
  void release() { __tsan_release(variable_); }
  void acquire() { __tsan_acquire(variable_); }

 private:
  // ThreadSanitizer keeps clocks by address and drops them with the memory.
  void forget() {
    const EmulatorsOwnAccesses own;
    delete variable_;
    variable_ = nullptr;
  }
  char* variable_ = nullptr;

 public:
#else
  Ordering() = default;
  void renew() {}
  void release() {}
  void acquire() {}
#endif
  Ordering(const Ordering&) = delete;
  Ordering& operator=(const Ordering&) = delete;
};

}  // namespace hybridgen::cuda_emulator
