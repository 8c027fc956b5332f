// SPDX-License-Identifier: Apache-2.0
// Profiles of machines that are emulated: Python reads the files, the devices are here.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind_options.h"
#include "bindings.h"
#include "device/device_memory.h"
#include "emulated/backend.h"
#include "emulated/machine_profile.h"

namespace py = pybind11;

namespace hybridgen::bindings {

void register_machines(py::module_& module) {
  module.def(
      "machine_profile_fields",
      [] { return to_python(emulated::machine_table().described()); },
      "What times of an emulated device are made from: the name, and fields of a profile.");
  module.def(
      "offer_emulated_device",
      [] { emulated::register_backend(c10::kPrivateUse1); },
      "Let LibTorch know the device \"emulated\"; DeviceError in a child forked after that.");
  module.def(
      "release_device_memory",
      [](const std::string& device) { release_cached_memory(c10::Device(device)); },
      py::arg("device"),
      py::call_guard<py::gil_scoped_release>(),
      "Give back to the system what LibTorch keeps of a device's memory without a use.");
  module.def(
      "register_machine_profile",
      [](const py::dict& fields) {
        return emulated::register_machine(
            emulated::machine_table().read("machine profile", map_from_python(fields)));
      },
      py::arg("fields"),
      "Index N of the device \"emulated:N\" that has the times of these fields, by full name.");
}

}  // namespace hybridgen::bindings
