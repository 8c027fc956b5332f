// SPDX-License-Identifier: Apache-2.0
// Running scores of tokens: those of a step are added, and the least sum is found on the way, a
// vector of float64 at a time and without branches.
#pragma once

#include "kernels/cpu_kernels.h"
#include "kernels/simd.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {
namespace {

typedef double Doubles __attribute__((vector_size(sizeof(Vector))));
typedef float HalfFloats __attribute__((vector_size(sizeof(Vector) / 2)));
typedef std::int32_t HalfInts __attribute__((vector_size(sizeof(Vector) / 2)));

constexpr std::int64_t kDoubles = sizeof(Doubles) / sizeof(double);

HYBRIDGEN_INLINE Doubles splat_double(double value) { return Doubles{} + value; }

/// Of every lane's tokens the one with the least score; positions and slots as numbers, which every
/// instruction set compares and selects alike.
struct Least {
  Doubles score = splat_double(__builtin_inf());
  Doubles position = splat_double(-1.0);
  Doubles slot = splat_double(-1.0);

  HYBRIDGEN_INLINE void offer(Doubles scores, Doubles positions, Doubles slots, Doubles before) {
    const auto is_lower = (scores < score) | ((scores == score) & (positions > position));
    const auto is_better = is_lower & (positions < before);
    score = is_better ? scores : score;
    position = is_better ? positions : position;
    slot = is_better ? slots : slot;
  }

  HYBRIDGEN_INLINE std::int64_t best_slot() const {
    int best = 0;
    for (int lane = 1; lane < kDoubles; ++lane) {
      const bool is_better = score[lane] < score[best] ||
                             (score[lane] == score[best] && position[lane] > position[best]);
      best = is_better ? lane : best;
    }
    return static_cast<std::int64_t>(slot[best]);
  }
};

HYBRIDGEN_INLINE bool rows_have_nan(const ScoreSumArgs& args) {
  Vector sums = zero();  // weights and scores are not negative: no infinities cancel
  for (std::int64_t r = 0; r < args.num_rows; ++r) {
    const float* row = args.rows + r * args.row_stride;
    std::int64_t j = 0;
    for (; j + kLanes <= args.count; j += kLanes) sums = add(sums, load(row + j));
    if (j < args.count) sums = add(sums, load_some(row + j, args.count - j, 0.0F));
  }
  const float sum = sum_lanes(sums);
  return sum != sum;
}

LeastScore add_scores(const ScoreSumArgs& tokens) {
  const ScoreSumArgs args = tokens;  // the compiler need not fear that a store changes it
  if (rows_have_nan(args)) return {.slot = -1, .has_nan = true};

  const Doubles before = splat_double(static_cast<double>(args.before));
  Least least;
  Doubles slots;
  for (int lane = 0; lane < kDoubles; ++lane) slots[lane] = lane;
  std::int64_t j = 0;
  for (; j + kDoubles <= args.count; j += kDoubles) {
    auto sums = read_as<Doubles>(args.accumulated + j);
    for (std::int64_t r = 0; r < args.num_rows; ++r) {
      const auto row = read_as<HalfFloats>(args.rows + r * args.row_stride + j);
      sums += __builtin_convertvector(row, Doubles) * static_cast<double>(args.scales[r]);
    }
    write_as(args.accumulated + j, sums);
    const auto positions = read_as<HalfInts>(args.positions + j);
    least.offer(sums, __builtin_convertvector(positions, Doubles), slots, before);
    slots += static_cast<double>(kDoubles);
  }
  for (; j < args.count; ++j) {
    double sum = args.accumulated[j];
    for (std::int64_t r = 0; r < args.num_rows; ++r) {
      sum += static_cast<double>(args.rows[r * args.row_stride + j]) *
             static_cast<double>(args.scales[r]);
    }
    args.accumulated[j] = sum;
    least.offer(splat_double(sum),
                splat_double(static_cast<double>(args.positions[j])),
                splat_double(static_cast<double>(j)),
                before);
  }
  return {.slot = least.best_slot(), .has_nan = false};
}

}  // namespace
}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
