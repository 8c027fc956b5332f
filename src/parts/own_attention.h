// SPDX-License-Identifier: Apache-2.0
// What the two halves of an OwnAttention hand over.
#pragma once

#include <ATen/core/Tensor.h>

#include "hybridgen/parts/part_roles.h"

namespace hybridgen {

struct OwnAttention::Weights {
  at::Tensor all;  ///< float32 [G, R, n_c + n_g]: offloaded tokens, then resident ones
  /// int16 [G, n_c]: query heads that need the value of an offloaded token; undefined: there is
  /// none.
  at::Tensor readers;
};

}  // namespace hybridgen
