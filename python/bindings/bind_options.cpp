// SPDX-License-Identifier: Apache-2.0
// Values of options between Python and C++, and what Python's option classes are made from.
#include "bind_options.h"

#include <pybind11/stl.h>

#include "bindings.h"
#include "engine/sampling_table.h"
#include "hybridgen/core/error.h"
#include "hybridgen/methods/method.h"

namespace py = pybind11;

namespace hybridgen::bindings {
namespace {

OptionValue other(const py::handle& object) {
  const py::object brief = py::module_::import("hybridgen._checks").attr("brief");
  return OptionValue::Other{brief(object).cast<std::string>()};
}

bool is_a(const py::handle& object, const char* module, const char* type) {
  return py::isinstance(object, py::module_::import(module).attr(type));
}

OptionValue number_from_python(const py::handle& object) {
  if (is_a(object, "numbers", "Integral")) {
    const py::object whole = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
    int overflow = 0;
    const long long number =
        whole ? PyLong_AsLongLongAndOverflow(whole.ptr(), &overflow) : (PyErr_Clear(), 0);
    return whole && overflow == 0 ? OptionValue(number) : other(object);
  }
  const double number = PyFloat_AsDouble(object.ptr());
  if (PyErr_Occurred() != nullptr) {  // larger than any float
    PyErr_Clear();
    return other(object);
  }
  return number;
}

void replace_all(std::string& text, const std::string& old, const std::string& by) {
  for (std::size_t at = text.find(old); at != std::string::npos;
       at = text.find(old, at + by.size())) {
    text.replace(at, old.size(), by);
  }
}

const OptionClass& option_class(const std::vector<OptionClass>& classes, const std::string& name) {
  for (const OptionClass& each : classes) {
    if (each.name == name) return each;
  }
  throw ConfigError(message("[options] there is no class '", name, "'"));
}

const std::vector<OptionClass>& all_classes() {
  static const std::vector<OptionClass> classes = [] {
    std::vector<OptionClass> all = core_option_classes();
    all.push_back(sampling_class());
    for (OptionClass& own : method_option_classes()) all.push_back(std::move(own));
    return all;
  }();
  return classes;
}

}  // namespace

OptionValue from_python(const py::handle& object) {
  if (object.is_none()) return {};
  const auto type = py::type::of(object).attr("__name__").cast<std::string>();
  if (type == "bool" || type == "bool_") return object.cast<bool>();
  if (py::isinstance<py::str>(object)) {
    // No half of a character either.
    return object.attr("isprintable")().cast<bool>() ? OptionValue(object.cast<std::string>())
                                                     : other(object);
  }
  if (py::isinstance<py::tuple>(object)) {
    OptionValue::List list;
    for (const py::handle& item : object) list.push_back(from_python(item));
    return list;
  }
  if (is_a(object, "collections.abc", "Mapping")) {
    const py::dict dict(py::reinterpret_borrow<py::object>(object));
    for (const auto& [name, value] : dict) {
      if (!py::isinstance<py::str>(name)) return other(object);
    }
    return map_from_python(dict);
  }
  return is_a(object, "numbers", "Real") ? number_from_python(object) : other(object);
}

OptionMap map_from_python(const py::dict& options) {
  OptionMap map;
  for (const auto& [name, value] : options) {
    map.emplace(name.cast<std::string>(), from_python(value));
  }
  return map;
}

py::object to_python(const OptionValue& value) {
  return std::visit(
      [](const auto& held) -> py::object {
        using Held = std::decay_t<decltype(held)>;
        if constexpr (std::is_same_v<Held, std::monostate>) {
          return py::none();
        } else if constexpr (std::is_same_v<Held, OptionValue::Other>) {
          return py::str(held.text);
        } else if constexpr (std::is_same_v<Held, OptionValue::List>) {
          py::tuple items(held.size());
          for (std::size_t i = 0; i < held.size(); ++i) items[i] = to_python(held[i]);
          return items;
        } else if constexpr (std::is_same_v<Held, OptionMap>) {
          py::dict items;
          for (const auto& [name, item] : held) items[py::str(name)] = to_python(item);
          return items;
        } else {
          return py::cast(held);
        }
      },
      value.value);
}

std::string signature_of(const std::string& name, const std::vector<OptionInfo>& options) {
  std::string signature = name + "(self, *";
  for (const OptionInfo& option : options) {
    std::string type = option.type;
    replace_all(type, "Mapping[", "collections.abc.Mapping[");
    replace_all(type, "QueryConfig", "Any");  // Python's own classes
    replace_all(type, "SchedulerConfig", "Any");
    replace_all(type, "Disk", "Any");
    replace_all(type, "Any", "typing.Any");
    signature += message(", ", option.name, ": ", type, " = ", text_of(option.default_value));
  }
  return signature + ") -> None";
}

py::list to_python(const std::vector<OptionInfo>& options) {
  py::list rows;
  for (const OptionInfo& option : options) {
    py::dict row;
    row["name"] = option.name;
    row["type"] = option.type;
    row["default"] = to_python(option.default_value);
    row["allowed"] = option.allowed;
    row["meaning"] = option.meaning;
    rows.append(row);
  }
  return rows;
}

void register_options(py::module_& module) {
  module.def(
      "option_classes",
      [] {
        py::list all;
        for (const OptionClass& each : all_classes()) {
          py::dict row;
          row["name"] = each.name;
          row["method"] = each.method;
          row["summary"] = each.summary;
          row["options"] = to_python(each.options);
          all.append(row);
        }
        return all;
      },
      "What Python's classes of options are made from: their options, in order.");
  module.def(
      "checked_options",
      [](const std::string& name, const py::dict& given) {
        return to_python(option_class(all_classes(), name).checked(map_from_python(given)));
      },
      py::arg("name"),
      py::arg("options"),
      "The options of a class as they are kept; ConfigError unless they are allowed.");
}

}  // namespace hybridgen::bindings
