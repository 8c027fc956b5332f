// SPDX-License-Identifier: Apache-2.0
// The only place where our dtypes meet LibTorch's.
#pragma once

#include <ATen/core/Tensor.h>

#include "hybridgen/core/error.h"
#include "hybridgen/core/types.h"

namespace hybridgen {

inline at::ScalarType to_scalar_type(DType dtype) {
  switch (dtype) {
    case DType::kFloat16:
      return at::kHalf;
    case DType::kBFloat16:
      return at::kBFloat16;
    case DType::kFloat32:
      break;
  }
  return at::kFloat;
}

inline DType to_dtype(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return DType::kFloat32;
    case at::kHalf:
      return DType::kFloat16;
    case at::kBFloat16:
      return DType::kBFloat16;
    default:
      throw ConfigError(message("[dtype] ",
                                c10::toString(type),
                                " is not supported; allowed: float32, float16, bfloat16"));
  }
}

}  // namespace hybridgen
