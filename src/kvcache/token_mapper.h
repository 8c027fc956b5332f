// SPDX-License-Identifier: Apache-2.0
// Which tokens of one request are on which side (paper §4.2.3). With least-recently-generated
// eviction both sides are contiguous: offloaded [0, n_c), resident [n_c, n); so the original token
// order is "offloaded, then resident" and needs no sorting. Methods that drop tokens for good keep
// the positions of the others themselves (RetentionPolicy); here they are counts.
#pragma once

#include <cstdint>
#include <string>

#include "hybridgen/core/types.h"

namespace hybridgen {

class TokenMapper {
 public:
  std::int64_t num_tokens() const { return num_tokens_; }        ///< n
  std::int64_t num_offloaded() const { return num_offloaded_; }  ///< n_c
  std::int64_t num_dropped() const { return num_dropped_; }      ///< gone for good
  std::int64_t num_resident() const { return num_tokens_ - num_offloaded_ - num_dropped_; }
  TokenRange offloaded() const { return {0, num_offloaded_}; }
  TokenRange resident() const { return {num_offloaded_, num_tokens_}; }

  /// `count` new tokens at positions [n, n + count), resident. ConfigError if count < 0.
  void append(std::int64_t count);
  /// Records that `tokens`, which must start at n_c and be no more than are resident, moved to the
  /// host. ConfigError otherwise; nothing changes then.
  void offload(TokenRange tokens);

  /// Records that `count` resident tokens are gone for good. ConfigError if there are not so many;
  /// nothing changes then.
  void drop(std::int64_t count);

  friend bool operator==(const TokenMapper&, const TokenMapper&) = default;

 private:
  std::int64_t num_tokens_ = 0;
  std::int64_t num_offloaded_ = 0;
  std::int64_t num_dropped_ = 0;
};

}  // namespace hybridgen
