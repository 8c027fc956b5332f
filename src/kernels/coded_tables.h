// SPDX-License-Identifier: Apache-2.0
// What the translation units of coded products export to their dispatcher.
#pragma once

#include "kernels/coded_linear.h"

namespace hybridgen::kernels {

namespace portable {
extern const CodedKernels kCodedTable;
}
namespace avx2 {
extern const CodedKernels kCodedTable;
}
namespace avx512_vnni {
void coded_multiply(const CodedLinearArgs& args,
                    const void* prepared,
                    std::int64_t begin,
                    std::int64_t end);
}

}  // namespace hybridgen::kernels
