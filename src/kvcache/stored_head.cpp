// SPDX-License-Identifier: Apache-2.0
#include "kvcache/stored_head.h"

#include <algorithm>
#include <cstring>

#include "hybridgen/core/error.h"
#include "kvcache/key_blocks.h"

namespace hybridgen {

namespace {

std::int64_t end_of_segment(std::int64_t token) {
  return (token / kKeySegmentTokens + 1) * kKeySegmentTokens;
}

/// As StoredRows::for_each_piece, of pieces that do not go beyond a segment either.
template <typename Visit>
void for_each_segment(const StoredRows& rows,
                      std::span<const std::int32_t> positions,
                      const Visit& visit) {
  rows.for_each_piece(
      positions, [&](const std::byte* origin, std::size_t first, std::size_t count) {
        for (std::size_t begin = first; begin < first + count;) {
          const auto rest = positions.subspan(begin, first + count - begin);
          const auto in_segment = static_cast<std::size_t>(
              std::ranges::lower_bound(rest, end_of_segment(rest.front())) - rest.begin());
          visit(origin, begin, in_segment);
          begin += in_segment;
        }
      });
}

}  // namespace

StoredHead::StoredHead(const kernels::CpuKernels& kernels,
                       const HostKvStore& store,
                       std::int64_t layer,
                       std::int64_t kv_head)
    : kernels_(kernels), store_(store), layer_(layer), kv_head_(kv_head) {}

StoredRows StoredHead::bring(KvSide side) const {
  KvDisk* const disk = store_.disk();
  const DiskLanding* const landing = disk == nullptr ? nullptr : disk->bring(layer_, side);
  return {store_.memory(side), layer_, kv_head_, landing};
}

StoredRows StoredHead::bring(KvSide side, std::span<const std::int32_t> positions) const {
  KvDisk* const disk = store_.disk();
  const DiskLanding* const landing =
      disk == nullptr ? nullptr : disk->bring(layer_, side, kv_head_, positions);
  return {store_.memory(side), layer_, kv_head_, landing};
}

ShadowKeyView StoredHead::codes_at(const std::byte* origin, std::int64_t token) const {
  ShadowKeyView keys = store_.key_codes(layer_, kv_head_, token);
  keys.blocks = origin + keys.first_token / kKeyBlockTokens * keys.block_bytes;
  return keys;
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

void StoredHead::scan_codes(const StoredRows& rows,
                            TokenRange tokens,
                            Queries queries,
                            float* logits,
                            std::int64_t stride,
                            Scratch& scratch) const {
  rows.for_each_piece(tokens, [&](const std::byte* origin, TokenRange piece) {
    for (std::int64_t begin = piece.begin; begin < piece.end;) {
      float* const out = logits + (begin - tokens.begin);
      const TokenRange part{begin, std::min(end_of_segment(begin), piece.end)};
      kernels::StoredLogitsArgs args =
          code_args(codes_at(origin, begin), queries, out, stride, scratch);
      args.tokens = part;
      kernels_.stored_key_logits(args);
      begin = part.end;
    }
  });
  if (tokens.begin < kExactTokens) {
    const RowView exact = store_.exact_keys(layer_, kv_head_);
    kernels::RowLogitsArgs args = row_args(exact, queries, logits, stride);
    args.keys = static_cast<const std::byte*>(exact.data) + tokens.begin * full_bytes();
    args.count = std::min(tokens.end, kExactTokens) - tokens.begin;
    if (args.count > 0) kernels_.row_logits(args);
  }
}

void StoredHead::score_codes(const StoredRows& rows,
                             std::span<const std::int32_t> positions,
                             Queries queries,
                             float* logits,
                             std::int64_t stride,
                             Scratch& scratch) const {
  for_each_segment(
      rows, positions, [&](const std::byte* origin, std::size_t begin, std::size_t count) {
        kernels::StoredLogitsArgs args =
            code_args(codes_at(origin, positions[begin]), queries, logits + begin, stride, scratch);
        args.positions = positions.data() + begin;
        args.count = static_cast<std::int64_t>(count);
        kernels_.stored_key_logits(args);
      });
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
  const StoredRows rows = bring(KvSide::kKeys);
  if (has_key_codes()) {
    scan_codes(rows, tokens, queries, logits, stride, scratch);
    return;
  }
  const bool are_rows = store_.shape().key_layout == KeyLayout::kRows;
  rows.for_each_piece(tokens, [&](const std::byte* origin, TokenRange piece) {
    float* const out = logits + (piece.begin - tokens.begin);
    if (are_rows) {
      kernels::RowLogitsArgs args =
          row_args(store_.key_rows(layer_, kv_head_), queries, out, stride);
      args.keys = origin + piece.begin * full_bytes();
      args.count = piece.size();
      kernels_.row_logits(args);
      return;
    }
    kernels::BlockedLogitsArgs args;
    args.keys = store_.keys(layer_, kv_head_);
    args.keys.data = origin;
    args.queries = queries.data;
    args.num_queries = queries.count;
    args.tokens = piece;
    args.logits = out;
    args.logits_stride = stride;
    kernels_.blocked_logits(args);
  });
}

void StoredHead::score(std::span<const std::int32_t> positions,
                       Queries queries,
                       float* logits,
                       std::int64_t stride,
                       Scratch& scratch) const {
  const StoredRows rows = bring(KvSide::kKeys, positions);
  if (has_key_codes()) {
    score_codes(rows, positions, queries, logits, stride, scratch);
    return;
  }
  const bool are_rows = store_.shape().key_layout == KeyLayout::kRows;
  rows.for_each_piece(
      positions, [&](const std::byte* origin, std::size_t begin, std::size_t count) {
        if (are_rows) {
          RowView keys = store_.key_rows(layer_, kv_head_);
          keys.data = origin;
          kernels::chosen_row_logits(kernels_,
                                     row_args(keys, queries, logits + begin, stride),
                                     positions.data() + begin,
                                     static_cast<std::int64_t>(count));
          return;
        }
        kernels::ChosenLogitsArgs args;
        args.keys = store_.keys(layer_, kv_head_);
        args.keys.data = origin;
        args.queries = queries.data;
        args.num_queries = queries.count;
        args.positions = positions.data() + begin;
        args.count = static_cast<std::int64_t>(count);
        args.logits = logits + begin;
        args.logits_stride = stride;
        kernels_.chosen_logits(args);
      });
}

void StoredHead::keys(std::span<const std::int32_t> positions,
                      void* out,
                      kernels::RowReader reader) const {
  const StoredRows rows = bring(KvSide::kKeys, positions);
  auto* const to = static_cast<std::byte*>(out);
  if (has_key_codes()) {
    const auto num_exact = static_cast<std::size_t>(
        std::ranges::lower_bound(positions, kExactTokens) - positions.begin());
    kernels::gather_rows(store_.exact_keys(layer_, kv_head_).data,
                         full_bytes(),
                         positions.data(),
                         static_cast<std::int64_t>(num_exact),
                         to,
                         reader);
    std::byte* const coded = to + static_cast<std::int64_t>(num_exact) * full_bytes();
    const auto rest = positions.subspan(num_exact);
    for_each_segment(rows, rest, [&](const std::byte* origin, std::size_t begin, std::size_t n) {
      kernels_.stored_key_rows({.keys = codes_at(origin, rest[begin]),
                                .dtype = store_.shape().dtype,
                                .positions = rest.data() + begin,
                                .count = static_cast<std::int64_t>(n),
                                .out = coded + static_cast<std::int64_t>(begin) * full_bytes()});
    });
    return;
  }
  const bool are_rows = store_.shape().key_layout == KeyLayout::kRows;
  rows.for_each_piece(
      positions, [&](const std::byte* origin, std::size_t begin, std::size_t count) {
        const std::int32_t* const chosen = positions.data() + begin;
        const auto number = static_cast<std::int64_t>(count);
        std::byte* const place = to + static_cast<std::int64_t>(begin) * full_bytes();
        if (are_rows) {
          kernels::gather_rows(origin, full_bytes(), chosen, number, place, reader);
          return;
        }
        BlockedKeyView keys = store_.keys(layer_, kv_head_);
        keys.data = origin;
        kernels::gather_blocked_keys(keys, chosen, number, place);
      });
}

void StoredHead::restore_keys(const std::byte* origin, TokenRange tokens, std::byte* out) const {
  for (std::int64_t begin = tokens.begin; begin < tokens.end;) {
    const std::int64_t end = std::min(end_of_segment(begin), tokens.end);
    kernels_.stored_key_rows({.keys = codes_at(origin, begin),
                              .dtype = store_.shape().dtype,
                              .first = begin,
                              .count = end - begin,
                              .out = out + (begin - tokens.begin) * full_bytes()});
    begin = end;
  }
}

void StoredHead::keys(TokenRange tokens, void* out, kernels::RowReader reader) const {
  const StoredRows rows = bring(KvSide::kKeys);
  auto* const to = static_cast<std::byte*>(out);
  rows.for_each_piece(tokens, [&](const std::byte* origin, TokenRange piece) {
    std::byte* const place = to + (piece.begin - tokens.begin) * full_bytes();
    if (has_key_codes()) {
      restore_keys(origin, piece, place);
    } else if (store_.shape().key_layout == KeyLayout::kBlocked) {
      BlockedKeyView keys = store_.keys(layer_, kv_head_);
      keys.data = origin;
      read_blocked_keys(keys, piece, place);
    } else {
      kernels::copy_rows(
          origin + piece.begin * full_bytes(), piece.size() * full_bytes(), place, reader);
    }
  });
  const std::int64_t num_exact = std::min(tokens.end, kExactTokens) - tokens.begin;
  if (has_key_codes() && num_exact > 0) {
    const auto* exact = static_cast<const std::byte*>(store_.exact_keys(layer_, kv_head_).data);
    std::memcpy(out,
                exact + tokens.begin * full_bytes(),
                static_cast<std::size_t>(num_exact * full_bytes()));
  }
}

void StoredHead::values(std::span<const std::int32_t> positions,
                        void* out,
                        kernels::RowReader reader) const {
  const StoredRows rows = bring(KvSide::kValues, positions);
  rows.for_each_piece(
      positions, [&](const std::byte* origin, std::size_t begin, std::size_t count) {
        const std::int32_t* const chosen = positions.data() + begin;
        const auto number = static_cast<std::int64_t>(count);
        std::byte* const place =
            static_cast<std::byte*>(out) + static_cast<std::int64_t>(begin) * full_bytes();
        if (has_value_codes()) {
          QuantisedRowView codes = store_.value_codes(layer_, kv_head_);
          codes.rows = origin;
          kernels_.stored_value_rows(
              {.values = codes, .positions = chosen, .count = number, .out = place});
          return;
        }
        kernels::gather_rows(origin, full_bytes(), chosen, number, place, reader);
      });
}

void StoredHead::values(TokenRange tokens, void* out, kernels::RowReader reader) const {
  const StoredRows rows = bring(KvSide::kValues);
  rows.for_each_piece(tokens, [&](const std::byte* origin, TokenRange piece) {
    std::byte* const place =
        static_cast<std::byte*>(out) + (piece.begin - tokens.begin) * full_bytes();
    if (has_value_codes()) {
      QuantisedRowView codes = store_.value_codes(layer_, kv_head_);
      codes.rows = origin;
      kernels_.stored_value_rows(
          {.values = codes, .first = piece.begin, .count = piece.size(), .out = place});
      return;
    }
    kernels::copy_rows(
        origin + piece.begin * full_bytes(), piece.size() * full_bytes(), place, reader);
  });
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
    if (keys != nullptr) {
      head.keys(tokens, static_cast<std::byte*>(keys) + g * bytes, kernels::RowReader::kCpu);
    }
    if (values != nullptr) {
      head.values(tokens, static_cast<std::byte*>(values) + g * bytes, kernels::RowReader::kCpu);
    }
  }
}

}  // namespace hybridgen
