// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu_features.h"

#include "kernels/amx_permission.h"

namespace hybridgen::kernels {

bool cpu_has(Isa isa) {
#if defined(__x86_64__)
  // These builtins also ask the operating system (XGETBV) whether it saves the registers.
  switch (isa) {
    case Isa::kPortable:
      return true;
    case Isa::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Isa::kAvx512:
      return cpu_has(Isa::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq");
    case Isa::kAvx512Vnni:
      return cpu_has(Isa::kAvx512) && __builtin_cpu_supports("avx512vnni");
    case Isa::kAvx512Bf16:
      return cpu_has(Isa::kAvx512Vnni) && __builtin_cpu_supports("avx512bf16");
    case Isa::kAmx:
      return cpu_has(Isa::kAvx512Bf16) && may_use_amx();
  }
  return false;
#else
  return isa == Isa::kPortable;
#endif
}

}  // namespace hybridgen::kernels
