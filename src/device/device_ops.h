// SPDX-License-Identifier: Apache-2.0
// The mathematics of a decoder step as a handful of operations on preallocated tensors, by LibTorch
// on any device (AtenOps) and by our kernels on the CPU (CpuOps) and on CUDA (CudaOps): they are
// each other's oracle. TimedOps takes CudaOps' modelled time and computes nothing. Nothing here
// knows a model family, a method or a schedule.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>

#include "device/linear_weight.h"
#include "device/resident_cache.h"
#include "device/rope_table.h"
#include "hybridgen/core/model_config.h"
#include "kernels/decode_rows.h"

namespace hybridgen {

class WorkerPool;

/// What a host job contributes to the attention of one request in one layer, as it lies on the
/// device. Tensors that the job did not send are undefined.
struct HostPayload {
  std::int64_t count = 0;  ///< S: tokens per query head, at most
  /// >= S: R * room elements of `logits` belong to a KV head.
  std::int64_t room = 0;
  /// float32 [G, R * room]: of KV head g the first R * n elements [R, n], with n = tokens_of(g).
  at::Tensor logits;
  /// int32, first H * S elements: [H, S] rows of `values`, with S = room. Undefined: every query
  /// head of KV head g uses rows 0 .. union_sizes[g] in that order.
  at::Tensor index;
  at::Tensor values;  ///< [G, union capacity, D]; rows in token order
  at::Tensor keys;    ///< same shape; if defined, the device computes `logits` from them itself
  std::span<const std::int64_t> union_sizes;  ///< [G] rows of `values` in use
  at::Tensor device_union_sizes;              ///< the same numbers, int64 on the device
  at::Tensor output;  ///< [H, D] attention over tokens of which nothing else was sent
  at::Tensor lse;     ///< float32 [H] natural log-sum-exp of their logits
  /// The same where the job left it, in pinned memory; null: the device reads it there.
  const HostPayload* staged = nullptr;

  bool is_partial() const { return output.defined(); }
  /// Tokens that KV head g's query heads see.
  std::int64_t tokens_of(std::int64_t g) const {
    return index.defined() ? count : union_sizes[static_cast<std::size_t>(g)];
  }
  /// Of `values` in use, of any KV head; 0 if nothing of them was sent.
  std::int64_t most_rows() const {
    return union_sizes.empty() ? 0 : *std::ranges::max_element(union_sizes);
  }
};

/// Resident keys of a request in one layer as attention reads them: turned by their tokens' places.
struct TurnedKeys {
  at::Tensor keys;                           ///< [G, slots, D]; token i of KV head g in slot i
  at::Tensor places;                         ///< int64 [.., slots] rows of a rotary table
  std::span<const std::int64_t> place_rows;  ///< [G] rows of `places`
};

/// Attention of one decode row over its resident tokens and its payload.
struct AttentionItem {
  std::int64_t row = 0;                ///< of the query and output tensors
  const at::Tensor* keys = nullptr;    ///< resident keys of the layer [G, capacity, D]
  const at::Tensor* values = nullptr;  ///< resident values of the layer [G, capacity, D]
  std::int64_t first_slot = 0;    ///< resident tokens lie in slots [first_slot, first_slot + n_g)
  std::int64_t num_resident = 0;  ///< n_g, the new token included; 0: all tokens are on the host
  const HostPayload* payload = nullptr;   ///< null: resident tokens only
  at::Tensor* resident_logits = nullptr;  ///< float32 scratch, >= H * n_g elements
  /// float32 scratch, >= H * (S + n_g) elements. After merge() row h holds the softmax weights of
  /// head h, if wanted: host tokens (none if the payload is partial), then resident ones.
  at::Tensor* merged_logits = nullptr;
  /// Somebody reads resident_logits after resident_logits(), or merged_logits after merge(). Else
  /// neither need be written.
  bool wants_weights = false;
  /// float32 scratch, >= attention_scratch() elements: what resident_logits() leaves for merge().
  at::Tensor* parts = nullptr;
  at::Tensor* finished = nullptr;  ///< int32 [H] of 0, of kernels on a device that is not the host
  /// float32 [H]: where merge() leaves the natural log-sum-exp of all logits that it merged, those
  /// of a partial payload included; null: unwanted.
  at::Tensor* lse = nullptr;
  const TurnedKeys* turned = nullptr;  ///< what turn_keys() writes; null: nothing

