// SPDX-License-Identifier: Apache-2.0
#include "kvcache/stored_head.h"

#include <algorithm>
#include <cstring>

#include "hybridgen/core/error.h"

namespace hybridgen {

namespace {

/// rows[t][d] = block[d][place + t], rows contiguous. Elements are moved as bits.
template <std::size_t kBytes>
void read_key_block(const std::byte* block,
                    std::int64_t place,
                    std::byte* rows,
                    std::int64_t num_rows,
                    std::int64_t head_dim) {
  constexpr std::int64_t kElement = kBytes;
  for (std::int64_t t = 0; t < num_rows; ++t) {
    const std::byte* from = block + (place + t) * kElement;
    std::byte* to = rows + t * head_dim * kElement;
    for (std::int64_t d = 0; d < head_dim; ++d) {
      std::memcpy(to + d * kElement, from + d * kKeyBlockTokens * kElement, kBytes);
    }
  }
}

void read_blocked_keys(const BlockedKeyView& keys, TokenRange tokens, void* out) {
  const auto element = static_cast<std::int64_t>(size_of(keys.dtype));
  const std::int64_t row_bytes = keys.head_dim * element;
  auto* const read_block = element == 4 ? &read_key_block<4> : &read_key_block<2>;
  auto* to = static_cast<std::byte*>(out);
  for (std::int64_t t = tokens.begin; t < tokens.end;) {
    const std::int64_t place = t % kKeyBlockTokens;
    const std::int64_t rows = std::min(kKeyBlockTokens - place, tokens.end - t);
    read_block(static_cast<const std::byte*>(keys.data) + (t - place) * row_bytes,
               place,
               to,
               rows,
               keys.head_dim);
    to += rows * row_bytes;
    t += rows;
  }
}

std::int64_t end_of_segment(std::int64_t token) {
  return (token / kKeySegmentTokens + 1) * kKeySegmentTokens;
}

/// Rows of what the codes hold.
void restore_keys(const kernels::CpuKernels& kernels,
                  const HostKvStore& store,
                  std::int64_t layer,
                  std::int64_t kv_head,
                  TokenRange tokens,
                  DType dtype,
                  void* out) {
  const std::int64_t row_bytes = store.shape().head_dim * static_cast<std::int64_t>(size_of(dtype));
  for (std::int64_t begin = tokens.begin; begin < tokens.end;) {
    const std::int64_t end = std::min(end_of_segment(begin), tokens.end);
    kernels.stored_key_rows(
        {.keys = store.key_codes(layer, kv_head, begin),
         .dtype = dtype,
         .first = begin,
         .count = end - begin,
         .out = static_cast<std::byte*>(out) + (begin - tokens.begin) * row_bytes});
    begin = end;
  }
}

}  // namespace

StoredHead::StoredHead(const kernels::CpuKernels& kernels,
                       const HostKvStore& store,
                       std::int64_t layer,
                       std::int64_t kv_head)
    : kernels_(kernels), store_(store), layer_(layer), kv_head_(kv_head) {}

void StoredHead::bring(KvSide side) const {
  if (KvDisk* disk = store_.disk()) disk->bring(layer_, side);
}

void StoredHead::bring(KvSide side, std::span<const std::int32_t> positions) const {
  if (KvDisk* disk = store_.disk()) disk->bring(layer_, side, kv_head_, positions);
}

std::int64_t StoredHead::full_bytes() const {
  return store_.shape().head_dim * static_cast<std::int64_t>(size_of(store_.shape().dtype));
}

std::int64_t StoredHead::key_bytes() const {
  return has_key_codes() ? store_.key_codes(layer_, kv_head_).block_bytes / kKeyBlockTokens
                         : full_bytes();
}

std::int64_t StoredHead::value_bytes() const {
  return has_value_codes() ? store_.value_codes(layer_, kv_head_).row_bytes : full_bytes();
}

kernels::StoredLogitsArgs StoredHead::code_args(const ShadowKeyView& keys,
                                                Queries queries,
                                                float* logits,
                                                std::int64_t stride,
                                                Scratch& scratch) const {
  kernels::StoredLogitsArgs args;
  args.keys = keys;
  const auto count = static_cast<std::size_t>(queries.count);
  scratch.queries.resize(count * static_cast<std::size_t>(args.keys.padded_dim));
  scratch.starts.resize(count);
  scratch.constants.resize(count);
  kernels::prepare_stored_queries(args.keys,
                                  queries.data,
                                  queries.count,
                                  scratch.queries.data(),
                                  scratch.starts.data(),
                                  scratch.constants.data());
  args.queries = scratch.queries.data();
  args.starts = scratch.starts.data();
  args.constants = scratch.constants.data();
  args.num_queries = queries.count;
  args.logits = logits;
  args.logits_stride = stride;
  return args;
}

kernels::RowLogitsArgs StoredHead::row_args(const RowView& keys,
                                            Queries queries,
                                            float* logits,
                                            std::int64_t stride) {
  kernels::RowLogitsArgs args;
  args.dtype = keys.dtype;
  args.keys = keys.data;
  args.key_stride = keys.head_dim;
  args.head_dim = keys.head_dim;
  args.queries = queries.data;
  args.num_queries = queries.count;
  args.logits = logits;
  args.logits_stride = stride;
  return args;
}

void StoredHead::scan_codes(TokenRange tokens,
                            Queries queries,
                            float* logits,
                            std::int64_t stride,
                            Scratch& scratch) const {
  for (std::int64_t begin = tokens.begin; begin < tokens.end;) {
    float* const out = logits + (begin - tokens.begin);
    const TokenRange part{begin, std::min(end_of_segment(begin), tokens.end)};
    kernels::StoredLogitsArgs args =
        code_args(store_.key_codes(layer_, kv_head_, begin), queries, out, stride, scratch);
    args.tokens = part;
    kernels_.stored_key_logits(args);
    begin = part.end;
  }
  if (tokens.begin < kExactTokens) {
    const RowView exact = store_.exact_keys(layer_, kv_head_);
    kernels::RowLogitsArgs args = row_args(exact, queries, logits, stride);
    args.keys = static_cast<const std::byte*>(exact.data) + tokens.begin * full_bytes();
    args.count = std::min(tokens.end, kExactTokens) - tokens.begin;
    if (args.count > 0) kernels_.row_logits(args);
  }
}

void StoredHead::score_codes(std::span<const std::int32_t> positions,
                             Queries queries,
                             float* logits,
                             std::int64_t stride,
                             Scratch& scratch) const {
  for (std::size_t begin = 0; begin < positions.size();) {
    const std::int64_t first = positions[begin];
    const auto end = static_cast<std::size_t>(
        std::ranges::lower_bound(positions, end_of_segment(first)) - positions.begin());
    kernels::StoredLogitsArgs args = code_args(
        store_.key_codes(layer_, kv_head_, first), queries, logits + begin, stride, scratch);
    args.positions = positions.data() + begin;
    args.count = static_cast<std::int64_t>(end - begin);
    kernels_.stored_key_logits(args);
    begin = end;
  }
  const std::int64_t num_exact =
      std::ranges::lower_bound(positions, kExactTokens) - positions.begin();
  if (num_exact > 0) {
    kernels::chosen_row_logits(
        kernels_,
        row_args(store_.exact_keys(layer_, kv_head_), queries, logits, stride),
        positions.data(),
        num_exact);
  }
}

void StoredHead::scan(TokenRange tokens,
                      Queries queries,
                      float* logits,
                      std::int64_t stride,
                      Scratch& scratch) const {
  bring(KvSide::kKeys);
  if (has_key_codes()) {
    scan_codes(tokens, queries, logits, stride, scratch);
    return;
  }
  if (store_.shape().key_layout == KeyLayout::kRows) {
    kernels::RowLogitsArgs args =
        row_args(store_.key_rows(layer_, kv_head_), queries, logits, stride);
    args.keys = static_cast<const std::byte*>(args.keys) + tokens.begin * full_bytes();
    args.count = tokens.size();
    kernels_.row_logits(args);
    return;
  }
  kernels::BlockedLogitsArgs args;
  args.keys = store_.keys(layer_, kv_head_);
  args.queries = queries.data;
  args.num_queries = queries.count;
  args.tokens = tokens;
  args.logits = logits;
  args.logits_stride = stride;
  kernels_.blocked_logits(args);
}

void StoredHead::score(std::span<const std::int32_t> positions,
                       Queries queries,
                       float* logits,
                       std::int64_t stride,
                       Scratch& scratch) const {
  bring(KvSide::kKeys, positions);
  const auto count = static_cast<std::int64_t>(positions.size());
  if (has_key_codes()) {
    score_codes(positions, queries, logits, stride, scratch);
    return;
  }
  if (store_.shape().key_layout == KeyLayout::kRows) {
    kernels::chosen_row_logits(kernels_,
                               row_args(store_.key_rows(layer_, kv_head_), queries, logits, stride),
                               positions.data(),
                               count);
    return;
  }
  kernels::ChosenLogitsArgs args;
  args.keys = store_.keys(layer_, kv_head_);
  args.queries = queries.data;
  args.num_queries = queries.count;
  args.positions = positions.data();
  args.count = count;
  args.logits = logits;
  args.logits_stride = stride;
  kernels_.chosen_logits(args);
}

void StoredHead::keys(std::span<const std::int32_t> positions,
                      void* out,
                      kernels::RowReader reader) const {
  bring(KvSide::kKeys, positions);
  const auto count = static_cast<std::int64_t>(positions.size());
  if (has_key_codes()) {
    auto* const to = static_cast<std::byte*>(out);
    std::size_t begin = 0;
    for (; begin < positions.size() && positions[begin] < kExactTokens; ++begin) {
      const auto* exact = static_cast<const std::byte*>(store_.exact_keys(layer_, kv_head_).data);
      std::memcpy(to + static_cast<std::int64_t>(begin) * full_bytes(),
                  exact + positions[begin] * full_bytes(),
                  static_cast<std::size_t>(full_bytes()));
    }
    while (begin < positions.size()) {
      const std::int64_t first = positions[begin];
      const auto end = static_cast<std::size_t>(
          std::ranges::lower_bound(positions, end_of_segment(first)) - positions.begin());
      kernels_.stored_key_rows({.keys = store_.key_codes(layer_, kv_head_, first),
                                .dtype = store_.shape().dtype,
                                .positions = positions.data() + begin,
                                .count = static_cast<std::int64_t>(end - begin),
                                .out = to + static_cast<std::int64_t>(begin) * full_bytes()});
      begin = end;
    }
  } else if (store_.shape().key_layout == KeyLayout::kRows) {
    kernels::gather_rows(
        store_.key_rows(layer_, kv_head_).data, full_bytes(), positions.data(), count, out, reader);
  } else {
    kernels::gather_blocked_keys(store_.keys(layer_, kv_head_), positions.data(), count, out);
  }
}

void StoredHead::keys(TokenRange tokens, void* out, kernels::RowReader reader) const {
  bring(KvSide::kKeys);
  if (has_key_codes()) {
    restore_keys(kernels_, store_, layer_, kv_head_, tokens, store_.shape().dtype, out);
    const std::int64_t num_exact = std::min(tokens.end, kExactTokens) - tokens.begin;
    if (num_exact > 0) {
      const auto* exact = static_cast<const std::byte*>(store_.exact_keys(layer_, kv_head_).data);
      std::memcpy(out,
                  exact + tokens.begin * full_bytes(),
                  static_cast<std::size_t>(num_exact * full_bytes()));
    }
    return;
  }
  if (store_.shape().key_layout == KeyLayout::kBlocked) {
    read_blocked_keys(store_.keys(layer_, kv_head_), tokens, out);
    return;
  }
  const auto* rows = static_cast<const std::byte*>(store_.key_rows(layer_, kv_head_).data);
  kernels::copy_rows(rows + tokens.begin * full_bytes(), tokens.size() * full_bytes(), out, reader);
}

void StoredHead::values(std::span<const std::int32_t> positions,
                        void* out,
                        kernels::RowReader reader) const {
  bring(KvSide::kValues, positions);
  const auto count = static_cast<std::int64_t>(positions.size());
  if (has_value_codes()) {
    kernels_.stored_value_rows({.values = store_.value_codes(layer_, kv_head_),
                                .positions = positions.data(),
                                .count = count,
                                .out = out});
    return;
  }
  kernels::gather_rows(
      store_.values(layer_, kv_head_).data, full_bytes(), positions.data(), count, out, reader);
}

void StoredHead::values(TokenRange tokens, void* out, kernels::RowReader reader) const {
  bring(KvSide::kValues);
  if (has_value_codes()) {
    kernels_.stored_value_rows({.values = store_.value_codes(layer_, kv_head_),
                                .first = tokens.begin,
                                .count = tokens.size(),
                                .out = out});
    return;
  }
  const auto* rows = static_cast<const std::byte*>(store_.values(layer_, kv_head_).data);
  kernels::copy_rows(rows + tokens.begin * full_bytes(), tokens.size() * full_bytes(), out, reader);
}

BlockedKeyView restore_blocks(const HostKvStore& store,
                              std::int64_t layer,
                              std::int64_t kv_head,
                              TokenRange tokens,
                              std::vector<float>& memory) {
  const std::int64_t dim = store.shape().head_dim;
  const std::int64_t first = tokens.begin / kKeyBlockTokens * kKeyBlockTokens;
  const std::int64_t end = (tokens.end + kKeyBlockTokens - 1) / kKeyBlockTokens * kKeyBlockTokens;
  std::vector<float> rows(static_cast<std::size_t>(tokens.size() * dim));
  const kernels::CpuKernels& kernels = kernels::cpu_kernels(kernels::resolve_isa("auto"));
  restore_keys(kernels, store, layer, kv_head, tokens, DType::kFloat32, rows.data());
  if (const std::int64_t num_exact = std::min(tokens.end, kExactTokens) - tokens.begin;
      num_exact > 0) {
    const RowView exact = store.exact_keys(layer, kv_head);
    const auto row_bytes = dim * static_cast<std::int64_t>(size_of(exact.dtype));
    kernels.scale_to_float(exact.dtype,
                           static_cast<const std::byte*>(exact.data) + tokens.begin * row_bytes,
                           1.0F,
                           rows.data(),
                           num_exact * dim);
  }
  memory.assign(static_cast<std::size_t>((end - first) * dim), 0.0F);
  for (std::int64_t t = tokens.begin; t < tokens.end; ++t) {
    const float* row = rows.data() + (t - tokens.begin) * dim;
    float* column =
        memory.data() + (t - first) / kKeyBlockTokens * dim * kKeyBlockTokens + t % kKeyBlockTokens;
    for (std::int64_t d = 0; d < dim; ++d) column[d * kKeyBlockTokens] = row[d];
  }
  return {memory.data(), DType::kFloat32, dim, end, first};
}

void read_tokens(const kernels::CpuKernels& kernels,
                 const HostKvStore& store,
                 std::int64_t layer,
                 TokenRange tokens,
                 void* keys,
                 void* values) {
  const HostKvShape& shape = store.shape();
  if (tokens.begin < 0 || tokens.end < tokens.begin || tokens.end > shape.capacity) {
    throw ConfigError(message("[host KV store] tokens are [",
                              tokens.begin,
                              ", ",
                              tokens.end,
                              "); allowed: ranges inside [0, ",
                              shape.capacity,
                              "); create the store with a larger capacity"));
  }
  const std::int64_t bytes =
      tokens.size() * shape.head_dim * static_cast<std::int64_t>(size_of(shape.dtype));
  for (std::int64_t g = 0; g < shape.num_kv_heads; ++g) {
    const StoredHead head(kernels, store, layer, g);
    head.keys(tokens, static_cast<std::byte*>(keys) + g * bytes, kernels::RowReader::kCpu);
    head.values(tokens, static_cast<std::byte*>(values) + g * bytes, kernels::RowReader::kCpu);
  }
}

}  // namespace hybridgen
