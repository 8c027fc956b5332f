// SPDX-License-Identifier: Apache-2.0
// Normalisation, rotation and the element-wise kernels: everything that works on one row at a time.
// Values are widened to float32, computed there and rounded once unless the header says otherwise.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

/// Rounded to T and widened again.
template <typename T>
HYBRIDGEN_INLINE Vector round_to(Vector v) {
  T lanes[kLanes];
  store(lanes, v);
  return load(lanes);
}
template <>
HYBRIDGEN_INLINE Vector round_to<float>(Vector v) {
  return v;
}

template <typename T>
void rms_norm_of(const NormArgs& args) {
  const T* weight = static_cast<const T*>(args.weight);
  for (std::int64_t row = 0; row < args.rows; ++row) {
    const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
    T* y = static_cast<T*>(args.y) + row * args.y_stride;
    Vector squares = zero();
    for (std::int64_t i = 0; i < args.dim; i += kLanes) {
      const Vector v = load_up_to(x + i, args.dim - i);
      squares = fma(v, v, squares);
    }
    const float mean = sum_lanes(squares) / static_cast<float>(args.dim);
    const Vector scale = splat(1.0F / __builtin_sqrtf(mean + args.eps));
    for (std::int64_t i = 0; i < args.dim; i += kLanes) {
      const std::int64_t left = args.dim - i;
      const Vector normed = round_to<T>(mul(load_up_to(x + i, left), scale));
      store_up_to(y + i, left, mul(normed, load_up_to(weight + i, left)));
    }
  }
}

template <typename T>
void layer_norm_of(const NormArgs& args) {
  const T* weight = static_cast<const T*>(args.weight);
  const T* bias = static_cast<const T*>(args.bias);
  for (std::int64_t row = 0; row < args.rows; ++row) {
    const T* x = static_cast<const T*>(args.x) + row * args.x_stride;
    T* y = static_cast<T*>(args.y) + row * args.y_stride;
    Vector sum = zero();
    for (std::int64_t i = 0; i < args.dim; i += kLanes) {
      sum = add(sum, load_up_to(x + i, args.dim - i));
    }
    const float mean = sum_lanes(sum) / static_cast<float>(args.dim);
    // The mean also fills lanes past the end, so that their deviation is 0.
    Vector squares = zero();
    for (std::int64_t i = 0; i < args.dim; i += kLanes) {
      const Vector deviation = sub(load_up_to(x + i, args.dim - i, mean), splat(mean));
      squares = fma(deviation, deviation, squares);
    }
    const float variance = sum_lanes(squares) / static_cast<float>(args.dim);
    const Vector scale = splat(1.0F / __builtin_sqrtf(variance + args.eps));
    for (std::int64_t i = 0; i < args.dim; i += kLanes) {
      const std::int64_t left = args.dim - i;
      const Vector normed = mul(sub(load_up_to(x + i, left), splat(mean)), scale);
      const Vector shift = bias != nullptr ? load_up_to(bias + i, left) : zero();
      store_up_to(y + i, left, fma(normed, load_up_to(weight + i, left), shift));
    }
  }
}

template <typename T>
void rotate_of(const RotateArgs& args) {
  const std::int64_t half = args.head_dim / 2;
  for (std::int64_t row = 0; row < args.rows; ++row) {
    const float* cosines = args.cosines + args.positions[row] * half;
    const float* sines = args.sines + args.positions[row] * half;
    for (std::int64_t head = 0; head < args.heads; ++head) {
      T* first = static_cast<T*>(args.x) + row * args.x_stride + head * args.head_dim;
      T* second = first + half;
      for (std::int64_t i = 0; i < half; i += kLanes) {
        const std::int64_t left = half - i;
        const Vector a = load_up_to(first + i, left);
        const Vector b = load_up_to(second + i, left);
        const Vector c = load_up_to(cosines + i, left);
        const Vector s = load_up_to(sines + i, left);
        store_up_to(first + i, left, sub(mul(a, c), mul(b, s)));
        store_up_to(second + i, left, add(mul(b, c), mul(a, s)));
      }
    }
  }
}

template <typename T>
void silu_gate_of(const SiluGateArgs& args) {
  for (std::int64_t row = 0; row < args.rows; ++row) {
    const T* gate = static_cast<const T*>(args.gate) + row * args.gate_stride;
    const T* up = static_cast<const T*>(args.up) + row * args.up_stride;
    T* y = static_cast<T*>(args.y) + row * args.y_stride;
    for (std::int64_t i = 0; i < args.dim; i += kLanes) {
      const std::int64_t left = args.dim - i;
      const Vector g = load_up_to(gate + i, left);
      const Vector silu = div(g, add(splat(1.0F), exp_of(sub(zero(), g))));
      store_up_to(y + i, left, mul(silu, load_up_to(up + i, left)));
    }
  }
}

void rms_norm(const NormArgs& args) {
  with_element_type(args.dtype, [&]<typename T>(const T*) { rms_norm_of<T>(args); });
}

void layer_norm(const NormArgs& args) {
  with_element_type(args.dtype, [&]<typename T>(const T*) { layer_norm_of<T>(args); });
}

void rotate(const RotateArgs& args) {
  with_element_type(args.dtype, [&]<typename T>(const T*) { rotate_of<T>(args); });
}

void silu_gate(const SiluGateArgs& args) {
  with_element_type(args.dtype, [&]<typename T>(const T*) { silu_gate_of<T>(args); });
}

void relu(DType dtype, void* x, std::int64_t count) {
  with_element_type(dtype, [&]<typename T>(const T*) {
    T* values = static_cast<T*>(x);
    for (std::int64_t i = 0; i < count; i += kLanes) {
      const std::int64_t left = count - i;
      store_up_to(values + i, left, max_of(zero(), load_up_to(values + i, left)));
    }
  });
}

void add_rows(DType dtype, void* y, const void* x, std::int64_t count) {
  with_element_type(dtype, [&]<typename T>(const T*) {
    const T* from = static_cast<const T*>(x);
    T* to = static_cast<T*>(y);
    for (std::int64_t i = 0; i < count; i += kLanes) {
      const std::int64_t left = count - i;
      store_up_to(to + i, left, add(load_up_to(to + i, left), load_up_to(from + i, left)));
    }
  });
}

void scale_to_float(DType dtype, const void* x, float scale, float* out, std::int64_t count) {
  with_element_type(dtype, [&]<typename T>(const T*) {
    const T* from = static_cast<const T*>(x);
    for (std::int64_t i = 0; i < count; i += kLanes) {
      const std::int64_t left = count - i;
      store_up_to(out + i, left, mul(load_up_to(from + i, left), splat(scale)));
    }
  });
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
