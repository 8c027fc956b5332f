// SPDX-License-Identifier: Apache-2.0
// The running scores of retained tokens: those of a step are added, and the token with the least
// of them is found, a vector of float64 at a time and without branches.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

typedef double Doubles __attribute__((vector_size(sizeof(WideVector))));
typedef std::int64_t Longs __attribute__((vector_size(sizeof(WideVector))));
typedef std::int32_t Positions __attribute__((vector_size(sizeof(WideVector) / 2)));

constexpr std::int64_t kDoubles = sizeof(Doubles) / sizeof(double);

/// Positions as numbers, which every instruction set compares.
HYBRIDGEN_INLINE Doubles to_doubles(const std::int32_t* positions) {
  return __builtin_convertvector(read_as<Positions>(positions), Doubles);
}

HYBRIDGEN_INLINE Doubles splat_double(double value) { return Doubles{} + value; }

/// Calls visit(step, positions, accumulated, j) for every whole vector of tokens from slot j on,
/// and for the rest, if any, with copies that are filled up with tokens that may not go.
template <typename Visit>
HYBRIDGEN_INLINE void for_vectors(const RetentionArgs& args, const Visit& visit) {
  const std::int64_t count = args.count;
  std::int64_t j = 0;
  for (; j + kDoubles <= count; j += kDoubles) {
    visit(args.step + j, args.positions + j, args.accumulated + j, j);
  }
  if (j == count) return;
  double step[kDoubles] = {};
  double accumulated[kDoubles] = {};
  std::int32_t positions[kDoubles];
  for (std::int64_t i = 0; i < kDoubles; ++i) positions[i] = INT32_MAX;
  for (std::int64_t i = j; i < count; ++i) {
    step[i - j] = args.step[i];
    positions[i - j] = args.positions[i];
    accumulated[i - j] = args.accumulated[i];
  }
  visit(step, positions, accumulated, j);
  for (std::int64_t i = j; i < count; ++i) args.accumulated[i] = accumulated[i - j];
}

void accumulate(const float* x, std::int64_t count, double* y) {
  typedef float Floats __attribute__((vector_size(sizeof(WideVector) / 2)));
  std::int64_t j = 0;
  for (; j + kDoubles <= count; j += kDoubles) {
    const Doubles wide = __builtin_convertvector(read_as<Floats>(x + j), Doubles);
    write_as(y + j, read_as<Doubles>(y + j) + wide);
  }
  for (; j < count; ++j) y[j] += static_cast<double>(x[j]);
}

RetentionResult retain(const RetentionArgs& tokens) {
  const RetentionArgs args = tokens;  // the compiler need not fear that a store changes it
  Longs is_nan = {};
  for_vectors(args, [&](const double* step, const std::int32_t*, const double*, std::int64_t) {
    const auto value = read_as<Doubles>(step);
    is_nan |= value != value;
  });
  for (std::int64_t i = 0; i < kDoubles; ++i) {
    if (is_nan[i] != 0) return {.slot = -1, .has_nan = true};
  }

  const Doubles before = splat_double(static_cast<double>(args.before));
  const Doubles none = splat_double(__builtin_inf());
  Doubles least = none;
  for_vectors(args,
              [&](const double* step, const std::int32_t* at, double* accumulated, std::int64_t) {
                const Doubles sum = read_as<Doubles>(accumulated) + read_as<Doubles>(step);
                write_as(accumulated, sum);
                const Doubles competing = to_doubles(at) < before ? sum : none;
                least = competing < least ? competing : least;
              });
  double lowest = least[0];
  for (std::int64_t i = 1; i < kDoubles; ++i) lowest = least[i] < lowest ? least[i] : lowest;

  const Doubles nobody = splat_double(-1.0);
  Doubles newest = nobody;
  for_vectors(args,
              [&](const double*, const std::int32_t* at, const double* accumulated, std::int64_t) {
                const Doubles position = to_doubles(at);
                const Doubles allowed = position < before ? position : nobody;
                const Doubles tied = read_as<Doubles>(accumulated) == lowest ? allowed : nobody;
                newest = tied > newest ? tied : newest;
              });
  double last = newest[0];
  for (std::int64_t i = 1; i < kDoubles; ++i) last = newest[i] > last ? newest[i] : last;
  if (last < 0.0) return {};
  // No two tokens have the same position.
  const auto wanted = static_cast<std::int32_t>(last);
  const auto count = static_cast<std::int32_t>(args.count);
  std::int32_t slot = -1;
  for (std::int32_t j = 0; j < count; ++j) slot = args.positions[j] == wanted ? j : slot;
  return {.slot = slot, .has_nan = false};
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
