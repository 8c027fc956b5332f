// SPDX-License-Identifier: Apache-2.0
// Which offloaded token makes room for a new one in a host pool of limited size (InfiniGen, Lee et
// al., OSDI 2024; snu-comparch/InfiniGen): decided per (layer, KV head), as each fetches its own
// tokens. Pure decisions; the pipeline moves the rows. What was fetched when must be saved with a
// request.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "hybridgen/parts/part_roles.h"
#include "parts/parts.h"

namespace hybridgen {

class HostPool final : public HostPlacement {
 public:
  /// ConfigError unless all sizes are >= 1.
  HostPool(std::int64_t num_layers,
           std::int64_t num_kv_heads,
           std::int64_t capacity,
           PoolPolicy policy);

  std::int64_t capacity() const { return capacity_; }
  std::int64_t size() const { return size_; }  ///< slots in use, the same for all

  /// The next `count` tokens took the next free slots, everywhere. ConfigError beyond the capacity.
  void append(std::int64_t count);
  /// The tokens in `slots` were fetched in this step.
  void on_fetch(std::int64_t layer,
                std::int64_t kv_head,
                std::span<const std::int32_t> slots) override;
  void on_offload(const OffloadedRows& rows) override;
  void end_step() override { ++step_; }
  std::int64_t replace(std::int64_t layer, std::int64_t kv_head) override;
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
