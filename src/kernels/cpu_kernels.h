// SPDX-License-Identifier: Apache-2.0
// CPU kernels: raw pointers and sizes in, raw pointers out; no policy, no threads, no allocation,
// no Torch. Callers split the work (rows, heads, token ranges) over threads and check shapes
// before. Every entry exists once per instruction set, compiled from the same source, chosen at run
// time. All sums are accumulated in float32. Strides and sizes count elements, not bytes.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "hybridgen/core/kv_views.h"
#include "hybridgen/core/types.h"

namespace hybridgen::kernels {

/// Weakest first; each implies all before it. kAvx512Vnni scans shadows faster; kAvx512Bf16 and
/// kAmx multiply bfloat16 keys by queries that are bfloat16 too, however many (bf16_logits-inl.h).
enum class Isa : std::uint8_t { kPortable, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx };
std::string_view name_of(Isa isa);

/// The cache that a scan fetches what it will read next into. Into the first level is best where
/// that has room for enough lines on their way; where it has not, such fetches starve the scan.
enum class Prefetch : std::uint8_t { kL1, kL2, kL3 };
std::string_view name_of(Prefetch prefetch);

/// "auto" gives the environment's HYBRIDGEN_PREFETCH if set, else what a measurement of some
/// milliseconds, made once per process, found fastest; otherwise a name: "l1", "l2" or "l3". Throws
/// ConfigError for an unknown name.
Prefetch resolve_prefetch(std::string_view name);

/// resolve_prefetch("auto") of the first call, kept.
Prefetch scan_prefetch();

/// y[r, n] = sum_k x[r, k] * weight[n, k] + bias[n]   for r in [0, rows), n in [begin, end).
struct LinearArgs {
  DType dtype = DType::kFloat32;    ///< of x, weight and bias
  DType y_dtype = DType::kFloat32;  ///< equal to dtype, or kFloat32
  const void* x = nullptr;          ///< [rows, in], row stride x_stride
  const void* weight = nullptr;     ///< [out, in] contiguous
  const void* bias = nullptr;       ///< [out] or null
  void* y = nullptr;                ///< [rows, out], row stride y_stride
  std::int64_t rows = 0;
  std::int64_t in_features = 0;
  std::int64_t x_stride = 0;
  std::int64_t y_stride = 0;
};

/// y = x * rsqrt(mean(x^2) + eps), rounded to dtype, times weight (the order of Llama's reference);
/// or layer norm with bias. y may alias x.
struct NormArgs {
  DType dtype = DType::kFloat32;
  const void* x = nullptr;  ///< [rows, dim], row stride x_stride
  const void* weight = nullptr;
  const void* bias = nullptr;  ///< layer norm only
  void* y = nullptr;           ///< [rows, dim], row stride y_stride
  std::int64_t rows = 0;
  std::int64_t dim = 0;
  std::int64_t x_stride = 0;
  std::int64_t y_stride = 0;
  float eps = 1e-5F;
};

/// In place rotation of halves: (a, b) -> (a cos - b sin, b cos + a sin) with a = x[.., i],
/// b = x[.., i + D/2] and the angle of position[row].
struct RotateArgs {
  DType dtype = DType::kFloat32;
  void* x = nullptr;  ///< [rows, heads, D], row stride x_stride, heads contiguous
  const std::int64_t* positions = nullptr;  ///< [rows]
  const float* cosines = nullptr;           ///< [max_positions, D / 2]
  const float* sines = nullptr;             ///< [max_positions, D / 2]
  std::int64_t rows = 0;
  std::int64_t heads = 0;
  std::int64_t head_dim = 0;
  std::int64_t x_stride = 0;
};

/// y = silu(gate) * up, in float32, rounded once. Rows of width dim with own strides.
struct SiluGateArgs {
  DType dtype = DType::kFloat32;
  const void* gate = nullptr;
  const void* up = nullptr;
  void* y = nullptr;
  std::int64_t rows = 0;
  std::int64_t dim = 0;
  std::int64_t gate_stride = 0;
  std::int64_t up_stride = 0;
  std::int64_t y_stride = 0;
};

/// Logits of one KV head over offloaded keys: logits[r, t - begin] = sum_d queries[r, d] * K[t, d]
/// for r in [0, num_queries), t in [begin, end). Queries carry the 1/sqrt(D) scale already.
struct BlockedLogitsArgs {
  BlockedKeyView keys;
  const float* queries = nullptr;  ///< [num_queries, D] contiguous
  std::int64_t num_queries = 0;
  TokenRange tokens;        ///< any begin and end; need not be multiples of the block
  float* logits = nullptr;  ///< row stride logits_stride
  std::int64_t logits_stride = 0;
  Prefetch prefetch = scan_prefetch();  ///< changes no bit
};

/// The same over chosen positions: logits[r, j] = queries[r] . K[positions[j]].
struct ChosenLogitsArgs {
  BlockedKeyView keys;
  const float* queries = nullptr;
  std::int64_t num_queries = 0;
  const std::int32_t* positions = nullptr;  ///< [count], each in [0, capacity)
  std::int64_t count = 0;
  float* logits = nullptr;
  std::int64_t logits_stride = 0;
  Prefetch prefetch = scan_prefetch();
};

/// The same over row-major keys, K[t] at keys + t * key_stride: logits[r, j] = queries[r] . K[j],
/// or K[positions[j]]. A logit is the same bits either way.
struct RowLogitsArgs {
  DType dtype = DType::kFloat32;
  const void* keys = nullptr;
  std::int64_t key_stride = 0;
  std::int64_t head_dim = 0;
  const std::int32_t* positions = nullptr;  ///< [count], or null: rows 0 to count
  std::int64_t count = 0;
  const float* queries = nullptr;
  std::int64_t num_queries = 0;
  float* logits = nullptr;
  std::int64_t logits_stride = 0;
};

/// Scores of one KV head over a shadow of its keys: for r in [0, num_queries), t in [begin, end)
/// scores[r, t - begin] = (sum_d queries[r, d] * value(code[t, d])) * step[t] * scales[r], with the
/// sum exact in integers: every instruction set gives the same bits. Queries and scales are those
/// of prepare_shadow_queries; the scores are then the logits less one constant per query.
struct ShadowLogitsArgs {
  ShadowKeyView keys;
  const std::int8_t* queries = nullptr;  ///< [num_queries, keys.padded_dim] contiguous
  const float* scales = nullptr;         ///< [num_queries]
  std::int64_t num_queries = 0;
  TokenRange tokens;        ///< any begin and end; need not be multiples of the block
  float* scores = nullptr;  ///< row stride scores_stride
  std::int64_t scores_stride = 0;
  Prefetch prefetch = scan_prefetch();
};

/// Logits of one KV head over keys stored in 8 or 4 bits: logits[r, t - begin] = query r . K[t],
/// with K what the codes hold, summed in float32; or of chosen positions, with the same bits.
/// Queries, starts and constants are those of prepare_stored_queries.
struct StoredLogitsArgs {
  ShadowKeyView keys;
  const float* queries = nullptr;    ///< [num_queries, keys.padded_dim] contiguous
  const float* starts = nullptr;     ///< [num_queries]
  const float* constants = nullptr;  ///< [num_queries]
  std::int64_t num_queries = 0;
  TokenRange tokens;                        ///< any inside the view, unless there are positions
  const std::int32_t* positions = nullptr;  ///< [count] or null
  std::int64_t count = 0;
  float* logits = nullptr;  ///< row stride logits_stride
  std::int64_t logits_stride = 0;
};

/// out[j, :] = K[positions[j]], or K[first + j], of keys stored in 8 or 4 bits, as rows of `dtype`.
struct StoredKeyRowsArgs {
  ShadowKeyView keys;
  DType dtype = DType::kFloat32;
  const std::int32_t* positions = nullptr;  ///< [count] or null
  std::int64_t first = 0;
  std::int64_t count = 0;
  void* out = nullptr;  ///< [count, D] contiguous
};

/// out[j, :] = V[positions[j]], or V[first + j], of values stored in 8 or 4 bits, in their dtype.
struct StoredValueRowsArgs {
  QuantisedRowView values;
  const std::int32_t* positions = nullptr;  ///< [count] or null
  std::int64_t first = 0;
  std::int64_t count = 0;
  void* out = nullptr;  ///< [count, D] contiguous
};

/// out[r, :] = sum_j weights[r, j] * V[positions[j]], or V[first + j]. Positions ascend.
struct StoredValueSumsArgs {
  QuantisedRowView values;
  const std::int32_t* positions = nullptr;  ///< [count] or null
  std::int64_t first = 0;
  std::int64_t count = 0;
  const float* weights = nullptr;  ///< [num_queries, count], row stride weights_stride
  std::int64_t weights_stride = 0;
  std::int64_t num_queries = 0;
  float* out = nullptr;  ///< [num_queries, D], row stride out_stride
  std::int64_t out_stride = 0;
};

/// Value rows of one KV head, in token order: chosen rows (a union over the group's query heads,
/// `host_index` says which row each logit belongs to), then rows that lie next to each other. The
/// host finishes attention with it; `attend` is what a device's step takes.
/// softmax_values: weights[r, :] = softmax(logits[r, 0 .. host_count + resident_count)), in place;
/// out[r, d] = sum_j weights[r, j] * V[j, d].
/// -inf logits get weight 0; a row whose logits are all -inf, or that has none, gives out = 0.
/// Without `host_index` all query heads use host rows 0 .. host_count in that order.
struct SoftmaxValuesArgs {
  DType dtype = DType::kFloat32;  ///< of values and out
  float* logits = nullptr;        ///< [num_queries, host_count + resident_count], logits_stride
  std::int64_t logits_stride = 0;
  std::int64_t num_queries = 0;
  std::int64_t head_dim = 0;
  std::int64_t host_count = 0;               ///< S
  const std::int32_t* host_index = nullptr;  ///< [num_queries, S] row of host_values, or null
  const void* host_values = nullptr;         ///< [union rows, D] contiguous
  std::int64_t resident_count = 0;           ///< n_g
  const void* resident_values = nullptr;     ///< row t at + t * resident_stride
  std::int64_t resident_stride = 0;
  void* out = nullptr;  ///< [num_queries, D], row stride out_stride
  std::int64_t out_stride = 0;
  float* lse = nullptr;  ///< [num_queries] natural log-sum-exp of the logits, or null
};

/// Attention of `R` query heads over some of their tokens, unnormalised, so that parts can be
/// joined.
struct AttentionPart {
  float* out = nullptr;    ///< [R, D] sum over the tokens of exp(logit - peak) * V
  float* peaks = nullptr;  ///< [R] largest logit; -inf: none counts
  float* sums = nullptr;   ///< [R] sum of exp(logit - peak); 0: no token counts
};

/// Tokens of a part that a caller makes of more of them, so that it does not depend on who computes
/// which: a fixed number, counted from the first token.
inline constexpr std::int64_t kPartTokens = 256;
inline constexpr std::int64_t part_count(std::int64_t tokens) {
  return (tokens + kPartTokens - 1) / kPartTokens;
}

/// A part of the attention of one KV head's query heads over `count` tokens: token j's rows are
/// keys and values at row j, or positions[j]. Logits are queries . keys, or given.
struct AttendArgs {
  DType dtype = DType::kFloat32;   ///< of keys and values
  const float* queries = nullptr;  ///< [R, D] with the scale; unread if logits are given
  std::int64_t num_queries = 0;    ///< R
  std::int64_t head_dim = 0;
  const void* keys = nullptr;  ///< row t at t * key_stride; null: logits are given
  std::int64_t key_stride = 0;
  const void* values = nullptr;  ///< row t at t * value_stride
  std::int64_t value_stride = 0;
  const std::int32_t* positions = nullptr;  ///< [count] rows, or null: 0 to count
  std::int64_t count = 0;
  /// [R, count], row stride logits_stride: read where they are given, else written unless null.
  float* logits = nullptr;
  std::int64_t logits_stride = 0;
  AttentionPart part;
  float* scratch = nullptr;  ///< attend_scratch(R, D) floats
};

inline constexpr std::int64_t kAttendTile = 64;  ///< tokens between two looks at the largest logit
inline constexpr std::int64_t attend_scratch(std::int64_t num_queries, std::int64_t head_dim) {
  // Queries and sums of whole vectors; logits of a tile; a factor; room to begin at a cache line.
  return num_queries * (2 * ((head_dim + 31) / 32 * 32) + kAttendTile + 1) + 16;
}

/// One softmax over the tokens of all parts: out[r] = sum_i e^peak_i out_i / sum_i e^peak_i sum_i.
/// Parts are added in their order. No token that counts: out = 0.
struct MergePartsArgs {
  DType dtype = DType::kFloat32;  ///< of out
  std::int64_t rows = 0;          ///< R of every part
  std::int64_t head_dim = 0;
  const AttentionPart* parts = nullptr;
  std::int64_t num_parts = 0;
  float* shares = nullptr;  ///< scratch, [num_parts]
  void* out = nullptr;      ///< [rows, D], row stride out_stride; null: unwanted
  std::int64_t out_stride = 0;
  float* lse = nullptr;  ///< [rows] natural log-sum-exp of all logits; null: unwanted
};

/// What the random draws of one row share; see gumbel.h.
struct GumbelRow {
  std::uint32_t keys[2] = {};
};

/// Attention of the query heads of one KV head, for the rows of a prompt: out and lse as of one
/// softmax(scale q K^T) V per head and row. Rows that see no key give out = 0 and lse = -inf.
struct PrefillAttentionArgs {
  DType dtype = DType::kFloat32;  ///< of queries, keys and values
  const void* queries = nullptr;  ///< row r, head h at r * query_row_stride + h * D
  std::int64_t query_row_stride = 0;
  std::int64_t num_queries = 0;  ///< query heads
  std::int64_t rows = 0;
  std::int64_t head_dim = 0;
  float scale = 1.0F;
  const void* keys = nullptr;  ///< row t at t * key_stride
  std::int64_t key_stride = 0;
  const void* values = nullptr;
  std::int64_t value_stride = 0;
  std::int64_t count = 0;      ///< of keys
  bool is_causal = false;      ///< row r sees keys [0, first_row + r], else all
  std::int64_t first_row = 0;  ///< below 0: the first rows see none
  float* out = nullptr;        ///< row r of head h at h * out_head_stride + r * D
  std::int64_t out_head_stride = 0;
  float* lse = nullptr;  ///< natural log-sum-exp, at h * lse_head_stride + r
  std::int64_t lse_head_stride = 0;
  float* scratch = nullptr;  ///< prefill_scratch(args) floats
};

/// New scores of tokens in slots: accumulated[j] += sum over r of rows[r, j] * scales[r].
struct ScoreSumArgs {
  const float* rows = nullptr;  ///< [num_rows, count], one row per query head
  std::int64_t row_stride = 0;
  std::int64_t num_rows = 0;
  const float* scales = nullptr;            ///< [num_rows]
  const std::int32_t* positions = nullptr;  ///< [count] of the tokens in the slots
  std::int64_t count = 0;
  std::int64_t before = 0;        ///< only tokens of positions below it are compared
  double* accumulated = nullptr;  ///< [count]
};

struct LeastScore {
  /// Of the compared tokens the one with the least accumulated score, of equal ones that of the
  /// largest position; -1 if there are none.
  std::int64_t slot = -1;
  bool has_nan = false;  ///< of the rows; then nothing was added
};

/// Rows of x that PreparedLinear prepares together.
inline constexpr std::int64_t kPreparedRows = 16;

/// CpuKernels::linear for more rows, which are bound by arithmetic: x is prepared once for all
/// threads, block by block, then threads multiply ranges of outputs. Prepared rows and scratch are
/// aligned to cache lines.
struct PreparedLinear {
  std::int64_t (*rows_bytes)(const LinearArgs& args) = nullptr;  ///< 0: x is read as it lies
  /// Rows [kPreparedRows * block, + kPreparedRows) of x to their place in `prepared`.
  void (*prepare_rows)(const LinearArgs& args, std::int64_t block, void* prepared) = nullptr;
  /// Outputs that a thread best takes at a time.
  std::int64_t (*outputs)(const LinearArgs& args) = nullptr;
  std::int64_t (*scratch_bytes)(const LinearArgs& args) = nullptr;  ///< of one multiply()
  void (*multiply)(const LinearArgs& args,
                   const void* prepared,
                   std::int64_t begin,
                   std::int64_t end,
                   void* scratch) = nullptr;
};

/// Function table of one instruction set.
struct CpuKernels {
  Isa isa = Isa::kPortable;
  void (*linear)(const LinearArgs& args, std::int64_t begin, std::int64_t end) = nullptr;
  PreparedLinear prepared_linear;
  void (*rms_norm)(const NormArgs& args) = nullptr;
  void (*layer_norm)(const NormArgs& args) = nullptr;
  void (*rotate)(const RotateArgs& args) = nullptr;
  void (*silu_gate)(const SiluGateArgs& args) = nullptr;
  void (*relu)(DType dtype, void* x, std::int64_t count) = nullptr;
  void (*add)(DType dtype, void* y, const void* x, std::int64_t count) = nullptr;  ///< y += x
  /// float32 out = x * scale.
  void (*scale_to_float)(DType dtype, const void* x, float scale, float* out, std::int64_t count) =
      nullptr;
  void (*blocked_logits)(const BlockedLogitsArgs& args) = nullptr;
  void (*chosen_logits)(const ChosenLogitsArgs& args) = nullptr;
  void (*row_logits)(const RowLogitsArgs& args) = nullptr;
  void (*shadow_logits)(const ShadowLogitsArgs& args) = nullptr;
  void (*stored_key_logits)(const StoredLogitsArgs& args) = nullptr;
  void (*stored_key_rows)(const StoredKeyRowsArgs& args) = nullptr;
  void (*stored_value_rows)(const StoredValueRowsArgs& args) = nullptr;
  void (*stored_value_sums)(const StoredValueSumsArgs& args) = nullptr;
  void (*softmax_values)(const SoftmaxValuesArgs& args) = nullptr;
  void (*attend)(const AttendArgs& args) = nullptr;
  void (*merge_parts)(const MergePartsArgs& args) = nullptr;
  /// weights[j] = exp(logits[j] - lse); all 0 if lse is -inf.
  void (*softmax_weights)(const float* logits,
                          std::int64_t count,
                          float lse,
                          float* weights) = nullptr;
  /// Natural log-sum-exp; -inf if every logit is, or there is none. NaN if one is.
  float (*log_sum_exp)(const float* logits, std::int64_t count) = nullptr;
  /// out[j] = -ln(-ln u) of the draw at position first + j.
  void (*gumbel_row)(const GumbelRow& row,
                     std::int64_t first,
                     std::int64_t count,
                     float* out) = nullptr;
  /// out[j] = -ln u of the draw at positions[j] (>= 0): exponential, of which Gumbel noise is -ln.
  void (*exponential_gather)(const GumbelRow& row,
                             const std::int32_t* positions,
                             std::int64_t count,
                             float* out) = nullptr;
  /// scores[j] = softmax over j of (ln weights[j] - ln exponentials[j]) / tau, times the sum that
  /// is returned; 0 where the weight is 0. The sum is NaN if a weight is NaN or infinite, else,
  /// unless all weights are 0, >= 1. `exponentials` may be null (all 1: no noise) and may be
  /// `scores`.
  float (*tempered_softmax)(const float* weights,
                            const float* exponentials,
                            float tau,
                            std::int64_t count,
                            float* scores) = nullptr;
  /// Adds, and finds the least sum on the way.
  LeastScore (*add_scores)(const ScoreSumArgs& args) = nullptr;
  std::int64_t (*prefill_scratch)(const PrefillAttentionArgs& args) = nullptr;
  void (*prefill_attention)(const PrefillAttentionArgs& args) = nullptr;
  /// Of the same arguments without values, and with `lse` read: out[h, t] = sum over the rows r
  /// that see key t of exp(logit[h, r, t] - lse[h, r]), key t of head h at h * out_head_stride + t.
  /// A sum adds the rows in their order.
  void (*column_sums)(const PrefillAttentionArgs& args) = nullptr;
};

/// Table of `isa`. Throws ConfigError if this CPU lacks it, listing those it has.
const CpuKernels& cpu_kernels(Isa isa);

/// Whether the processor multiplies float16 numbers itself, as LibTorch's products then do.
bool has_float16_arithmetic();

/// Instruction sets this CPU (and its operating system state) supports, weakest first.
std::vector<Isa> supported_isas();

/// "auto" gives the environment's HYBRIDGEN_ISA if set, else the strongest supported; otherwise
/// a name: "portable", "avx2", "avx512", "avx512_vnni", "avx512_bf16" or "amx". Throws ConfigError
/// for an unknown name or one the CPU lacks.
Isa resolve_isa(std::string_view name);

// ---- Kernels that do not depend on the instruction set
// -------------------------------------------

/// The k largest of `scores` [n] (k <= n): positions ascending and, beside them, their scores. Ties
/// break by position. Returns false, leaving the outputs unspecified, if a NaN is among the scores.
/// `scratch` keeps its size between calls: steady state does not allocate once it has
/// top_k_scratch(n) elements.
/// `threshold`, if given, makes it faster, never different: the value that a call for a similar row
/// left there (the row of the step before), NaN for the first one.
bool top_k(const float* scores,
           std::int64_t n,
           std::int64_t k,
           std::int32_t* positions,
           float* values,
           std::vector<float>& scratch,
           float* threshold = nullptr);
std::int64_t top_k_scratch(std::int64_t n);

/// How many of the largest of `weights` [n], which sum to 1, sum to `mass` in (0, 1); in [1, most],
/// 0 if n is. All of them if rounding leaves them short of it; NaN counts as no weight. `scratch`
/// as in top_k.
std::int64_t count_mass(const float* weights,
                        std::int64_t n,
                        double mass,
                        std::int64_t most,
                        std::vector<float>& scratch);

/// row_logits of chosen rows: logits[r, j] = queries[r] . K[positions[j]], with `args.keys` the row
/// of position 0; `args.positions` and `args.count` are ignored.
void chosen_row_logits(const CpuKernels& kernels,
                       const RowLogitsArgs& args,
                       const std::int32_t* positions,
                       std::int64_t count);

/// Queries of one KV head, made ready for shadow_logits: each is multiplied by the channels'
/// spreads and rounded to eight bits with one scale of its own. queries [num_queries,
/// keys.head_dim] contiguous; rounded [num_queries, keys.padded_dim]; scales [num_queries]. A query
/// that holds infinity or NaN gets the scale NaN, and so scores NaN.
void prepare_shadow_queries(const ShadowKeyView& keys,
                            const float* queries,
                            std::int64_t num_queries,
                            std::int8_t* rounded,
                            float* scales);

/// Queries of one KV head, made ready for stored_key_logits: each is multiplied by the channels'
/// spreads; a logit's sum starts at -(2^bits - 1) / 2 times the sum of that, and the query times
/// the centres is added to it. queries [num_queries, keys.head_dim] contiguous; folded
/// [num_queries, keys.padded_dim]; starts and constants [num_queries].
void prepare_stored_queries(const ShadowKeyView& keys,
                            const float* queries,
                            std::int64_t num_queries,
                            float* folded,
                            float* starts,
                            float* constants);

/// Who reads gathered rows next.
enum class RowReader : std::uint8_t {
  kCpu,     ///< soon, so they should stay in the cache
  kDevice,  ///< a device, from memory: stores pass by the cache, which keeps what the CPU needs
};

/// out[j, :] = rows[positions[j], :] for j in [0, count); rows of `row_bytes` contiguous bytes.
/// Rows that follow each other in memory too are copied as one. When it returns, every core and
/// device sees them.
void gather_rows(const void* rows,
                 std::int64_t row_bytes,
                 const std::int32_t* positions,
                 std::int64_t count,
                 void* out,
                 RowReader reader = RowReader::kCpu);

/// `bytes` bytes, the same way.
void copy_rows(const void* rows, std::int64_t bytes, void* out, RowReader reader = RowReader::kCpu);

/// Keys at `positions` un-blocked into [count, D] rows.
void gather_blocked_keys(const BlockedKeyView& keys,
                         const std::int32_t* positions,
                         std::int64_t count,
                         void* out);

/// Union of `num_lists` ascending lists of `count` positions each ([num_lists, count] contiguous):
/// ascending unique positions into `merged` (room for num_lists * count); index[l, j] = place of
/// lists[l, j] in `merged`. Returns the union's size. `scratch` takes 2 bits per position between
/// the smallest and the largest.
std::int64_t merge_positions(const std::int32_t* lists,
                             std::int64_t num_lists,
                             std::int64_t count,
                             std::int32_t* merged,
                             std::int32_t* index,
                             std::vector<std::uint64_t>& scratch);

/// Union of positions in [0, num_tokens), in any order: ascending into `merged`. Returns its size.
/// `scratch` takes a bit per token.
std::int64_t union_of(std::span<const std::int32_t> positions,
                      std::int64_t num_tokens,
                      std::int32_t* merged,
                      std::vector<std::uint64_t>& scratch);

/// Token Concatenator (paper §4.2.3): per row, host logits then resident logits, which is the
/// original token order because every offloaded position precedes every resident one.
/// out[r] = host[r, 0..host_count) ++ resident[r, 0..resident_count).
void concat_logits(const float* host,
                   std::int64_t host_stride,
                   std::int64_t host_count,
                   const float* resident,
                   std::int64_t resident_stride,
                   std::int64_t resident_count,
                   float* out,
                   std::int64_t out_stride,
                   std::int64_t rows);

/// Reads `bytes` from memory as fast as one thread can (for the machine's read ceiling); returns a
/// checksum so that it is not optimised away.
std::uint64_t read_all(const void* data, std::int64_t bytes);

}  // namespace hybridgen::kernels
