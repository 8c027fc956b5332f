// SPDX-License-Identifier: Apache-2.0
#include "kernels/coded_linear.h"
#include "kernels/coded_tables.h"

namespace hybridgen::kernels {

const CodedKernels& coded_kernels(Isa isa) {
  cpu_kernels(isa);  // throws where the CPU lacks it
#if defined(__x86_64__)
  if (isa >= Isa::kAvx512Vnni) {
    static const CodedKernels table = [] {
      CodedKernels with_vnni = avx2::kCodedTable;
      with_vnni.multiply = avx512_vnni::coded_multiply;
      return with_vnni;
    }();
    return table;
  }
  if (isa >= Isa::kAvx2) return avx2::kCodedTable;
#endif
  return portable::kCodedTable;
}

}  // namespace hybridgen::kernels
