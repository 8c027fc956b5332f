// SPDX-License-Identifier: Apache-2.0
// ModelConfig and Model. The only file that takes tensors from Python.
#include <ATen/core/grad_mode.h>
#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include "bindings.h"
#include "device/driver_thread.h"
#include "hybridgen/core/error.h"
#include "models/decoder_model.h"
#include "runtime/process.h"

namespace py = pybind11;

namespace hybridgen::bindings {
namespace {

const MakerProcess importer;

// While it lives, LibTorch works in the calling thread alone if this is a forked child: there the
// thread may have an OpenMP team of the parent's, and would wait for its threads for ever.
class AloneIfForked {
 public:
  AloneIfForked() {
    if (!importer.is_this_one()) {
      set_intra_op_threads(1);
    }
  }
  ~AloneIfForked() { set_intra_op_threads(threads_); }
  AloneIfForked(const AloneIfForked&) = delete;
  AloneIfForked& operator=(const AloneIfForked&) = delete;

 private:
  int threads_ = default_intra_op_threads();
};

template <typename Enum, std::size_t N>
Enum parse(const std::string& name,
           const std::pair<const char*, Enum> (&choices)[N],
           const char* field) {
  std::string allowed;
  for (const auto& [text, value] : choices) {
    if (name == text) {
      return value;
    }
    allowed += (allowed.empty() ? "" : ", ") + std::string(text);
  }
  throw ConfigError(message("[model config] ", field, " is '", name, "'; allowed: ", allowed));
}

template <typename Enum, std::size_t N>
std::string text_of(Enum value, const std::pair<const char*, Enum> (&choices)[N]) {
  for (const auto& [text, candidate] : choices) {
    if (candidate == value) {
      return text;
    }
  }
  return "";
}

constexpr std::pair<const char*, NormKind> kNorms[] = {{"rms", NormKind::kRms},
                                                       {"layer", NormKind::kLayer}};
constexpr std::pair<const char*, Activation> kActivations[] = {{"silu_gate", Activation::kSiluGate},
                                                               {"relu", Activation::kRelu}};
constexpr std::pair<const char*, PositionKind> kPositions[] = {{"rotary", PositionKind::kRotary},
                                                               {"learned", PositionKind::kLearned}};

RopeScaling parse_scaling(const py::object& value) {
  RopeScaling scaling;
  if (!value.is_none()) {
    const auto fields = value.cast<py::dict>();
    scaling.factor = fields["factor"].cast<double>();
    scaling.low_freq_factor = fields["low_freq_factor"].cast<double>();
    scaling.high_freq_factor = fields["high_freq_factor"].cast<double>();
    scaling.original_max_positions = fields["original_max_positions"].cast<std::int64_t>();
  }
  return scaling;
}

void register_config(py::module_& module) {
  py::class_<ModelConfig>(module, "ModelConfig", "Shape and conventions of a decoder-only model.")
      .def(py::init([](const std::string& architecture,
                       std::int64_t num_layers,
                       std::int64_t hidden_size,
                       std::int64_t num_heads,
                       std::int64_t num_kv_heads,
                       std::int64_t head_dim,
                       std::int64_t ffn_size,
                       std::int64_t vocab_size,
                       std::int64_t max_positions,
                       std::int64_t embedding_size,
                       const std::string& norm,
                       double norm_eps,
                       bool pre_norm,
                       bool final_norm,
                       const std::string& activation,
                       const std::string& position,
                       std::int64_t position_offset,
                       double rope_theta,
                       const py::object& rope_scaling,
                       bool qkv_bias,
                       bool output_bias,
                       bool ffn_bias,
                       bool tie_embeddings) {
             ModelConfig config;
             config.architecture = architecture;
             config.num_layers = num_layers;
             config.hidden_size = hidden_size;
             config.num_heads = num_heads;
             config.num_kv_heads = num_kv_heads;
             config.head_dim = head_dim;
             config.ffn_size = ffn_size;
             config.vocab_size = vocab_size;
             config.max_positions = max_positions;
             config.embedding_size = embedding_size == 0 ? hidden_size : embedding_size;
             config.norm = parse(norm, kNorms, "norm");
             config.norm_eps = norm_eps;
             config.pre_norm = pre_norm;
             config.final_norm = final_norm;
             config.activation = parse(activation, kActivations, "activation");
             config.position = parse(position, kPositions, "position");
             config.position_offset = position_offset;
             config.rope_theta = rope_theta;
             config.rope_scaling = parse_scaling(rope_scaling);
             config.qkv_bias = qkv_bias;
             config.output_bias = output_bias;
             config.ffn_bias = ffn_bias;
             config.tie_embeddings = tie_embeddings;
             config.validate();
             return config;
           }),
           py::kw_only(),
           py::arg("architecture"),
           py::arg("num_layers"),
           py::arg("hidden_size"),
           py::arg("num_heads"),
           py::arg("num_kv_heads"),
           py::arg("head_dim"),
           py::arg("ffn_size"),
           py::arg("vocab_size"),
           py::arg("max_positions"),
           py::arg("embedding_size") = 0,
           py::arg("norm") = "rms",
           py::arg("norm_eps") = 1e-5,
           py::arg("pre_norm") = true,
           py::arg("final_norm") = true,
           py::arg("activation") = "silu_gate",
           py::arg("position") = "rotary",
           py::arg("position_offset") = 0,
           py::arg("rope_theta") = 10000.0,
           py::arg("rope_scaling") = py::none(),
           py::arg("qkv_bias") = false,
           py::arg("output_bias") = false,
           py::arg("ffn_bias") = false,
           py::arg("tie_embeddings") = false)
      .def("validate", &ModelConfig::validate, "Raises ConfigError for an inconsistent field.")
      .def_readonly("architecture", &ModelConfig::architecture)
      .def_readonly("num_layers", &ModelConfig::num_layers)
      .def_readonly("hidden_size", &ModelConfig::hidden_size)
      .def_readonly("num_heads", &ModelConfig::num_heads)
      .def_readonly("num_kv_heads", &ModelConfig::num_kv_heads)
      .def_readonly("head_dim", &ModelConfig::head_dim)
      .def_readonly("ffn_size", &ModelConfig::ffn_size)
      .def_readonly("vocab_size", &ModelConfig::vocab_size)
      .def_readonly("max_positions", &ModelConfig::max_positions)
      .def_readonly("embedding_size", &ModelConfig::embedding_size)
      .def_readonly("norm_eps", &ModelConfig::norm_eps)
      .def_readonly("pre_norm", &ModelConfig::pre_norm)
      .def_readonly("final_norm", &ModelConfig::final_norm)
      .def_readonly("position_offset", &ModelConfig::position_offset)
      .def_readonly("rope_theta", &ModelConfig::rope_theta)
      .def_readonly("qkv_bias", &ModelConfig::qkv_bias)
      .def_readonly("output_bias", &ModelConfig::output_bias)
      .def_readonly("ffn_bias", &ModelConfig::ffn_bias)
      .def_readonly("tie_embeddings", &ModelConfig::tie_embeddings)
      .def_property_readonly("norm",
                             [](const ModelConfig& config) { return text_of(config.norm, kNorms); })
      .def_property_readonly(
          "activation",
          [](const ModelConfig& config) { return text_of(config.activation, kActivations); })
      .def_property_readonly(
          "position",
          [](const ModelConfig& config) { return text_of(config.position, kPositions); })
      .def_property_readonly("rope_scaling", [](const ModelConfig& config) -> py::object {
        if (config.rope_scaling.factor == 1.0) {
          return py::none();
        }
        py::dict fields;
        fields["factor"] = config.rope_scaling.factor;
        fields["low_freq_factor"] = config.rope_scaling.low_freq_factor;
        fields["high_freq_factor"] = config.rope_scaling.high_freq_factor;
        fields["original_max_positions"] = config.rope_scaling.original_max_positions;
        return fields;
      });
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