  /// Of a row of merged_logits.
  std::int64_t merged_stride() const {
    return num_resident + (payload == nullptr || payload->is_partial() ? 0 : payload->count);
  }
};

/// The rows of a micro-batch in one layer.
struct AttentionBatch {
  std::span<const AttentionItem> items;
  std::int64_t layer = 0;
  // The same flat, one for each item, on a device that is not the host:
  const kernels::StepRow* rows = nullptr;
  const kernels::PayloadRow* payloads = nullptr;  ///< null: no item has a payload
  float* lse = nullptr;  ///< [B, H], where AttentionItem::lse lie; null: no item wants it
  /// weigh() follows, and not merge(): resident_logits() need not look at values.
  bool weights_only = false;
};

/// What the host's jobs of a micro-batch and layer have left in pinned memory.
struct PayloadBatch {
  std::span<const AttentionItem> items;  ///< payloads without `staged` are there already
  at::Tensor union_sizes;                ///< int64 [B, G] on the host: of all payloads
  at::Tensor device_union_sizes;         ///< where they go
  std::int64_t num_heads = 0;            ///< H
  // The same flat, one for each item:
  const kernels::PayloadCopy* copies = nullptr;  ///< pinned
  kernels::PayloadRow* payloads = nullptr;       ///< on the device
};

/// Where the newest resident tokens of a micro-batch go once all layers have seen them.
struct RowMoves {
  std::span<ResidentCache* const> caches;  ///< [B], the newest token the last
  at::Tensor slots;                        ///< int32 [B, L, G], pinned; -1: stays
  at::Tensor device_slots;                 ///< room for the same on the device
  const kernels::StepRow* rows = nullptr;  ///< the caches flat, on the device
};

/// A row whose offloaded tokens are guessed and ranked by turned dimensions of their keys, and
/// where what is made of it goes. Of sparse attention (weigh()) all tokens but the newest one are
/// ranked by their weights, for each query head: H stands for G below, there are no columns and
/// keys, and `guesses` are part of merged_logits.
struct PlanItem {
  std::int64_t row = 0;                 ///< of the query
  const at::Tensor* columns = nullptr;  ///< float32 [L, G, D, W], by which queries are turned
  const at::Tensor* keys = nullptr;  ///< turned ones [L, G, blocks, W, 32], tokens last, contiguous
  std::int64_t num_tokens = 0;       ///< N >= 1: the first of them
  std::int64_t most = 0;             ///< places per KV head, in [1, N]; of weights also 0
  /// So many places as the KV heads have, in the mean and without its fraction, guesses above their
  /// largest less alpha; at least one. None: `most`.
  std::optional<double> alpha{};
  bool takes_newer = false;  ///< of equal guesses
  /// float32 [G, N]: of KV head g and token t the largest product of its turned key with one of
  /// the head's queries, which are scaled, turned and rounded as the keys are.
  at::Tensor guesses{};
  /// int32 [G, most]: places of the largest guesses of a KV head, ascending, of equal ones the
  /// earlier unless takes_newer, and N in what is left of a row; all of it if a guess of any KV
  /// head is NaN.
  at::Tensor places{};
};

/// The rows of a micro-batch whose tokens the device chooses in one layer.
struct PlanBatch {
  std::span<const PlanItem> items;
  std::int64_t layer = 0;
  /// The same flat on a device that is not the host, one for each row of the query: also for rows
  /// that have failed since the step began, whose items are gone.
  const kernels::PlanRow* rows = nullptr;
  // At least, for flat rows without an item: the most tokens of one that has places, and places of
  // a KV head.
  std::int64_t max_tokens = 0;
  std::int64_t max_places = 0;

