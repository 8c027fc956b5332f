// SPDX-License-Identifier: Apache-2.0
#include "kernels/amx_permission.h"

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cstdint>
#endif

namespace hybridgen::kernels {

#if defined(__x86_64__) && defined(__linux__)

namespace {

bool cpu_has_tiles() {
  constexpr unsigned kBf16 = 1U << 22;
  constexpr unsigned kTiles = 1U << 24;
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0 && (edx & kBf16) != 0 &&
         (edx & kTiles) != 0;
}

bool system_saves_tiles() {
  constexpr unsigned kSavesExtendedState = 1U << 27;  // OSXSAVE: XGETBV may be used
  constexpr unsigned kTileState = 3U << 17;           // configuration and data
  unsigned eax = 0;
  unsigned ebx = 0;
  unsigned ecx = 0;
  unsigned edx = 0;
  if (__get_cpuid(1, &eax, &ebx, &ecx, &edx) == 0 || (ecx & kSavesExtendedState) == 0) return false;
  std::uint32_t low = 0;
  std::uint32_t high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (low & kTileState) == kTileState;
}

bool system_grants_tiles() {
  constexpr long kRequestPermission = 0x1023;  // ARCH_REQ_XCOMP_PERM; older headers lack it
  constexpr long kTileData = 18;
  return ::syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace

bool may_use_amx() {
  static const bool granted = cpu_has_tiles() && system_saves_tiles() && system_grants_tiles();
  return granted;
}

#else

bool may_use_amx() { return false; }

#endif

}  // namespace hybridgen::kernels
