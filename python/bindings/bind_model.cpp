// SPDX-License-Identifier: Apache-2.0
// ModelConfig and Model.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include <optional>

#include "alone_if_forked.h"
#include "bind_options.h"
#include "bindings.h"
#include "core/option_tables.h"
#include "device/driver_thread.h"
#include "hybridgen/core/error.h"
#include "models/decoder_model.h"
#include "models/weight_homes.h"
#include "weight_formats.h"

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

/// Formats of the matrices that such options code in such a model.
py::dict weight_formats(const ModelConfig& config, const py::dict& weights) {
  const WeightFormats made = weight_formats_from(weights, {});
  py::dict formats;
  const Weights model(config, DType::kFloat32, at::kMeta, {}, made);
  for (const auto& [name, shape] : model.expected_tensors()) {
    if (shape.size() != 2) continue;
    const auto format = coded_format(made, name, shape[1]);
    if (format) formats[py::str(name)] = to_dict(*format);
  }
  return formats;
}

py::dict code_tensor(const at::Tensor& tensor, const py::dict& fields) {
  const kernels::CodedFormat format = format_from(fields);
  LinearWeight coded;
  {
    const py::gil_scoped_release release;
    const at::NoGradGuard no_grad;
    const AloneIfForked alone;
    coded = allocate_coded(format,
                           tensor.size(0),
                           tensor.size(1),
                           [](const std::vector<std::int64_t>& shape, at::ScalarType type) {
                             return at::empty(shape, type);
                           });
    if (!code_matrix(tensor, coded)) {
      throw CheckpointError(
          "[quantize] a tensor holds NaN, infinity, or numbers too large for its scales; allowed: "
          "finite numbers; the file is damaged, or needs another format of weights");
    }
  }
  py::dict parts;
  parts["codes"] = coded.codes;
  parts["scales"] = coded.scales;
  if (coded.minima.defined()) parts["minima"] = coded.minima;
  return parts;
}

}  // namespace

void register_model(py::module_& module) {
  register_config(module);
  module.def(
      "weight_formats",
      weight_formats,
      py::arg("config"),
      py::arg("weights"),
      "Of each matrix that such options of a WeightConfig code in such a model: bits, group, "
      "minima and scales, as Model takes them.");
  module.def(
      "tensor_shapes",
      [](const ModelConfig& config) {
        return Weights(config, DType::kFloat32, at::kMeta).expected_tensors();
      },
      py::arg("config"),
      "Names and shapes of all tensors that such a model loads.");
  module.def("code_matrix",
             code_tensor,
             py::arg("tensor"),
             py::arg("format"),
             "A matrix [outputs, inputs] of any floating dtype as codes, scales and, where the "
             "format has them, minima: those that loading makes.");
  py::class_<DecoderModel, std::shared_ptr<DecoderModel>>(
      module, "Model", "Weights of one model on one device.")
      .def(
          py::init([](const ModelConfig& config,
                      const std::string& dtype,
                      const std::string& device,
                      const py::dict& weights,
                      const py::dict& formats) {
            // LibTorch copies weights with OpenMP, in the calling thread's team.
            check_threads_can_start(default_intra_op_threads() - 1, "load model");
            WeightFormats held = weight_formats_from(weights, formats);
            const DType type = dtype_from_name(dtype);
            WeightHomes homes = weight_homes(held, config, type, DeviceContext(device));
            return std::make_shared<DecoderModel>(
                config, type, device, std::move(homes), std::move(held));
          }),
          py::arg("config"),
          py::kw_only(),
          py::arg("dtype"),
          py::arg("device"),
          py::arg("weights") = py::dict(),
          py::arg("formats") = py::dict(),
          "`weights`: options of a WeightConfig. `formats`: of each matrix that the checkpoint has "
          "codes of, by its name here, bits, group (inputs), scales (\"float16\" or \"float32\") "
          "and minima (whether there are any); it comes before `weights`.")
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
          "load_coded",
          [](DecoderModel& model,
             const std::string& name,
             const at::Tensor& codes,
             const at::Tensor& scales,
             const std::optional<at::Tensor>& minima,
             int bits,
             std::int64_t group) {
            const py::gil_scoped_release release;
            const at::NoGradGuard no_grad;
            const AloneIfForked alone;
            LinearWeight coded;
            coded.codes = codes;
            coded.scales = scales;
            if (minima) coded.minima = *minima;
            coded.bits = bits;
            coded.group = group;
            model.weights().load_coded(name, coded);
          },
          py::arg("name"),
          py::kw_only(),
          py::arg("codes"),
          py::arg("scales"),
          py::arg("minima") = py::none(),
          py::arg("bits"),
          py::arg("group"),
          "Copies one matrix that is coded already (src/kernels/coded_rows.h says how codes lie) "
          "into the model; CheckpointError for another format than the model was made for.")
      .def(
          "is_read_in_place",
          [](const DecoderModel& model, const std::string& name) {
            return model.weights().is_on_disk(name);
          },
          py::arg("name"),
          "Whether load_from_file() takes this tensor, if a file has it in the model's dtype.")
      .def(
          "load_from_file",
          [](DecoderModel& model,
             const std::string& name,
             const std::string& path,
             std::int64_t offset) { model.weights().load_from_file(name, path, offset); },
          py::arg("name"),
          py::kw_only(),
          py::arg("path"),
          py::arg("offset"),
          "Lets one tensor lie where it is in a file, to be read whenever its layer is used.")
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
          [](DecoderModel& model) {
            const py::gil_scoped_release release;
            const AloneIfForked alone;
            model.weights().finish();
          },
          "Raises CheckpointError naming the tensors that were not loaded.")
      .def_property_readonly(
          "weight_bytes",
          [](const DecoderModel& model) { return model.weights().bytes(); },
          "Of all weights, wherever they lie.")
      .def_property_readonly(
          "host_weight_bytes",
          [](const DecoderModel& model) {
            const bool is_apart = model.device().device().is_cuda();
            return model.weights().streamed().host_bytes +
                   (is_apart ? 0 : model.weights().device_bytes());
          },
          "Of those in host memory, an emulated device's included.")
      .def_property_readonly("config",
                             [](const DecoderModel& model) { return ModelConfig(model.config()); })
      .def_property_readonly(
          "dtype", [](const DecoderModel& model) { return std::string(name_of(model.dtype())); })
      .def_property_readonly("device",
                             [](const DecoderModel& model) { return model.device().name(); });
}

}  // namespace hybridgen::bindings
