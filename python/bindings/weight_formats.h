// SPDX-License-Identifier: Apache-2.0
// How a model's matrices are held, between Python's dicts and WeightFormats.
#pragma once

#include <pybind11/pybind11.h>

#include "models/weight_coding.h"

namespace hybridgen::bindings {

/// A matrix's "bits", "group", "minima" and "scales".
kernels::CodedFormat format_from(const pybind11::dict& fields);
pybind11::dict to_dict(const kernels::CodedFormat& format);

/// `weights`: options of a WeightConfig. `formats`: of each matrix that the checkpoint has codes
/// of, by its canonical name. ConfigError for options that are not allowed.
WeightFormats weight_formats_from(const pybind11::dict& weights, const pybind11::dict& formats);

}  // namespace hybridgen::bindings
