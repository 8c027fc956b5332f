// SPDX-License-Identifier: Apache-2.0
// Which offloaded token makes room for a new one in a host pool of limited size (InfiniGen, Lee et
// al., OSDI 2024; snu-comparch/InfiniGen): decided per (layer, KV head), as each fetches its own
// tokens. Pure decisions; the pipeline moves the rows.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

namespace hybridgen {

/// Fifo: the oldest token. Lru: of the older half the one fetched longest ago. Counter: of the
/// older half the one fetched least often. Ties: the oldest.
enum class PoolPolicy : std::uint8_t { kFifo, kLru, kCounter };
/// "fifo", "lru" or "counter"; ConfigError for anything else.
PoolPolicy pool_policy_from_name(std::string_view name);

class PoolEviction {
 public:
  /// ConfigError unless all sizes are >= 1.
  PoolEviction(std::int64_t num_layers,
               std::int64_t num_kv_heads,
               std::int64_t capacity,
               PoolPolicy policy);

  std::int64_t capacity() const { return capacity_; }
  std::int64_t size() const { return size_; }  ///< slots in use, the same for all

  /// The next `count` tokens took the next free slots, everywhere. ConfigError beyond the capacity.
  void append(std::int64_t count);
  /// The tokens in `slots` were fetched in this step.
  void on_fetch(std::int64_t layer, std::int64_t kv_head, std::span<const std::int32_t> slots);
  void end_step() { ++step_; }
  /// The slot that a new token takes; its token is gone. Once per token for every (layer, KV head).
  std::int64_t replace(std::int64_t layer, std::int64_t kv_head);
  /// Age order of the token in a slot: larger is newer.
  std::int64_t order_of(std::int64_t layer, std::int64_t kv_head, std::int64_t slot) const;

 private:
  struct Token {
    std::int64_t order = 0;
    std::int64_t last_fetch = -1;
    std::int64_t num_fetches = 0;
  };
  struct Head {
    std::vector<Token> tokens;
    std::vector<std::int32_t> by_age;  ///< slots, oldest first
    std::int64_t next_order = 0;
  };
  Head& head(std::int64_t layer, std::int64_t kv_head);

  std::int64_t num_kv_heads_;
  std::int64_t capacity_;
  PoolPolicy policy_;
  std::int64_t size_ = 0;
  std::int64_t step_ = 0;
  std::vector<Head> heads_;
};

}  // namespace hybridgen
