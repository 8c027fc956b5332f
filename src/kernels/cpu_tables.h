// SPDX-License-Identifier: Apache-2.0
// The function tables that the per-instruction-set translation units export to the dispatcher.
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

}  // namespace hybridgen::kernels
