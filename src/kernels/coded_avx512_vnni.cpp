// SPDX-License-Identifier: Apache-2.0
// Compiled with the flags of cpu_avx512_vnni.cpp. The same eight lanes as AVX2: products that are
// bound by memory gain nothing from wider ones, and bits stay the same.
#if defined(__x86_64__)
#define HYBRIDGEN_ISA_NAMESPACE avx512_vnni
#define HYBRIDGEN_ISA_LEVEL 2
#define HYBRIDGEN_ISA_VNNI
#include "kernels/coded_multiply-inl.h"
#include "kernels/coded_tables.h"

namespace hybridgen::kernels::avx512_vnni {

void coded_multiply(const CodedLinearArgs& args,
                    const void* prepared,
                    std::int64_t begin,
                    std::int64_t end) {
  multiply_coded(args, prepared, begin, end);
}

}  // namespace hybridgen::kernels::avx512_vnni
#endif
