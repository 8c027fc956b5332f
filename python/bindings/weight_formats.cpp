// SPDX-License-Identifier: Apache-2.0
#include "weight_formats.h"

#include <string>

#include "bind_options.h"
#include "core/option_tables.h"

namespace py = pybind11;

namespace hybridgen::bindings {

kernels::CodedFormat format_from(const py::dict& fields) {
  return {.bits = fields["bits"].cast<int>(),
          .group = fields["group"].cast<std::int64_t>(),
          .has_minima = fields["minima"].cast<bool>(),
          .scale_dtype = dtype_from_name(fields["scales"].cast<std::string>())};
}

py::dict to_dict(const kernels::CodedFormat& format) {
  py::dict fields;
  fields["bits"] = format.bits;
  fields["group"] = format.group;
  fields["minima"] = format.has_minima;
  fields["scales"] = std::string(name_of(format.scale_dtype));
  return fields;
}

WeightFormats weight_formats_from(const py::dict& weights, const py::dict& formats) {
  WeightFormats held{.made = weight_table().read("weights", map_from_python(weights))};
  for (const auto& [name, format] : formats) {
    held.stored[name.cast<std::string>()] =
        format_from(py::dict(py::reinterpret_borrow<py::object>(format)));
  }
  return held;
}

}  // namespace hybridgen::bindings
