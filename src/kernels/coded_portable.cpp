// SPDX-License-Identifier: Apache-2.0
#define HYBRIDGEN_ISA_NAMESPACE portable
#define HYBRIDGEN_ISA_LEVEL 0
#include "kernels/coded_kernels-inl.h"
