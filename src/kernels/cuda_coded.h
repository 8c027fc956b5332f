// SPDX-License-Identifier: Apache-2.0
// Products of a few rows with coded weights (coded_rows.h) on the device. Rules as in
// cuda_kernels.h.
#pragma once

#include <cstdint>

#include "kernels/coded_linear.h"

namespace hybridgen::kernels {

/// y[r, n] = sum_k x[r, k] * value(n, k) + bias[n] for n in [0, outputs), all pointers on the
/// device and codes aligned to 4 bytes. Sums are float32, rounded once to y; a row's outputs are
/// the same bits in every run and whatever the other rows. Where x is NaN or infinite they are not
/// finite. One launch, which reads the codes once for every 16 rows: made for the rows of a decode
/// step.
void coded_linear_cuda(const CodedLinearArgs& args, std::int64_t outputs, void* stream);

}  // namespace hybridgen::kernels
