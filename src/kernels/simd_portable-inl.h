// SPDX-License-Identifier: Apache-2.0
// Four lanes: the compiler's own vectors, which need nothing beyond the baseline. Part of simd.h,
// which includes one file of its kind and says what all of them define.
namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

typedef float Vector __attribute__((vector_size(16)));
typedef std::int32_t IntVector __attribute__((vector_size(16)));
constexpr std::int64_t kLanes = 4;
constexpr int kAccumulators = 12;

HYBRIDGEN_INLINE Vector splat(float value) { return Vector{value, value, value, value}; }
HYBRIDGEN_INLINE Vector load(const float* p) { return read_as<Vector>(p); }
template <typename T>
HYBRIDGEN_INLINE Vector load(const T* p) {
  return Vector{load_one(p), load_one(p + 1), load_one(p + 2), load_one(p + 3)};
}
template <typename T>
HYBRIDGEN_INLINE void store(T* p, Vector v) {
  for (int lane = 0; lane < 4; ++lane) store_one(p + lane, v[lane]);
}

HYBRIDGEN_INLINE Vector add(Vector a, Vector b) { return a + b; }
HYBRIDGEN_INLINE Vector sub(Vector a, Vector b) { return a - b; }
HYBRIDGEN_INLINE Vector mul(Vector a, Vector b) { return a * b; }
HYBRIDGEN_INLINE Vector div(Vector a, Vector b) { return a / b; }
HYBRIDGEN_INLINE Vector fma(Vector a, Vector b, Vector c) { return a * b + c; }
HYBRIDGEN_INLINE Vector max_of(Vector a, Vector b) { return a > b ? a : b; }
HYBRIDGEN_INLINE Vector min_of(Vector a, Vector b) { return a < b ? a : b; }
HYBRIDGEN_INLINE Vector round_even(Vector v) {
  // Beyond 2^23 there is no fraction; below, the addition pushes it out. Callers stay below.
  const Vector shift = splat(12582912.0F);
  return (v + shift) - shift;
}
HYBRIDGEN_INLINE Vector power_of_two(Vector n) {
  const IntVector exponent = __builtin_convertvector(n, IntVector) + 127;
  return reinterpret_cast<Vector>(exponent << 23);
}
HYBRIDGEN_INLINE Vector split_exponent(Vector x, Vector& mantissa) {
  const IntVector bits = reinterpret_cast<IntVector>(x);
  const IntVector n = (bits - kRootHalfBits) >> 23;
  mantissa = reinterpret_cast<Vector>(bits - (n << 23));
  return __builtin_convertvector(n, Vector);
}
HYBRIDGEN_INLINE Vector zero_where_below(Vector v, Vector x, Vector limit) {
  return x < limit ? splat(0.0F) : v;
}
HYBRIDGEN_INLINE void transpose(Vector* v) {
  for (int i = 0; i < 4; ++i) {
    for (int j = i + 1; j < 4; ++j) {
      const float above = v[i][j];
      v[i][j] = v[j][i];
      v[j][i] = above;
    }
  }
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