  /// Counts a row, whatever becomes of its item.
  void count(const PlanItem& item) {
    if (item.most == 0) return;
    max_tokens = std::max(max_tokens, item.num_tokens);
    max_places = std::max(max_places, item.most);
  }
  /// Of all rows.
  PlanBatch counted() const {
    PlanBatch all = *this;
    for (const PlanItem& item : items) all.count(item);
    return all;
  }
};

/// Heads that a projection made of a layer's input, and what happens to them before they meet.
struct LayerHeads {
  at::Tensor& query;                       ///< [rows, H, D]
  at::Tensor* key = nullptr;               ///< [rows, G, D]; null: queries alone
  const at::Tensor* value = nullptr;       ///< [rows, G, D], with keys
  const at::Tensor* query_norm = nullptr;  ///< [D] weight of their own RMS norm; null: none
  const at::Tensor* key_norm = nullptr;
  const RopeTable* table = nullptr;  ///< null: positions are not rotary
  at::Tensor rotation_rows{};        ///< int64 [rows] of the table
  bool rotates_key = true;
};

struct NormTarget {
  const at::Tensor& weight;
  const at::Tensor& bias;  ///< may be undefined
  at::Tensor& y;
};

/// Running result of attention over parts of the tokens: out is normalised, lse is the natural
/// logarithm of the sum of exponentials. Undefined tensors: nothing merged yet.
struct PartialAttention {
  at::Tensor out;  ///< float32 [H, T, D]
  at::Tensor lse;  ///< float32 [H, T]
};

/// Merges `part` into `sum` by log-sum-exp: equals one softmax over the union of the tokens.
void merge_partial(PartialAttention& sum, const PartialAttention& part);

class DeviceOps {
 public:
  virtual ~DeviceOps() = default;
  virtual std::string_view name() const = 0;

  /// y [rows, out] = x [rows, in] weight^T [out, in] + bias (may be undefined). y may be float32.
  virtual void linear(const at::Tensor& x,
                      const LinearWeight& weight,
                      const at::Tensor& bias,
                      at::Tensor& y) const = 0;
  /// The same by all parts of a projection.
  void project(const at::Tensor& x, const Projection& projection, at::Tensor& y) const;
  /// y[r] = table[ids[r] + offset]; ids [rows] int64, on the device.
  virtual void select_rows(const LinearWeight& table,
                           const at::Tensor& ids,
                           std::int64_t offset,
                           at::Tensor& y) const = 0;
  /// RMS or layer norm over the last dimension of x [rows, dim], or [rows, heads, dim] where heads
  /// lie side by side; y may be x.
  virtual void norm(const ModelConfig& config,
                    const at::Tensor& x,
                    const at::Tensor& weight,
                    const at::Tensor& bias,
                    at::Tensor& y) const = 0;
  /// x += addend, unless it is undefined; then first.y = norm(x), and the same with the weights of
  /// `second`, unless it is null. All [rows, dim].
  virtual void norms(const ModelConfig& config,
                     at::Tensor& x,
                     const at::Tensor& addend,
                     const NormTarget& first,
                     const NormTarget* second) const;
  /// Rotates x [rows, heads, D] in place by positions [rows] (int64, on the device).
  virtual void rotate(const RopeTable& table, const at::Tensor& positions, at::Tensor& x) const = 0;
  /// y = silu(gate) * up, all [rows, F].
  virtual void silu_gate(const at::Tensor& gate, const at::Tensor& up, at::Tensor& y) const = 0;
  virtual void relu(at::Tensor& x) const = 0;
  /// y += x.
  virtual void add(at::Tensor& y, const at::Tensor& x) const = 0;

  /// The heads' own norms and rotation; with a `batch` keys and values then become the newest
  /// resident tokens of its items, as far as these have any.
  virtual void place_heads(const ModelConfig& config,
                           const LayerHeads& heads,
                           const AttentionBatch* batch) const;

  /// The items' `turned` keys from their `keys`.
  virtual void turn_keys(const RopeTable& table, const AttentionBatch& batch) const;
  /// Copies keys and values of the newest tokens to other slots, on the current stream. `slots` may
  /// change once the device has come here.
  virtual void move_rows(const RowMoves& moves) const;

  /// Starts the copies of payloads to the device, on the current stream. Nothing where the device
  /// is the host.
  virtual void fetch(const PayloadBatch& batch) const = 0;

  /// Step 4 of the paper's Figure 12, all that can be done of the resident tokens before the
  /// payload is there: their scaled logits into resident_logits if wants_weights, and where values
  /// can be summed without the host's logits, attention over them into parts.
  virtual void resident_logits(const at::Tensor& query, const AttentionBatch& batch) const = 0;
  /// Step 5: concatenates host and resident logits in token order, one softmax, aggregates values.
  /// query and out [B, H, D].
  virtual void merge(const at::Tensor& query,
                     const AttentionBatch& batch,
                     at::Tensor& out) const = 0;

