// SPDX-License-Identifier: Apache-2.0
// y = x W^T + b by oneDNN's matmul, with the weight kept once in the layout oneDNN prefers. Meant
// for many rows (prefill), where blocking for the caches counts; CpuKernels::linear is for few
// rows. Uses oneDNN's own threads. One object is used by one thread at a time.
#pragma once

#include <cstdint>
#include <memory>

#include "hybridgen/core/types.h"

namespace hybridgen::kernels {

/// Whether this build holds oneDNN; without it the constructor below throws.
bool has_onednn();

class OneDnnLinear {
 public:
  /// Copies `weight` [out, in] into the packed layout; `bias` [out] may be null. Both of `dtype`.
  /// Throws ConfigError for float16 or non-positive sizes, DeviceError if oneDNN is missing or
  /// fails.
  OneDnnLinear(DType dtype,
               const void* weight,
               const void* bias,
               std::int64_t in_features,
               std::int64_t out_features);
  ~OneDnnLinear();
  OneDnnLinear(OneDnnLinear&& other) noexcept;
  OneDnnLinear& operator=(OneDnnLinear&& other) noexcept;

  /// x [rows, in] and y [rows, out], contiguous, of the constructor's dtype. Returns when y is
  /// written. The first call with a row count builds its primitive, later ones reuse it.
  void run(const void* x, std::int64_t rows, void* y);

 private:
  struct Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace hybridgen::kernels
