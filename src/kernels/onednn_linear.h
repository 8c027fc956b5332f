// SPDX-License-Identifier: Apache-2.0
// y = x W^T + b by oneDNN's matrix product, for many rows (prefill), where blocking for the caches
// counts; CpuKernels::linear is for few rows. The weight stays as it lies in the checkpoint: oneDNN
// copies a block of it at a time (docs/kernels.md, "oneDNN and LibTorch beside it").
#pragma once

#include <cstdint>

#include "kernels/cpu_kernels.h"

namespace hybridgen::kernels {

/// Whether this build holds oneDNN; without it onednn_linear() throws.
bool has_onednn();

/// Writes all `out_features` columns of y. Runs on the OpenMP threads of the caller, as LibTorch
/// does, and returns when y is written; several threads may call it at once. The first call with a
/// shape compiles its code (a fraction of a millisecond), which oneDNN keeps for later ones.
/// Throws ConfigError for float16 or a y of another dtype, DeviceError if oneDNN is missing or
/// fails, as it does for bfloat16 on a processor without AVX-512.
void onednn_linear(const LinearArgs& args, std::int64_t out_features);

}  // namespace hybridgen::kernels
