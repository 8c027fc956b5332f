// SPDX-License-Identifier: Apache-2.0
// One register_* function per file of bindings; module.cpp calls them in this order.
#pragma once

#include <pybind11/pybind11.h>

namespace hybridgen::bindings {

void register_errors(pybind11::module_& module);
void register_info(pybind11::module_& module);
/// Memory nodes and their tiers.
void register_host_tiers(pybind11::module_& module);
/// What Python's option classes are made from.
void register_options(pybind11::module_& module);
void register_model(pybind11::module_& module);
/// Quantised tensors of files.
void register_unpack(pybind11::module_& module);
/// Method (compositions of a user's own) and selectors written in Python.
void register_methods(pybind11::module_& module);
void register_engine(pybind11::module_& module);
/// What this machine's CPU does.
void register_measurements(pybind11::module_& module);
/// Profiles of machines that are emulated.
void register_machines(pybind11::module_& module);

}  // namespace hybridgen::bindings