  /// Attention of T query rows [T, H, D] over keys and values [G, N, D]; causal: row t sees keys
  /// [0, t] (then N == T), else all.
  virtual PartialAttention partial_attention(const at::Tensor& query,
                                             const at::Tensor& keys,
                                             const at::Tensor& values,
                                             bool causal) const = 0;

  /// merge_partial(), which may write over sum.out.
  virtual void add_partial(PartialAttention& sum, const PartialAttention& part) const {
    merge_partial(sum, part);
  }

  /// Of the same query and keys: sums over the rows of exp(logit - lse), where a row sees the key;
  /// float32 [H, N] on the host. lse [H, T] natural, of the softmax meant, float32.
  virtual at::Tensor column_sums(const at::Tensor& query,
                                 const at::Tensor& keys,
                                 const at::Tensor& lse,
                                 bool causal) const = 0;

  /// Guesses and places of all items, on the current stream. query [B, H, D], contiguous within a
  /// row, unscaled.
  virtual void plan(const at::Tensor& query, const PlanBatch& batch) const = 0;

  // FlexGen's sparse attention, in place of merge(), on the current stream; by LibTorch's operators
  // (sparse_attention.cpp) unless overridden.
  /// Softmax weights of all tokens into merged_logits, where payloads have the keys of all
  /// offloaded ones; then the places of all items of `kept`.
  virtual void weigh(const at::Tensor& query,
                     const AttentionBatch& batch,
                     const PlanBatch& kept) const;
  /// Then out = sums by these weights of the values of the tokens in `places` and of the newest
  /// one, [B, H, D]. Payloads have index [H, S] and values: the first S = min(most, offloaded)
  /// places of a query head lie in these rows, as far as they are offloaded ones.
  virtual void sum_kept(const AttentionBatch& batch, const PlanBatch& kept, at::Tensor& out) const;

 protected:
  /// destination[:, slot, :] = rows[row]; rows [B, G, D], destination [G, capacity, D].
  virtual void append_row(const at::Tensor& rows,
                          std::int64_t row,
                          const at::Tensor& destination,
                          std::int64_t slot) const;
  /// linear() of a coded weight by linear() of dense ones: some rows of it at a time.
  void linear_restored(const at::Tensor& x,
                       const LinearWeight& weight,
                       const at::Tensor& bias,
                       at::Tensor& y) const;
};

/// Elements of AttentionItem::parts for so many tokens on the device and chosen on the host.
std::int64_t attention_scratch(std::int64_t heads,
                               std::int64_t head_dim,
                               std::int64_t num_resident,
                               std::int64_t num_chosen);

/// float32 logits of partial_attention() that exist at a time: 128 MiB. One more such tensor and
/// the block's keys and values in float32 exist beside them.
inline constexpr std::int64_t kAttentionBlockElements = std::int64_t{1} << 25;

/// Elements of a weight that linear() has in float32 at a time, where y is float32, x is not and
/// LibTorch has no such product: 64 MiB.
inline constexpr std::int64_t kWideElements = std::int64_t{1} << 24;

/// Operations through LibTorch for tensors on any device. `block_elements`: logits of a block of
/// keys in partial_attention(), at most, but for blocks of one key.
std::unique_ptr<DeviceOps> make_aten_ops(std::int64_t block_elements = kAttentionBlockElements);

/// Operations through our CUDA kernels on a device of that type, where runs_cuda_kernels(), for
/// heads of up to kernels::kMostHeadDim dimensions. Rows of a micro-batch come flat, too.
std::unique_ptr<DeviceOps> make_cuda_ops(at::Device device);
/// What those are to a timed device: as many launches, which take their modelled time and compute
/// nothing.
std::unique_ptr<DeviceOps> make_timed_ops(at::Device device);
/// Whether this build has them, and a LibTorch that tells on which stream to start them (2.13).
bool runs_cuda_kernels();

/// Whose rows an operation gets: one of each request, or many of one.
enum class RowsOf : std::uint8_t { kStep, kPrompt };

/// Operations through our kernels, for the CPU; `isa` as in CpuConfig(isa=). An operation on few
/// rows (a decode step's) is spread over the calling thread and the workers of `pool`, others, and
/// all if it is null, over LibTorch's intra-op threads of the calling thread.
std::unique_ptr<DeviceOps> make_cpu_ops(std::string_view isa,
                                        WorkerPool* pool = nullptr,
                                        RowsOf rows_of = RowsOf::kStep);

}  // namespace hybridgen
