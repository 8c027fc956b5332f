// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <atomic>
#include <vector>

#include "device/cpu_ops.h"
#include "device/planning.h"

namespace hybridgen {
namespace {

// Tokens whose logits a thread guesses at a time.
constexpr std::int64_t kGuessedTokens = 2048;

}  // namespace

void CpuOps::plan(const at::Tensor& query, const PlanBatch& batch) const {
  for (const PlanItem& item : batch.items) {
    guess(turned_queries(query, item, batch.layer), item.keys->select(0, batch.layer), item);
    rank(item,
         item.alpha ? count_near(item.guesses, *item.alpha, item.most).item<std::int64_t>()
                    : item.most);
  }
}

void CpuOps::guess(const at::Tensor& queries, const at::Tensor& keys, const PlanItem& item) const {
  const std::int64_t num_queries = queries.size(1);
  const std::int64_t width = queries.size(2);
  const std::int64_t tokens = item.num_tokens;
  const at::Tensor rows = queries.to(at::kFloat).contiguous();
  float* const guesses = item.guesses.mutable_data_ptr<float>();
  const std::int64_t chunks = (tokens + kGuessedTokens - 1) / kGuessedTokens;
  const std::int64_t products = std::min(tokens, kGuessedTokens) * num_queries * width;
  const std::int64_t grain = std::max<std::int64_t>(1, kParallelGrain / products);
  for_ranges(1, queries.size(0) * chunks, grain, [&](std::int64_t begin, std::int64_t end) {
    thread_local std::vector<float> logits;
    logits.resize(static_cast<std::size_t>(num_queries * kGuessedTokens));
    for (std::int64_t task = begin; task < end; ++task) {
      const std::int64_t g = task / chunks;
      const std::int64_t first = task % chunks * kGuessedTokens;
      kernels::BlockedLogitsArgs args;
      args.keys = {offset(keys.const_data_ptr(), g * keys.stride(0), keys.element_size()),
                   dtype_of(keys),
                   width,
                   keys.size(1) * kKeyBlockTokens};
      args.queries = rows.const_data_ptr<float>() + g * num_queries * width;
      args.num_queries = num_queries;
      args.tokens = {first, std::min(tokens, first + kGuessedTokens)};
      args.logits = logits.data();
      args.logits_stride = kGuessedTokens;
      kernels_.blocked_logits(args);
      float* out = guesses + g * tokens + first;
      std::copy_n(logits.data(), args.tokens.size(), out);
      for (std::int64_t r = 1; r < num_queries; ++r) {
        const float* row = logits.data() + r * kGuessedTokens;
        for (std::int64_t t = 0; t < args.tokens.size(); ++t) {
          out[t] = row[t] > out[t] || row[t] != row[t] ? row[t] : out[t];  // NaN stays
        }
      }
    }
  });
}

void CpuOps::rank(const PlanItem& item, std::int64_t count) const {
  const std::int64_t n = item.num_tokens;
  std::int32_t* const places = item.places.mutable_data_ptr<std::int32_t>();
  std::fill_n(places, item.places.numel(), static_cast<std::int32_t>(n));
  std::atomic<bool> has_nan = false;
  const std::int64_t grain = std::max<std::int64_t>(1, kParallelGrain / n);
  for_ranges(1, item.guesses.size(0), grain, [&](std::int64_t begin, std::int64_t end) {
    thread_local std::vector<float> scratch;
    thread_local std::vector<float> values;
    values.resize(static_cast<std::size_t>(count));
    for (std::int64_t row = begin; row < end; ++row) {
      if (!kernels::top_k(item.guesses.const_data_ptr<float>() + row * n,
                          n,
                          count,
                          places + row * item.most,
                          values.data(),
                          scratch)) {
        has_nan = true;
      }
    }
  });
  if (has_nan) {
    std::fill_n(places, item.places.numel(), static_cast<std::int32_t>(n));
  }
}

}  // namespace hybridgen
