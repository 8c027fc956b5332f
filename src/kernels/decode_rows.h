// SPDX-License-Identifier: Apache-2.0
// A decode step in flat arrays, as kernels on a device read it: one StepRow per request, the same
// for all layers, two PlanRows (of early layers and of the others) or one, and one PayloadRow per
// request and layer. No Torch, no ownership. Strides count elements.
#pragma once

#include <cstdint>

namespace hybridgen::kernels {

/// Where a request's resident tokens lie. The new one is the last of them.
struct StepRow {
  std::int64_t num_resident = 0;  ///< n_g, the new token included; 0: all tokens are on the host
  std::int64_t first_slot = 0;    ///< they lie in slots [first_slot, first_slot + n_g)
  void* keys = nullptr;           ///< of layer 0: [G, slots, D]
  void* values = nullptr;         ///< the same
  std::int64_t layer_stride = 0;  ///< from a layer's keys (values) to the next one's
  std::int64_t head_stride = 0;   ///< from a KV head's keys (values) to the next one's
  /// Keys of slot first_slot on as attention reads them, if not those above: [G, n_g, D] of the
  /// layer at hand.
  void* turned_keys = nullptr;
  std::int64_t turned_head_stride = 0;
  /// Places by which they turn: of layer l and KV head g row place_rows[l G + g] of `places`.
  const std::int64_t* place_rows = nullptr;
  const std::int64_t* places = nullptr;
  std::int64_t place_stride = 0;  ///< from a row to the next
  /// [H, n_g] scaled logits, and [H, merged_stride] softmax weights of chosen host tokens, then of
  /// resident ones; null: unwanted.
  float* resident_logits = nullptr;
  float* weights = nullptr;
  float* parts = nullptr;  ///< scratch: D + 2 floats for each query head and part of 256 tokens
  unsigned* finished =
      nullptr;  ///< [H] of 0: parts of a merge that are done, by KV head; 0 after it
};

/// What the device ranks to plan which of a request's tokens the host fetches, and where what is
/// made of it goes. Sparse attention ranks weights: then a KV head below is a query head, and there
/// are no columns and keys.
struct PlanRow {
  std::int64_t num_tokens = 0;           ///< N; 0: nothing is planned for it
  std::int64_t most = 0;                 ///< places per KV head, in [1, N]; 0: nothing, either
  std::int64_t width = 0;                ///< W: dimensions of a turned key
  const float* columns = nullptr;        ///< of layer 0: [G, D, W], by which queries are turned
  const void* keys = nullptr;            ///< of layer 0: [G, blocks, W, 32]
  std::int64_t column_layer_stride = 0;  ///< from a layer's columns to the next one's
  std::int64_t key_layer_stride = 0;
  std::int64_t key_head_stride = 0;  ///< from a KV head's keys to the next one's
  float* guesses = nullptr;          ///< [G, N], row stride guess_stride
  std::int64_t guess_stride = 0;
  std::int32_t* places = nullptr;  ///< [G, most]
  /// How many places are wanted, taken into [1, most]; null: `most`. What lies there is the number
  /// of guesses within alpha of the largest, once that was counted.
  std::int64_t* count = nullptr;
  float alpha = 0.0F;
  bool takes_newer = false;  ///< of equal guesses
  void* work = nullptr;      ///< plan_work_bytes(), aligned to 16, with any contents
};

/// What a host job contributes to the attention of one request in one layer, on the device.
struct PayloadRow {
  std::int64_t count = 0;  ///< S: tokens per query head, at most
  std::int64_t room = 0;   ///< >= S: R * room logits and indices belong to a KV head
  /// [G, R * room]: of KV head g the first R * n [R, n], where n of its tokens are in use. Unread
  /// where there are keys.
  const float* logits = nullptr;
  /// [H, S] rows of `values`, with S = room; null: every query head of KV head g uses rows
  /// 0 .. union_sizes[g].
  const std::int32_t* index = nullptr;
  const void* values = nullptr;  ///< [G, union_capacity, D]; rows in token order
  const void* keys = nullptr;    ///< the same shape; the device computes the logits from them
  std::int64_t union_capacity = 0;
  const std::int64_t* union_sizes = nullptr;  ///< [G] rows of `values` in use
  const void* output = nullptr;  ///< [H, D] attention over tokens of which nothing else was sent
  const float* lse = nullptr;    ///< [H] natural log-sum-exp of their logits
};

/// A payload in the host's pinned memory, and where it goes.
struct PayloadCopy {
  PayloadRow from;
  PayloadRow to;  ///< its count and sizes are those of `from`, and what `from` lacks is null
};

}  // namespace hybridgen::kernels
