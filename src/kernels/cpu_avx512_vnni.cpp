// SPDX-License-Identifier: Apache-2.0
// Compiled with -mavx512vnni on top of the flags of cpu_avx512.cpp.
#if defined(__x86_64__)
#define HYBRIDGEN_ISA_NAMESPACE avx512_vnni
#define HYBRIDGEN_ISA_LEVEL 2
#define HYBRIDGEN_ISA_VNNI
#include "kernels/cpu_shadow-inl.h"
#include "kernels/cpu_tables.h"

namespace hybridgen::kernels::avx512_vnni {

void shadow_logits(const ShadowLogitsArgs& args) { scan_shadow(args); }

}  // namespace hybridgen::kernels::avx512_vnni
#endif
