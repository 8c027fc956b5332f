// SPDX-License-Identifier: Apache-2.0
#include "device/linear_form.h"

#include <ATen/ops/addmm.h>
#include <ATen/ops/mm.h>

#include <exception>

#include "device/own_error.h"
#include "hybridgen/core/error.h"
#include "kernels/onednn_linear.h"

namespace hybridgen {
namespace {

using kernels::Isa;

// Prepared rows of a prompt at least; of a step, where the form changes bits, later.
constexpr std::int64_t kLeastTileRows = 4;
constexpr std::int64_t kLeastTileRowsOfAStep = 17;
constexpr std::int64_t kLeastPackedRows = 16;

/// Whether a product of `dtype` runs on instructions for it, ours and the libraries'.
bool has_instructions(Isa isa, DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return true;
    case DType::kBFloat16:
      return isa >= Isa::kAvx512Bf16;
    case DType::kFloat16:
      return isa >= Isa::kAvx512 && kernels::has_float16_arithmetic();
  }
  return false;
}

LinearForm library_form(DType dtype) {
  return dtype == DType::kFloat32 && kernels::has_onednn() ? LinearForm::kOneDnn
                                                           : LinearForm::kLibTorch;
}

}  // namespace

LinearForm linear_form(Isa isa, DType dtype, DType y_dtype, RowsOf rows_of, std::int64_t rows) {
  const bool has_tiles = isa == Isa::kAmx && dtype == DType::kBFloat16;
  // Streaming pays until memory is no longer the limit; numbers that have to be widened first, or
  // narrow registers, reach that with few rows. Of processors without AVX2 nothing was measured.
  const bool streams_long =
      isa == Isa::kPortable ||
      (isa >= Isa::kAvx512 && dtype != DType::kFloat16 && has_instructions(isa, dtype));
  std::int64_t least_prepared = kMostStepRows + 1;
  if (has_tiles) {
    least_prepared = rows_of == RowsOf::kPrompt ? kLeastTileRows : kLeastTileRowsOfAStep;
  } else if (!streams_long && rows_of == RowsOf::kPrompt) {
    least_prepared = kLeastPackedRows;
  }
  if (rows < least_prepared) return LinearForm::kStreamed;
  const bool is_a_librarys =
      isa == Isa::kPortable || (isa >= Isa::kAvx512 && has_instructions(isa, dtype));
  if (rows > kMostStepRows && is_a_librarys && y_dtype == dtype) return library_form(dtype);
  return has_tiles || !streams_long ? LinearForm::kPrepared : LinearForm::kStreamed;
}

bool library_linear(LinearForm form,
                    const at::Tensor& x,
                    const at::Tensor& weight,
                    const at::Tensor& bias,
                    at::Tensor& y,
                    const kernels::LinearArgs& args) {
  try {
    if (form == LinearForm::kOneDnn) {
      kernels::onednn_linear(args, weight.size(0));
    } else if (bias.defined()) {
      at::addmm_out(y, bias, x, weight.t());
    } else {
      at::mm_out(y, x, weight.t());
    }
    return true;
  } catch (const DeviceError&) {
    return false;  // of onednn_linear
  } catch (...) {
    if (!is_lack_of_memory(std::current_exception())) throw;
    return false;
  }
}

}  // namespace hybridgen
