// SPDX-License-Identifier: Apache-2.0
// Structs of options in Python: constructors from keyword arguments and properties, both made by
// looping over the struct's table.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <utility>

#include "core/option_table.h"

namespace hybridgen::bindings {

/// What a Python object is as an option; NumPy's numbers count. Never fails: what no option takes
/// becomes OptionValue::Other.
OptionValue from_python(const pybind11::handle& object);
OptionMap map_from_python(const pybind11::dict& options);
pybind11::object to_python(const OptionValue& value);
/// For the stubs: "(self, *, k: int = 3) -> None" behind `name`.
std::string signature_of(const std::string& name, const std::vector<OptionInfo>& options);
pybind11::list to_python(const std::vector<OptionInfo>& options);

/// Properties for all options of a table, to_dict and describe.
template <typename Options>
void bind_properties(pybind11::class_<Options>& bound, const OptionTable<Options>& table) {
  for (const OptionRow<Options>& row : table.rows()) {
    bound.def_property_readonly(row.info.name.c_str(), [get = row.get](const Options& options) {
      return to_python(get(options));
    });
  }
  bound.def_static(
      "describe",
      [&table] { return to_python(table.described()); },
      "Name, type, default, what is allowed and meaning of every option.");
  bound.def(
      "to_dict",
      [&table](const Options& options) { return to_python(table.values(options)); },
      "All options by name.");
}

/// Those, and a constructor; `finish(options)` sees to what one row cannot.
template <typename Options, typename Finish>
void bind_options(pybind11::class_<Options>& bound,
                  const OptionTable<Options>& table,
                  const std::string& operation,
                  Finish finish) {
  const std::string signature = signature_of("__init__", table.described());
  pybind11::options settings;
  settings.disable_function_signatures();
  bound.def(pybind11::init([&table, operation, finish](const pybind11::kwargs& given) {
              Options options = table.read(operation, map_from_python(given));
              finish(options);
              return options;
            }),
            signature.c_str());
  settings.enable_function_signatures();
  bind_properties(bound, table);
}

}  // namespace hybridgen::bindings
