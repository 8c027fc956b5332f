// SPDX-License-Identifier: Apache-2.0
// What a user decides when weights are loaded: how they are held.
#pragma once

#include <cstdint>

namespace hybridgen {

/// Auto: as the checkpoint has it. Int8: a scale per output channel. Int4: a scale, or a minimum
/// and a step, per group of inputs.
enum class WeightFormat : std::uint8_t { kAuto, kInt8, kInt4 };

struct WeightOptions {
  WeightFormat format = WeightFormat::kAuto;      ///< of the layers' matrices
  std::int64_t group = 64;                        ///< inputs of a group of kInt4: 32, 64 or 128
  bool min_max = false;                           ///< of kInt4: minima too; else symmetric
  WeightFormat head = WeightFormat::kAuto;        ///< of the output head
  WeightFormat embeddings = WeightFormat::kAuto;  ///< of the token table

  /// Throws ConfigError naming the first bad value.
  void validate() const;
};

}  // namespace hybridgen
