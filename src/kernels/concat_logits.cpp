// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {

void concat_logits(const float* host,
                   std::int64_t host_stride,
                   std::int64_t host_count,
                   const float* resident,
                   std::int64_t resident_stride,
                   std::int64_t resident_count,
                   float* out,
                   std::int64_t out_stride,
                   std::int64_t rows) {
  for (std::int64_t row = 0; row < rows; ++row) {
    float* to = out + row * out_stride;
    to = std::copy_n(host + row * host_stride, host_count, to);
    std::copy_n(resident + row * resident_stride, resident_count, to);
  }
}

}  // namespace hybridgen::kernels
