// SPDX-License-Identifier: Apache-2.0
#include "kvcache/scoring_shadow.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <string_view>

#include "hybridgen/core/error.h"
#include "kernels/cpu_kernels.h"
#include "kvcache/shadow_codes.h"

namespace hybridgen {

namespace {

constexpr std::int64_t kGroup = 4;  // dimensions of a token that lie together
constexpr std::int64_t kGroupBytes = kGroup * kKeyBlockTokens;
constexpr std::int64_t kStepBytes = 2;  // bfloat16
constexpr std::string_view kGrow = "grow the scoring shadow";

std::int64_t round_up(std::int64_t value, std::int64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

void require_between(std::string_view field,
                     std::int64_t value,
                     std::int64_t least,
                     std::int64_t most,
                     std::string_view way_out) {
  if (value >= least && value <= most) return;
  throw ConfigError(message("[scoring shadow] ",
                            field,
                            " is ",
                            value,
                            "; allowed: ",
                            least,
                            " to ",
                            most,
                            "; ",
                            way_out));
}

bool is_int4(const ShadowShape& shape) { return shape.precision == ShadowPrecision::kInt4; }

std::int64_t padded_dim(const ShadowShape& shape) { return round_up(shape.head_dim, 2 * kGroup); }

std::int64_t block_bytes(const ShadowShape& shape) {
  const std::int64_t codes = padded_dim(shape) * kKeyBlockTokens;
  return (is_int4(shape) ? codes / 2 : codes) + kStepBytes * kKeyBlockTokens;
}

std::int64_t num_heads(const ShadowShape& shape) { return shape.num_layers * shape.num_kv_heads; }

std::int64_t head_bytes(const ShadowShape& shape) {
  return shape.capacity / kKeyBlockTokens * block_bytes(shape);
}

/// Of a capacity that is rounded up.
std::int64_t segment_tokens(const ShadowShape& shape) {
  return shape.segment_tokens == 0 ? shape.capacity : shape.segment_tokens;
}

std::int64_t num_segments(const ShadowShape& shape) {
  return (shape.capacity + segment_tokens(shape) - 1) / segment_tokens(shape);
}

std::int64_t channel_bytes(const ShadowShape& shape) {
  return num_heads(shape) * num_segments(shape) * 2 * shape.head_dim *
         static_cast<std::int64_t>(sizeof(float));
}

ShadowShape checked(ShadowShape shape) {
  constexpr std::int64_t kAny = std::numeric_limits<std::int64_t>::max();
  constexpr std::string_view kCorrect = "correct the shape of the shadow";
  require_between("num_layers", shape.num_layers, 1, kAny, kCorrect);
  require_between("num_kv_heads", shape.num_kv_heads, 1, kAny, kCorrect);
  require_between("head_dim", shape.head_dim, 1, kMaxShadowHeadDim, "score with the full keys");
  require_between("capacity", shape.capacity, 1, kAny, kCorrect);
  if (shape.segment_tokens < 0 || shape.segment_tokens % kKeyBlockTokens != 0) {
    throw ConfigError(message("[scoring shadow] segment_tokens is ",
                              shape.segment_tokens,
                              "; allowed: multiples of ",
                              kKeyBlockTokens));
  }
  // Codes and channels together must stay addressable.
  std::int64_t limit = kAny / 2;
  for (const std::int64_t factor : {block_bytes(shape), shape.num_layers, shape.num_kv_heads}) {
    limit /= factor;
  }
  if (shape.capacity > limit - kKeyBlockTokens) {
    throw OutOfMemoryError(message("[scoring shadow] capacity is ",
                                   shape.capacity,
                                   " tokens; allowed: what 2^63 bytes can hold; pass a smaller "
                                   "capacity"));
  }
  shape.capacity = round_up(shape.capacity, kKeyBlockTokens);
  if (shape.numa_parts.empty() && shape.numa_node != -1) {
    shape.place = place_on_node(shape.numa_node);
  }
  return shape;
}

void require_index(std::string_view what, std::int64_t value, std::int64_t count) {
  require_between(what, value, 0, count - 1, "pass an index inside the shadow");
}

void require_count(std::int64_t count) {
  require_between("count of keys to calibrate by",
                  count,
                  1,
                  std::numeric_limits<std::int64_t>::max(),
                  "calibrate with the prompt's keys");
}

void require_tokens(TokenRange tokens, std::int64_t capacity) {
  if (tokens.begin < 0 || tokens.end < tokens.begin || tokens.end > capacity) {
    throw ConfigError(message(
        "[scoring shadow] tokens are [",
        tokens.begin,
        ", ",
        tokens.end,
        "); allowed: ranges inside [0, ",
        capacity,
        "); create the shadow with a larger capacity and let it grow before it is written"));
  }
}

/// In place: of 8 codes, the first four into the low and the others into the high halves of 4
/// bytes.
void pack_halves(std::uint8_t* codes, std::int64_t count) {
  for (std::int64_t d = 0; d < count; d += 2 * kGroup) {
    for (std::int64_t i = 0; i < kGroup; ++i) {
      codes[d / 2 + i] = static_cast<std::uint8_t>(codes[d + i] | codes[d + kGroup + i] << 4);
    }
  }
}

}  // namespace

KvMemoryShape memory_shape(const ShadowShape& shape) {
  return {.num_kv_heads = shape.num_kv_heads,
          .num_layers = shape.num_layers,
          .capacity = shape.capacity,
          .row_bytes = block_bytes(shape) / kKeyBlockTokens,
          .place = shape.place,
          .numa_parts = shape.numa_parts};
}

ScoringShadow::ScoringShadow(const ShadowShape& shape)
    : shape_(checked(shape)),
      blocks_(memory_shape(shape_)),
      channels_(static_cast<std::size_t>(channel_bytes(shape_))),
      is_calibrated_(static_cast<std::size_t>(num_heads(shape_) * num_segments(shape_))) {}

void ScoringShadow::grow(std::int64_t tokens) {
  if (tokens <= blocks_.grown_tokens()) return;
  require_tokens({0, tokens}, shape_.capacity);
  grow_channels(tokens);
  blocks_.grow(tokens, kGrow);
}

void ScoringShadow::report(PlacedBytes& bytes) const {
  bytes.add(blocks_.found(), blocks_.span());
  bytes.add(channels_.found(), channels_.span());
}

void ScoringShadow::grow_channels(std::int64_t tokens) {
  const std::int64_t segments = (tokens + segment_tokens(shape_) - 1) / segment_tokens(shape_);
  const std::int64_t bytes = channel_bytes(shape_) / num_segments(shape_);
  const auto page = static_cast<std::int64_t>(page_bytes());
  const std::int64_t begin = round_up(num_grown_segments_ * bytes, page);
  const std::int64_t end = round_up(segments * bytes, page);
  if (end > begin) {
    const ByteRange range{static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)};
    channels_.take(std::span<const ByteRange>(&range, 1), shape_.place, kGrow);
  }
  num_grown_segments_ = std::max(num_grown_segments_, segments);
}

std::int64_t ScoringShadow::required_bytes(const ShadowShape& shape) {
  const ShadowShape rounded = checked(shape);
  return num_heads(rounded) * head_bytes(rounded) + channel_bytes(rounded);
}

void ScoringShadow::calibrate(std::int64_t layer, std::int64_t count, const KvRowsView& keys) {
  require_index("layer", layer, shape_.num_layers);
  require_count(count);
  for (std::int64_t g = 0; g < shape_.num_kv_heads; ++g) {
    calibrate_segment(head_index(layer, g), 0, count, rows_of(keys, g), keys.token_stride);
  }
}

void ScoringShadow::calibrate(std::int64_t layer,
                              std::int64_t kv_head,
                              std::int64_t count,
                              const void* keys) {
  require_index("layer", layer, shape_.num_layers);
  require_index("kv_head", kv_head, shape_.num_kv_heads);
  require_count(count);
  calibrate_segment(head_index(layer, kv_head), 0, count, keys, shape_.head_dim);
}

bool ScoringShadow::is_calibrated(std::int64_t layer) const {
  require_index("layer", layer, shape_.num_layers);
  return is_calibrated_[static_cast<std::size_t>(segment_index(head_index(layer, 0), 0))] != 0;
}

void ScoringShadow::write(std::int64_t layer, TokenRange tokens, const KvRowsView& keys) {
  require_index("layer", layer, shape_.num_layers);
  require_tokens(tokens, blocks_.grown_tokens());
  if (tokens.empty()) return;
  for (std::int64_t g = 0; g < shape_.num_kv_heads; ++g) {
    write_head(head_index(layer, g), tokens, rows_of(keys, g), keys.token_stride);
  }
}

void ScoringShadow::write(std::int64_t layer,
                          std::int64_t kv_head,
                          TokenRange tokens,
                          const void* keys) {
  require_index("layer", layer, shape_.num_layers);
  require_index("kv_head", kv_head, shape_.num_kv_heads);
  require_tokens(tokens, blocks_.grown_tokens());
  write_head(head_index(layer, kv_head), tokens, keys, shape_.head_dim);
}

void ScoringShadow::write_row(std::int64_t layer,
                              std::int64_t kv_head,
                              std::int64_t slot,
                              const void* key) {
  write(layer, kv_head, {slot, slot + 1}, key);
}

ShadowKeyView ScoringShadow::keys(std::int64_t layer,
                                  std::int64_t kv_head,
                                  std::int64_t token) const {
  require_index("layer", layer, shape_.num_layers);
  require_index("kv_head", kv_head, shape_.num_kv_heads);
  require_index("token", token, shape_.capacity);
  return segment_of(head_index(layer, kv_head), token);
}

ShadowKeyView ScoringShadow::segment_of(std::int64_t head, std::int64_t token) const {
  const std::int64_t first = token / segment_tokens(shape_) * segment_tokens(shape_);
  const float* channels = reinterpret_cast<const float*>(channels_.data()) +
                          segment_index(head, token) * 2 * shape_.head_dim;
  return {.blocks = blocks_.head(head % shape_.num_layers, head / shape_.num_layers) +
                    first / kKeyBlockTokens * block_bytes(shape_),
          .centres = channels,
          .spreads = channels + shape_.head_dim,
          .precision = shape_.precision,
          .head_dim = shape_.head_dim,
          .padded_dim = padded_dim(shape_),
          .block_bytes = block_bytes(shape_),
          .capacity = std::min(segment_tokens(shape_), shape_.capacity - first),
          .first_token = first};
}

std::int64_t ScoringShadow::head_index(std::int64_t layer, std::int64_t kv_head) const {
  return kv_head * shape_.num_layers + layer;
}

const void* ScoringShadow::rows_of(const KvRowsView& keys, std::int64_t kv_head) const {
  return static_cast<const std::byte*>(keys.data) +
         kv_head * keys.head_stride * static_cast<std::int64_t>(size_of(shape_.dtype));
}

std::int64_t ScoringShadow::segment_index(std::int64_t head, std::int64_t token) const {
  return token / segment_tokens(shape_) * num_heads(shape_) + head;
}

float* ScoringShadow::centres(std::int64_t segment_index) {
  return reinterpret_cast<float*>(channels_.data()) + segment_index * 2 * shape_.head_dim;
}

void ScoringShadow::calibrate_segment(std::int64_t head,
                                      std::int64_t token,
                                      std::int64_t count,
                                      const void* rows,
                                      std::int64_t stride) {
  const std::int64_t segment = segment_index(head, token);
  float* channels = centres(segment);
  measure_channels(
      shape_.dtype, rows, count, stride, shape_.head_dim, channels, channels + shape_.head_dim);
  is_calibrated_[static_cast<std::size_t>(segment)] = 1;
}

void ScoringShadow::calibrate_by_the_one_before(std::int64_t head, std::int64_t token) {
  const ShadowKeyView before = segment_of(head, token - segment_tokens(shape_));
  std::vector<float> rows(static_cast<std::size_t>(before.capacity * before.head_dim));
  // Of one instruction set for all machines: the bytes that are stored do not depend on it.
  kernels::cpu_kernels(kernels::Isa::kPortable)
      .stored_key_rows({.keys = before,
                        .dtype = DType::kFloat32,
                        .first = before.first_token,
                        .count = before.capacity,
                        .out = rows.data()});
  const std::int64_t segment = segment_index(head, token);
  float* channels = centres(segment);
  measure_channels(DType::kFloat32,
                   rows.data(),
                   before.capacity,
                   before.head_dim,
                   before.head_dim,
                   channels,
                   channels + shape_.head_dim);
  is_calibrated_[static_cast<std::size_t>(segment)] = 1;
}

void ScoringShadow::write_head(std::int64_t head,
                               TokenRange tokens,
                               const void* rows,
                               std::int64_t stride) {
  const std::int64_t row_bytes = stride * static_cast<std::int64_t>(size_of(shape_.dtype));
  const auto is_calibrated = [&](std::int64_t token) {
    return is_calibrated_[static_cast<std::size_t>(segment_index(head, token))] != 0;
  };
  for (std::int64_t begin = tokens.begin; begin < tokens.end;) {
    const std::int64_t next = (begin / segment_tokens(shape_) + 1) * segment_tokens(shape_);
    const TokenRange part{begin, std::min(next, tokens.end)};
    const void* part_rows =
        static_cast<const std::byte*>(rows) + (begin - tokens.begin) * row_bytes;
    if (!is_calibrated(begin)) {
      const std::int64_t before = begin - segment_tokens(shape_);
      if (part.size() < kFewestRows && before >= 0 && is_calibrated(before)) {
        calibrate_by_the_one_before(head, begin);
      } else {
        calibrate_segment(head, begin, part.size(), part_rows, stride);
      }
    }
    write_in_segment(head, part, part_rows, stride);
    begin = part.end;
  }
}

void ScoringShadow::write_in_segment(std::int64_t head,
                                     TokenRange tokens,
                                     const void* rows,
                                     std::int64_t stride) {
  const float* channels = centres(segment_index(head, tokens.begin));
  const std::int64_t row_bytes = stride * static_cast<std::int64_t>(size_of(shape_.dtype));
  const std::int64_t dim = padded_dim(shape_);
  const int largest = is_int4(shape_) ? 15 : 255;
  std::byte* blocks = blocks_.head(head % shape_.num_layers, head / shape_.num_layers);
  std::array<float, kMaxShadowHeadDim> row;
  // The codes of padding meet queries of 0.
  std::array<std::uint8_t, kMaxShadowHeadDim> codes{};
  for (std::int64_t t = 0; t < tokens.size(); ++t) {
    widen_row(shape_.dtype,
              static_cast<const std::byte*>(rows) + t * row_bytes,
              shape_.head_dim,
              row.data());
    const std::uint16_t step = encode_row(
        row.data(), channels, channels + shape_.head_dim, shape_.head_dim, largest, codes.data());
    const std::int64_t slot = tokens.begin + t;
    const std::int64_t place = slot % kKeyBlockTokens;
    std::byte* block = blocks + slot / kKeyBlockTokens * block_bytes(shape_);
    if (is_int4(shape_)) pack_halves(codes.data(), dim);
    const std::int64_t bytes = is_int4(shape_) ? dim / 2 : dim;
    for (std::int64_t i = 0; i < bytes / kGroup; ++i) {
      std::memcpy(
          block + i * kGroupBytes + place * kGroup, codes.data() + i * kGroup, std::size_t{kGroup});
    }
    std::memcpy(block + bytes * kKeyBlockTokens + place * kStepBytes, &step, sizeof(step));
  }
}

}  // namespace hybridgen
