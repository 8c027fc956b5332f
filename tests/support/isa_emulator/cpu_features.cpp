// SPDX-License-Identifier: Apache-2.0
#include "kernels/cpu_features.h"

namespace hybridgen::kernels {

bool cpu_has(Isa isa) {
  // The emulation itself is compiled for AVX2.
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                        __builtin_cpu_supports("f16c");
  return isa == Isa::kPortable || has_avx2;
}

}  // namespace hybridgen::kernels
