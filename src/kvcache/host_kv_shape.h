// SPDX-License-Identifier: Apache-2.0
// Sizes of a HostKvStore, and what follows from them alone.
#pragma once

#include <cstdint>
#include <vector>

#include "hybridgen/core/kv_views.h"
#include "hybridgen/core/types.h"
#include "hybridgen/memory/numa_part.h"
#include "kvcache/kv_memory.h"
#include "kvcache/scoring_shadow.h"

namespace hybridgen {

struct HostKvShape {
  std::int64_t num_layers = 0;
  std::int64_t num_kv_heads = 0;  ///< G
  std::int64_t head_dim = 0;      ///< D
  DType dtype = DType::kFloat32;
  std::int64_t capacity = 0;  ///< tokens asked for; rounded up to a multiple of 32 inside
  KeyLayout key_layout = KeyLayout::kBlocked;
  KvPrecision key_precision = KvPrecision::kFull;
  KvPrecision value_precision = KvPrecision::kFull;
  int numa_node = -1;  ///< -1: the system's choice
  std::vector<NumaPart>
      numa_parts{};   ///< nodes of the KV heads; if not empty, instead of numa_node
  PagePlace place{};  ///< of what grows; numa_node decides where that is given
  /// Of rows that a device reads as they lie: full values, and full keys in rows.
  PagePins* pins = nullptr;
};

/// With the capacity rounded up. Throws what HostKvStore's constructor says of a shape.
HostKvShape checked(HostKvShape shape);

inline bool has_full_keys(const HostKvShape& shape) {
  return shape.key_precision == KvPrecision::kFull;
}
inline bool has_full_values(const HostKvShape& shape) {
  return shape.value_precision == KvPrecision::kFull;
}

/// Keys in 8 or 4 bits are the codes that a scoring shadow has of them.
ShadowShape codes_shape(const HostKvShape& shape);
/// Of full keys, and of values in whatever precision.
KvMemoryShape key_memory_shape(const HostKvShape& shape);
KvMemoryShape value_memory_shape(const HostKvShape& shape);

/// Bytes of the rows that lie beside the codes of K (or of V).
std::int64_t exact_bytes(const HostKvShape& shape);

}  // namespace hybridgen
