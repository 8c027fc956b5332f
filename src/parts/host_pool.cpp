// SPDX-License-Identifier: Apache-2.0
#include "parts/host_pool.h"

#include <algorithm>
#include <utility>

#include "hybridgen/core/error.h"

namespace hybridgen {

HostPool::HostPool(std::int64_t num_layers,
                   std::int64_t num_kv_heads,
                   std::int64_t capacity,
                   PoolPolicy policy)
    : num_kv_heads_(num_kv_heads), capacity_(capacity), policy_(policy) {
  if (num_layers < 1 || num_kv_heads < 1 || capacity < 1) {
    throw ConfigError(message("[pool] layers, KV heads and capacity are ",
                              num_layers,
                              ", ",
                              num_kv_heads,
                              " and ",
                              capacity,
                              "; allowed: >= 1 each"));
  }
  heads_.resize(static_cast<std::size_t>(num_layers * num_kv_heads));
}

HostPool::Head& HostPool::head(std::int64_t layer, std::int64_t kv_head) {
  return heads_[static_cast<std::size_t>(layer * num_kv_heads_ + kv_head)];
}

void HostPool::append(std::int64_t count) {
  if (count < 0 || count > capacity_ - size_) {
    throw ConfigError(message("[pool] tokens to append are ",
                              count,
                              "; allowed: 0 to ",
                              capacity_ - size_,
                              "; replace others once the pool is full"));
  }
  for (Head& each : heads_) {
    for (std::int64_t i = 0; i < count; ++i) {
      each.by_age.push_back(static_cast<std::int32_t>(each.tokens.size()));
      each.tokens.push_back({.order = each.next_order++});
    }
  }
  size_ += count;
}

void HostPool::on_offload(const OffloadedRows& rows) {
  if (rows.layer == 0) {  // once for all layers
    append(rows.tokens.size());
  }
}

void HostPool::on_fetch(std::int64_t layer,
                        std::int64_t kv_head,
                        std::span<const std::int32_t> slots) {
  Head& each = head(layer, kv_head);
  for (const std::int32_t slot : slots) {
    Token& token = each.tokens[static_cast<std::size_t>(slot)];
    token.last_fetch = step_;
    ++token.num_fetches;
  }
}

std::int64_t HostPool::replace(std::int64_t layer, std::int64_t kv_head) {
  Head& each = head(layer, kv_head);
  if (each.tokens.empty()) {
    throw ConfigError("[pool] there is no token to replace; allowed: append first");
  }
  const auto rank = [&](std::int32_t slot) -> std::int64_t {
    const Token& token = each.tokens[static_cast<std::size_t>(slot)];
    return policy_ == PoolPolicy::kFifo  ? 0
           : policy_ == PoolPolicy::kLru ? token.last_fetch
                                         : token.num_fetches;
  };
  const auto half = static_cast<std::ptrdiff_t>((each.by_age.size() + 1) / 2);
  const auto victim =
      std::min_element(each.by_age.begin(), each.by_age.begin() + half, [&](auto a, auto b) {
        return rank(a) < rank(b);  // the first of equals is the oldest
      });
  const std::int32_t slot = *victim;
  each.by_age.erase(victim);
  each.by_age.push_back(slot);
  each.tokens[static_cast<std::size_t>(slot)] = {.order = each.next_order++};
  return slot;
}

std::int64_t HostPool::order_of(std::int64_t layer, std::int64_t kv_head, std::int64_t slot) const {
  return heads_[static_cast<std::size_t>(layer * num_kv_heads_ + kv_head)]
      .tokens[static_cast<std::size_t>(slot)]
      .order;
}

PartFactory host_pool_part(const PoolLimit& limit) {
  return {.role = PartRole::kHostPlacement,
          .make =
              [policy = limit.policy](const PartContext& context) {
                return std::make_unique<HostPool>(context.config.num_layers,
                                                  context.config.num_kv_heads,
                                                  context.max_offloaded,
                                                  policy);
              },
          .host_limit =
              [capacity = limit.capacity](const RequestShape& request) {
                const auto share =
                    static_cast<std::int64_t>(capacity * static_cast<double>(request.max_tokens));
                return std::max(share, request.prompt_tokens);
              }};
}

}  // namespace hybridgen
