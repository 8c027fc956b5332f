// SPDX-License-Identifier: Apache-2.0
// Blocks of keys as rows, and keys in codes as blocks.
#pragma once

#include <cstdint>
#include <vector>

#include "hybridgen/core/kv_views.h"
#include "hybridgen/core/types.h"
#include "kvcache/host_kv_store.h"

namespace hybridgen {

/// Copies the keys of `tokens` out as rows [count, D] of their type.
void read_blocked_keys(const BlockedKeyView& keys, TokenRange tokens, void* out);

/// Float32 keys in blocks, made of codes for those who read blocks: of `tokens` and, for the rest
/// of the blocks that they lie in, 0. They live in `memory`.
BlockedKeyView restore_blocks(const HostKvStore& store,
                              std::int64_t layer,
                              std::int64_t kv_head,
                              TokenRange tokens,
                              std::vector<float>& memory);

}  // namespace hybridgen
