// SPDX-License-Identifier: Apache-2.0
// What the per-instruction-set translation units export to the dispatcher: whole tables, and single
// kernels that replace their counterparts in the table of the instruction set below.
#pragma once

#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {

namespace portable {
extern const CpuKernels kTable;
}
namespace avx2 {
extern const CpuKernels kTable;
}
namespace avx512 {
extern const CpuKernels kTable;
}
namespace avx512_vnni {
void shadow_logits(const ShadowLogitsArgs& args);
}

}  // namespace hybridgen::kernels
