// SPDX-License-Identifier: Apache-2.0
// What a user decides when weights are loaded: how they are held, and where they lie.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace hybridgen {

/// Auto: as the checkpoint has it. Int8: a scale per output channel. Int4: a scale, or a minimum
/// and a step, per group of inputs.
enum class WeightFormat : std::uint8_t { kAuto, kInt8, kInt4 };

/// How much of the layers' matrices lies in a place.
struct PlaceAmount {
  enum class Kind : std::uint8_t { kUnsaid, kFitting, kPart, kBytes };
  Kind kind = Kind::kUnsaid;
  double share = 0.0;      ///< of kPart, in [0, 1]
  std::int64_t bytes = 0;  ///< of kBytes: at most
  static PlaceAmount of(double share) { return {.kind = Kind::kPart, .share = share}; }
  friend bool operator==(const PlaceAmount&, const PlaceAmount&) = default;
};

struct WeightOptions {
  WeightFormat format = WeightFormat::kAuto;      ///< of the layers' matrices
  std::int64_t group = 64;                        ///< inputs of a group of kInt4: 32, 64 or 128
  bool min_max = false;                           ///< of kInt4: minima too; else symmetric
  WeightFormat head = WeightFormat::kAuto;        ///< of the output head
  WeightFormat embeddings = WeightFormat::kAuto;  ///< of the token table
  PlaceAmount device{};  ///< unsaid: all, or nothing where the host is said
  PlaceAmount host{};    ///< unsaid: what fits, where the device has not all
  std::string folder{};  ///< for what no file has as it is; empty: the system's for temporary files
  std::optional<bool> direct{};  ///< reads past the page cache; absent: if memory cannot hold them
  bool shared = false;  ///< all matrices stay in the page cache, for every process of the machine

  /// Throws ConfigError naming the first bad value.
  void validate() const;
};

}  // namespace hybridgen
