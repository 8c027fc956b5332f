// SPDX-License-Identifier: Apache-2.0
// Compiled with -mavx512f -mavx512bw -mavx512vl -mavx512dq -mfma -mf16c.
#if defined(__x86_64__)
#define HYBRIDGEN_ISA_NAMESPACE avx512
#define HYBRIDGEN_ISA_LEVEL 2
#include "kernels/cpu_kernels-inl.h"
#endif
