// SPDX-License-Identifier: Apache-2.0
#include "kernels/onednn_linear.h"

#include <map>
#include <unordered_map>
#include <utility>

#include "hybridgen/core/error.h"

#if defined(HYBRIDGEN_HAS_ONEDNN)
#include <dnnl.hpp>
#endif

namespace hybridgen::kernels {

#if defined(HYBRIDGEN_HAS_ONEDNN)

namespace {

// oneDNN picks the weight's layout for one row count; that of a medium prefill suits the others.
constexpr std::int64_t kLayoutRows = 128;

using Tag = dnnl::memory::format_tag;

/// Runs `action`, turning oneDNN's exception into ours.
template <typename Action>
auto translated(const char* operation, Action action) {
  try {
    return action();
  } catch (const dnnl::error& error) {
    throw DeviceError(message("[",
                              operation,
                              "] oneDNN status is ",
                              static_cast<int>(error.status),
                              " (",
                              error.what(),
                              "); allowed: 0; use the built-in linear kernel instead"));
  }
}

}  // namespace

struct OneDnnLinear::Implementation {
  Implementation(
      DType dtype, const void* weight, const void* bias, std::int64_t in, std::int64_t out)
      : in_features(in),
        out_features(out),
        type(dtype == DType::kFloat32 ? dnnl::memory::data_type::f32
                                      : dnnl::memory::data_type::bf16),
        has_bias(bias != nullptr),
        engine(dnnl::engine::kind::cpu, 0),
        stream(engine) {
    const dnnl::memory::desc any({in, out}, type, Tag::any);
    packed_weight = dnnl::memory(describe(kLayoutRows, any).weights_desc(), engine);
    // W is [out, in] row by row, which is [in, out] column by column.
    dnnl::memory plain({{in, out}, type, Tag::ba}, engine, const_cast<void*>(weight));
    dnnl::reorder(plain, packed_weight).execute(stream, plain, packed_weight);
    if (has_bias) {
      // Shape and type are those of a one-row memory; copied because the caller's may go away.
      packed_bias = dnnl::memory({{1, out}, type, Tag::ab}, engine);
      dnnl::memory given({{1, out}, type, Tag::ab}, engine, const_cast<void*>(bias));
      dnnl::reorder(given, packed_bias).execute(stream, given, packed_bias);
    }
    stream.wait();
  }

  dnnl::matmul::primitive_desc describe(std::int64_t rows,
                                        const dnnl::memory::desc& weight_desc) const {
    const dnnl::memory::desc x({rows, in_features}, type, Tag::ab);
    const dnnl::memory::desc y({rows, out_features}, type, Tag::ab);
    if (!has_bias) return {engine, x, weight_desc, y};
    return {engine, x, weight_desc, dnnl::memory::desc({1, out_features}, type, Tag::ab), y};
  }

  void run(const void* x, std::int64_t rows, void* y) {
    auto found = primitives.find(rows);
    if (found == primitives.end()) {
      const dnnl::matmul primitive(describe(rows, packed_weight.get_desc()));
      found = primitives.emplace(rows, primitive).first;
    }
    dnnl::memory x_memory({{rows, in_features}, type, Tag::ab}, engine, const_cast<void*>(x));
    dnnl::memory y_memory({{rows, out_features}, type, Tag::ab}, engine, y);
    std::unordered_map<int, dnnl::memory> arguments = {
        {DNNL_ARG_SRC, x_memory}, {DNNL_ARG_WEIGHTS, packed_weight}, {DNNL_ARG_DST, y_memory}};
    if (has_bias) arguments.emplace(DNNL_ARG_BIAS, packed_bias);
    found->second.execute(stream, arguments);
    stream.wait();
  }

  std::int64_t in_features;
  std::int64_t out_features;
  dnnl::memory::data_type type;
  bool has_bias;
  dnnl::engine engine;
  dnnl::stream stream;
  dnnl::memory packed_weight;
  dnnl::memory packed_bias;
  std::map<std::int64_t, dnnl::matmul> primitives;  ///< by row count
};

bool has_onednn() { return true; }

OneDnnLinear::OneDnnLinear(DType dtype,
                           const void* weight,
                           const void* bias,
                           std::int64_t in_features,
                           std::int64_t out_features) {
  if (dtype == DType::kFloat16) {
    throw ConfigError(
        "[OneDnnLinear] dtype is float16; allowed: float32, bfloat16; convert the weight to one of "
        "these");
  }
  if (in_features <= 0 || out_features <= 0) {
    throw ConfigError(message("[OneDnnLinear] weight is [",
                              out_features,
                              ", ",
                              in_features,
                              "]; allowed: both sizes >= 1; pass the weight's true shape"));
  }
  implementation_ = translated("OneDnnLinear", [&] {
    return std::make_unique<Implementation>(dtype, weight, bias, in_features, out_features);
  });
}

void OneDnnLinear::run(const void* x, std::int64_t rows, void* y) {
  if (rows <= 0) return;
  translated("OneDnnLinear::run", [&] { implementation_->run(x, rows, y); });
}

#else

struct OneDnnLinear::Implementation {};

bool has_onednn() { return false; }

OneDnnLinear::OneDnnLinear(DType /*dtype*/,
                           const void* /*weight*/,
                           const void* /*bias*/,
                           std::int64_t /*in_features*/,
                           std::int64_t /*out_features*/) {
  throw DeviceError(
      "[OneDnnLinear] linear backend is \"onednn\"; allowed in this build: the built-in kernel "
      "(oneDNN was not found when it was compiled); rebuild with oneDNN or choose the built-in "
      "one");
}

void OneDnnLinear::run(const void* /*x*/, std::int64_t /*rows*/, void* /*y*/) {}

#endif

OneDnnLinear::~OneDnnLinear() = default;
OneDnnLinear::OneDnnLinear(OneDnnLinear&& other) noexcept = default;
OneDnnLinear& OneDnnLinear::operator=(OneDnnLinear&& other) noexcept = default;

}  // namespace hybridgen::kernels
