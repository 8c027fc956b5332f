// SPDX-License-Identifier: Apache-2.0
// Rows of scores for kernels that choose by them, and work memory that is not clean.
#pragma once

#include "device_copy.h"

namespace hybridgen::kernels::test {

struct Rows {
  std::int64_t groups = 1;
  std::vector<float> scores;  // [groups, tokens]

  std::int64_t tokens() const { return static_cast<std::int64_t>(scores.size()) / groups; }
};

/// Rows that are hard for one digit or another.
inline std::vector<Rows> hard_rows(std::int64_t groups, std::int64_t tokens) {
  const std::int64_t count = groups * tokens;
  std::vector<Rows> all;
  all.push_back({groups, random_floats(count, 3)});
  const auto add = [&](auto change) {
    all.push_back(all.front());
    for (std::size_t i = 0; i < all.back().scores.size(); ++i) {
      all.back().scores[i] = change(all.front().scores[i], i);
    }
  };
  add([](float, std::size_t) { return 4.0F; });
  add([](float x, std::size_t) { return std::round(2.0F * x); });  // both zeros, many equal ones
  add([](float, std::size_t i) {  // keys that differ in the last digit alone, in falling order
    return std::bit_cast<float>(0xc2000000U + static_cast<std::uint32_t>(i % 200));
  });
  add([](float, std::size_t i) { return std::bit_cast<float>(static_cast<std::uint32_t>(i)); });
  add([](float, std::size_t i) {  // sign, exponent and mantissa anyhow, but for NaN
    const auto bits = static_cast<std::uint32_t>(i * 2654435761U);
    return std::bit_cast<float>((bits & 0x7f800000U) == 0x7f800000U ? bits & 0xff800000U : bits);
  });
  add([](float x, std::size_t i) { return i % 3 == 0 ? x : -kInfinity; });
  add([](float x, std::size_t i) { return i % 5 == 0 ? kInfinity : x; });
  return all;
}

}  // namespace hybridgen::kernels::test
