// SPDX-License-Identifier: Apache-2.0
// Attention that ends on the host: parts of kPartTokens tokens, joined in token order, so that no
// bit depends on who computed which. Rows of keys are scored in the pass that sums the values;
// blocked keys, and all keys beside codes of values, are scored before it.
#include <algorithm>
#include <limits>
#include <numeric>
#include <optional>

#include "hybridgen/core/error.h"
#include "pipeline/host_task.h"

namespace hybridgen {
namespace {

std::span<const std::int32_t> places_of(const AttendedRows& rows) {
  return {rows.positions, static_cast<std::size_t>(rows.tokens.size())};
}

// Where rows begin that `side` has: of a range its first, of chosen tokens token 0, or their copies
// where they lie apart, as those of several blocks that were on the disk.
const std::byte* place_of(const AttendedRows& rows,
                          const StoredRows& side,
                          std::int64_t row_bytes,
                          std::vector<std::byte>& copies) {
  if (rows.positions == nullptr) {
    const StoredRows::Piece piece = side.piece_at(rows.tokens.begin);
    HYBRIDGEN_DCHECK(piece.end >= rows.tokens.end, "(a part of several blocks)");
    return piece.origin + rows.tokens.begin * row_bytes;
  }
  if (!rows.are_apart()) return side.piece_at(0).origin;
  copies.resize(static_cast<std::size_t>(rows.tokens.size() * row_bytes));
  side.copy(places_of(rows), copies.data());
  return copies.data();
}

// The same of codes, whose first tokens are read elsewhere, as they lie in full: these keep their
// places, the others follow. Returns the places.
const std::int32_t* put_together(const AttendedRows& rows,
                                 QuantisedRowView& codes,
                                 HostScratch::Attending& memory) {
  const std::span<const std::int32_t> chosen = places_of(rows);
  memory.values.resize((static_cast<std::size_t>(codes.num_exact) + chosen.size()) *
                       static_cast<std::size_t>(codes.row_bytes));
  rows.values->copy(chosen, memory.values.data() + codes.num_exact * codes.row_bytes);
  codes.rows = memory.values.data();
  memory.places.assign(chosen.begin(), chosen.end());
  auto place = static_cast<std::int32_t>(codes.num_exact);
  for (std::int32_t& each : memory.places) {
    if (each >= codes.num_exact) each = place;
    ++place;
  }
  return memory.places.data();
}

}  // namespace

kernels::AttentionPart HostTaskRunner::part_of(const HostTask& task, std::int64_t part) const {
  float* out = task.job.buffers.parts +
               task.kv_head * attended_floats(task.job.num_offloaded, per_group_, head_dim_) +
               part * per_group_ * (head_dim_ + 2);
  float* peaks = out + per_group_ * head_dim_;
  return {out, peaks, peaks + per_group_};
}

void HostTaskRunner::attend(const HostTask& task, const std::int32_t* positions) const {
  const StoredHead head = stored_head(task);
  const std::int64_t count = task.tokens.size();
  const bool in_one_pass = head.has_rows();
  const std::span<const std::int32_t> chosen(
      positions, positions == nullptr ? 0 : static_cast<std::size_t>(count));
  const auto bring = [&](KvSide side) {
    return positions == nullptr ? head.bring(side) : head.bring(side, chosen);
  };
  float* logits = task.scratch.logits.data();
  std::optional<StoredRows> keys;
  if (in_one_pass) {
    keys.emplace(bring(KvSide::kKeys));
  } else if (positions == nullptr) {
    head.scan(task.tokens, queries(task), logits, count, task.scratch.stored);
  } else {
    head.score(chosen, queries(task), logits, count, task.scratch.stored);
  }
  const StoredRows values = bring(KvSide::kValues);
  for (std::int64_t done = 0; done < count; done += kernels::kPartTokens) {
    const std::int64_t rows = std::min(kernels::kPartTokens, count - done);
    const std::int64_t first = task.tokens.begin + done;
    kernels::AttendArgs args;
    args.count = rows;
    if (!in_one_pass) {
      args.logits = logits + done;
      args.logits_stride = count;
    }
    args.part = part_of(task, first / kernels::kPartTokens);
    attend_part(task,
                {.tokens = {first, first + rows},
                 .positions = positions == nullptr ? nullptr : positions + done,
                 .keys = keys ? &*keys : nullptr,
                 .values = &values},
                args);
  }
  task.result.key_bytes += count * head.key_bytes();
  task.result.value_bytes += count * head.value_bytes();
}

void HostTaskRunner::attend_part(const HostTask& task,
                                 const AttendedRows& rows,
                                 kernels::AttendArgs args) const {
  HostScratch::Attending& memory = task.scratch.attending;
  if (task.job.store->shape().value_precision != KvPrecision::kFull) {
    sum_value_codes(task, rows, args);
    return;
  }
  args.positions = rows.are_apart() ? nullptr : rows.positions;
  args.values = place_of(rows, *rows.values, row_bytes(task), memory.values);
  if (rows.keys != nullptr) {
    args.keys = place_of(rows, *rows.keys, row_bytes(task), memory.keys);
    args.key_stride = head_dim_;
  }
  memory.sums.resize(static_cast<std::size_t>(kernels::attend_scratch(per_group_, head_dim_)));
  args.dtype = task.job.store->shape().dtype;
  args.queries = task.scratch.queries.data();
  args.num_queries = per_group_;
  args.head_dim = head_dim_;
  args.value_stride = head_dim_;
  args.scratch = memory.sums.data();
  kernels_.attend(args);
}

void HostTaskRunner::sum_value_codes(const HostTask& task,
                                     const AttendedRows& rows,
                                     const kernels::AttendArgs& args) const {
  for (std::int64_t r = 0; r < per_group_; ++r) {
    float* const logits = args.logits + r * args.logits_stride;
    float peak = -std::numeric_limits<float>::infinity();
    for (std::int64_t j = 0; j < args.count; ++j) {
      peak = logits[j] > peak ? logits[j] : peak;  // a NaN is passed over, and makes the sum NaN
    }
    kernels_.softmax_weights(logits, args.count, peak, logits);
    args.part.peaks[r] = peak;
    args.part.sums[r] = std::accumulate(logits, logits + args.count, 0.0F);
  }
  QuantisedRowView values = task.job.store->value_codes(task.layer, task.kv_head);
  const std::int32_t* positions = rows.positions;
  if (positions == nullptr) {
    values.rows = rows.values->piece_at(rows.tokens.begin).origin;
  } else if (!rows.values->is_one_piece()) {
    positions = put_together(rows, values, task.scratch.attending);
  }
  kernels_.stored_value_sums({.values = values,
                              .positions = positions,
                              .first = rows.tokens.begin,
                              .count = args.count,
                              .weights = args.logits,
                              .weights_stride = args.logits_stride,
                              .num_queries = per_group_,
                              .out = args.part.out,
                              .out_stride = head_dim_});
}

void HostTaskRunner::join_parts(const HostTask& task, std::int64_t num_tokens) const {
  HostScratch::Attending& memory = task.scratch.attending;
  const std::int64_t num_parts = kernels::part_count(num_tokens);
  memory.parts.clear();
  for (std::int64_t part = 0; part < num_parts; ++part) {
    memory.parts.push_back(part_of(task, part));
  }
  memory.shares.resize(static_cast<std::size_t>(num_parts));
  const std::int64_t first_head = task.kv_head * per_group_;
  kernels_.merge_parts(
      {.dtype = task.job.store->shape().dtype,
       .rows = per_group_,
       .head_dim = head_dim_,
       .parts = memory.parts.data(),
       .num_parts = num_parts,
       .shares = memory.shares.data(),
       .out = static_cast<std::byte*>(task.job.buffers.output) + first_head * row_bytes(task),
       .out_stride = head_dim_,
       .lse = task.job.buffers.lse + first_head});
}

}  // namespace hybridgen
