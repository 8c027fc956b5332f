// SPDX-License-Identifier: Apache-2.0
// A coded weight as kernels see it, where it lies.
#pragma once

#include "device/linear_weight.h"
#include "device/torch_types.h"
#include "kernels/coded_rows.h"

namespace hybridgen {

inline kernels::CodedWeightView coded_view(const LinearWeight& weight) {
  return {.bits = weight.bits,
          .group = weight.group,
          .inputs = weight.inputs,
          .codes = static_cast<const std::uint8_t*>(weight.codes.const_data_ptr()),
          .scale_dtype = to_dtype(weight.scales.scalar_type()),
          .scales = weight.scales.const_data_ptr(),
          .minima = weight.minima.defined() ? weight.minima.const_data_ptr() : nullptr};
}

}  // namespace hybridgen
