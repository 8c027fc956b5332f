// SPDX-License-Identifier: Apache-2.0
// ModelConfig and Model.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include "alone_if_forked.h"
#include "bind_options.h"
#include "bindings.h"
#include "core/option_tables.h"
#include "device/driver_thread.h"
#include "hybridgen/core/error.h"
#include "models/decoder_model.h"

namespace py = pybind11;

namespace hybridgen::bindings {
namespace {

void register_config(py::module_& module) {
  py::class_<ModelConfig> bound(
      module, "ModelConfig", "Shape and conventions of a decoder-only model.");
  bind_options(bound, model_table(), "ModelConfig", [](ModelConfig& config) {
    if (config.embedding_size == 0) config.embedding_size = config.hidden_size;
    config.validate();
  });
  bound.def("validate", &ModelConfig::validate, "Raises ConfigError for an inconsistent field.");
}

}  // namespace

void register_model(py::module_& module) {
  register_config(module);
  py::class_<DecoderModel, std::shared_ptr<DecoderModel>>(
      module, "Model", "Weights of one model on one device.")
      .def(py::init(
               [](const ModelConfig& config, const std::string& dtype, const std::string& device) {
                 // LibTorch copies weights with OpenMP, in the calling thread's team.
                 check_threads_can_start(default_intra_op_threads() - 1, "load model");
                 return std::make_shared<DecoderModel>(config, dtype_from_name(dtype), device);
               }),
           py::arg("config"),
           py::kw_only(),
           py::arg("dtype"),
           py::arg("device"))
      .def(
          "expected_tensors",
          [](const DecoderModel& model) {
            py::list tensors;
            for (const auto& [name, shape] : model.weights().expected_tensors()) {
              tensors.append(py::make_tuple(name, py::tuple(py::cast(shape))));
            }
            return tensors;
          },
          "Names and shapes of all tensors to load.")
      .def(
          "load_tensor",
          [](DecoderModel& model, const std::string& name, const at::Tensor& tensor) {
            const py::gil_scoped_release release;
            const at::NoGradGuard no_grad;
            const AloneIfForked alone;
            model.weights().load_tensor(name, tensor);
          },
          py::arg("name"),
          py::arg("tensor"),
          "Copies one tensor into the model; CheckpointError for a wrong name, shape or value.")
      .def(
          "load_dummy",
          [](DecoderModel& model, std::uint64_t seed) {
            const py::gil_scoped_release release;
            const at::NoGradGuard no_grad;
            const AloneIfForked alone;
            model.weights().load_dummy(seed);
          },
          py::arg("seed") = 0,
          "Random weights, seeded.")
      .def(
          "finish",
          [](const DecoderModel& model) { model.weights().finish(); },
          "Raises CheckpointError naming the tensors that were not loaded.")
      .def_property_readonly("weight_bytes",
                             [](const DecoderModel& model) { return model.weights().bytes(); })
      .def_property_readonly("config",
                             [](const DecoderModel& model) { return ModelConfig(model.config()); })
      .def_property_readonly(
          "dtype", [](const DecoderModel& model) { return std::string(name_of(model.dtype())); })
      .def_property_readonly("device",
                             [](const DecoderModel& model) { return model.device().name(); });
}

}  // namespace hybridgen::bindings
