// SPDX-License-Identifier: Apache-2.0
#include "kernels/onednn_linear.h"

#include <unordered_map>

#include "hybridgen/core/error.h"

#if defined(HYBRIDGEN_HAS_ONEDNN)
#include <dnnl.hpp>
#endif

namespace hybridgen::kernels {

#if defined(HYBRIDGEN_HAS_ONEDNN)

namespace {

using Memory = dnnl::memory;

void multiply(const LinearArgs& args, std::int64_t out_features) {
  const auto type =
      args.dtype == DType::kFloat32 ? Memory::data_type::f32 : Memory::data_type::bf16;
  const Memory::desc x({args.rows, args.in_features}, type, Memory::dims{args.x_stride, 1});
  const Memory::desc y({args.rows, out_features}, type, Memory::dims{args.y_stride, 1});
  const Memory::desc weight(
      {args.in_features, out_features}, type, Memory::dims{1, args.in_features});
  const Memory::desc bias({1, out_features}, type, Memory::dims{out_features, 1});

  // oneDNN finds what it has compiled for these descriptions in a cache of its own.
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  const dnnl::matmul product(args.bias == nullptr
                                 ? dnnl::matmul::primitive_desc(engine, x, weight, y)
                                 : dnnl::matmul::primitive_desc(engine, x, weight, bias, y));
  const auto memory = [](const Memory::desc& description, const void* data) {
    return Memory(description, engine, const_cast<void*>(data));
  };
  std::unordered_map<int, Memory> operands = {{DNNL_ARG_SRC, memory(x, args.x)},
                                              {DNNL_ARG_WEIGHTS, memory(weight, args.weight)},
                                              {DNNL_ARG_DST, memory(y, args.y)}};
  if (args.bias != nullptr) operands.emplace(DNNL_ARG_BIAS, memory(bias, args.bias));
  dnnl::stream stream(engine);
  product.execute(stream, operands);
  stream.wait();
}

}  // namespace

bool has_onednn() { return true; }

void onednn_linear(const LinearArgs& args, std::int64_t out_features) {
  if (args.dtype == DType::kFloat16 || args.y_dtype != args.dtype) {
    throw ConfigError(message("[onednn_linear] dtype is ",
                              name_of(args.dtype),
                              " and that of y ",
                              name_of(args.y_dtype),
                              "; allowed: float32 or bfloat16 for both; use the built-in linear "
                              "kernel for others"));
  }
  if (args.rows <= 0 || out_features <= 0) return;
  try {
    multiply(args, out_features);
  } catch (const dnnl::error& error) {
    if (error.status == dnnl_invalid_arguments) {
      throw ConfigError(message("[onednn_linear] rows, in and out are ",
                                args.rows,
                                ", ",
                                args.in_features,
                                " and ",
                                out_features,
                                ", strides ",
                                args.x_stride,
                                " and ",
                                args.y_stride,
                                "; allowed: what oneDNN takes (",
                                error.what(),
                                ")"));
    }
    throw DeviceError(message("[onednn_linear] oneDNN status is ",
                              static_cast<int>(error.status),
                              " (",
                              error.what(),
                              ") for rows ",
                              args.rows,
                              ", in ",
                              args.in_features,
                              ", out ",
                              out_features,
                              "; allowed: 0; use the built-in linear kernel instead"));
  }
}

#else

bool has_onednn() { return false; }

void onednn_linear(const LinearArgs& /*args*/, std::int64_t /*out_features*/) {
  throw DeviceError(
      "[onednn_linear] linear backend is \"onednn\"; allowed in this build: the built-in kernel "
      "(oneDNN was not found when it was compiled); rebuild with oneDNN or choose the built-in "
      "one");
}

#endif

}  // namespace hybridgen::kernels
