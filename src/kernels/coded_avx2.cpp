// SPDX-License-Identifier: Apache-2.0
// Compiled with -mavx2 -mfma -mf16c.
#if defined(__x86_64__)
#define HYBRIDGEN_ISA_NAMESPACE avx2
#define HYBRIDGEN_ISA_LEVEL 1
#include "kernels/coded_kernels-inl.h"
#endif
