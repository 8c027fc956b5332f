// SPDX-License-Identifier: Apache-2.0
// Requests whose logits guess_logits_cuda guesses, and the CPU's kernel.
#pragma once

#include <algorithm>
#include <cmath>
#include <deque>
#include <limits>

#include "device_copy.h"
#include "kernels/cuda_planning.h"

namespace hybridgen::kernels::test {

inline constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

struct GuessShape {
  std::int64_t groups = 1;
  std::int64_t num_queries = 1;
  std::int64_t width = 1;
  std::vector<std::int64_t> tokens = {1};  ///< of each request
};

/// Queries of as many dimensions as a power of four, which columns turn into their first ones and
/// change in nothing: sqrt(D) on the diagonal. Gaps between rows of queries and between heads of
/// keys, and keys behind the last token, are NaN.
class Guessing {
 public:
  Guessing(DType dtype, const GuessShape& shape) : dtype_(dtype), shape_(shape) {
    while (head_dim_ < shape.width) head_dim_ *= 4;
    queries_ = nans(batch() * query_stride());
    const Array values = random_array(dtype, queries_.count(), 10);
    std::uint32_t seed = 11;
    for (std::int64_t b = 0; b < batch(); ++b) {
      for (std::int64_t i = 0; i < heads() * head_dim_; ++i) {
        queries_.set(b * query_stride() + i, values.at(b * query_stride() + i));
      }
      Array& keys = keys_.emplace_back(nans(shape.groups * key_head_stride(b)));
      const Array numbers = random_array(dtype, keys.count(), seed++);
      for (std::int64_t g = 0; g < shape.groups; ++g) {
        for (std::int64_t t = 0; t < shape.tokens[static_cast<std::size_t>(b)]; ++t) {
          for (std::int64_t w = 0; w < shape.width; ++w) {
            set_key(b, g, t, w, numbers.at(key_at(b, g, t, w)));
          }
        }
      }
    }
    columns_.assign(static_cast<std::size_t>(shape.groups * head_dim_ * shape.width), 0.0F);
    for (std::int64_t g = 0; g < shape.groups; ++g) {
      for (std::int64_t w = 0; w < shape.width; ++w) {
        set_column(g, w, w, std::sqrt(static_cast<float>(head_dim_)));
      }
    }
  }

  std::int64_t batch() const { return std::ssize(shape_.tokens); }
  std::int64_t tokens(std::int64_t b) const { return shape_.tokens[static_cast<std::size_t>(b)]; }
  std::int64_t head_dim() const { return head_dim_; }
  void set_query(std::int64_t b, std::int64_t g, std::int64_t r, std::int64_t w, float value) {
    queries_.set(query_at(b, g, r, w), value);
  }
  void set_key(std::int64_t b, std::int64_t g, std::int64_t t, std::int64_t w, float value) {
    keys_[static_cast<std::size_t>(b)].set(key_at(b, g, t, w), value);
  }
  void set_column(std::int64_t g, std::int64_t d, std::int64_t w, float value) {
    columns_[static_cast<std::size_t>((g * head_dim_ + d) * shape_.width + w)] = value;
  }
  float query(std::int64_t b, std::int64_t g, std::int64_t r, std::int64_t w) const {
    return queries_.at(query_at(b, g, r, w));
  }
  float key(std::int64_t b, std::int64_t g, std::int64_t t, std::int64_t w) const {
    return keys_[static_cast<std::size_t>(b)].at(key_at(b, g, t, w));
  }
  float column(std::int64_t g, std::int64_t d, std::int64_t w) const {
    return columns_[static_cast<std::size_t>((g * head_dim_ + d) * shape_.width + w)];
  }

  /// [G, N] of each request, in layer 1: what lies in layer 0 is NaN.
  std::vector<std::vector<float>> on_device() const {
    const DeviceCopy queries(queries_);
    std::vector<float> all_columns(columns_.size(), kNaN);
    all_columns.insert(all_columns.end(), columns_.begin(), columns_.end());
    const DeviceCopy columns(all_columns);
    std::deque<DeviceCopy> copies;
    std::deque<DeviceCopy> guesses;
    std::vector<PlanRow> rows;
    std::int64_t most = 0;
    for (std::int64_t b = 0; b < batch(); ++b) {
      const Array& keys = keys_[static_cast<std::size_t>(b)];
      Array layers = nans(2 * keys.count());
      for (std::int64_t i = 0; i < keys.count(); ++i) layers.set(keys.count() + i, keys.at(i));
      PlanRow row;
      row.num_tokens = tokens(b);
      row.width = shape_.width;
      row.columns = columns.get<float>();
      row.column_layer_stride = std::ssize(columns_);
      row.keys = copies.emplace_back(layers).get();
      row.key_layer_stride = keys.count();
      row.key_head_stride = key_head_stride(b);
      row.guesses = guesses
                        .emplace_back(std::vector<float>(
                            static_cast<std::size_t>(shape_.groups * tokens(b)), 5.0F))
                        .get<float>();
      row.guess_stride = tokens(b);
      const std::size_t bytes =
          plan_work_bytes(shape_.groups, shape_.num_queries, shape_.width, tokens(b));
      row.work = copies.emplace_back(std::vector<std::uint8_t>(bytes, 0xa5)).get();
      rows.push_back(row);
      most = std::max(most, tokens(b));
    }
    const DeviceCopy device_rows(rows);
    guess_logits_cuda({.dtype = dtype_,
                       .rows = device_rows.get<PlanRow>(),
                       .batch = batch(),
                       .groups = shape_.groups,
                       .num_queries = shape_.num_queries,
                       .head_dim = head_dim_,
                       .layer = 1,
                       .query = queries.get(),
                       .query_stride = query_stride(),
                       .max_tokens = most},
                      nullptr);
    std::vector<std::vector<float>> all;
    for (const DeviceCopy& each : guesses) all.push_back(each.values<float>());
    return all;
  }

  /// Logits of the CPU's kernel, the largest over the queries.
  std::vector<float> by_twin(std::int64_t b) const {
    std::vector<float> guesses;
    const std::int64_t blocks = (tokens(b) + 31) / 32;
    for (std::int64_t g = 0; g < shape_.groups; ++g) {
      Array keys(dtype_, blocks * 32 * shape_.width);
      std::vector<float> queries;
      for (std::int64_t t = 0; t < tokens(b); ++t) {
        for (std::int64_t w = 0; w < shape_.width; ++w) {
          keys.set((t / 32 * shape_.width + w) * 32 + t % 32, key(b, g, t, w));
        }
      }
      for (std::int64_t r = 0; r < shape_.num_queries; ++r) {
        for (std::int64_t w = 0; w < shape_.width; ++w) queries.push_back(query(b, g, r, w));
      }
      std::vector<float> logits(static_cast<std::size_t>(shape_.num_queries * tokens(b)));
      BlockedLogitsArgs args;
      args.keys = {keys.data(), dtype_, shape_.width, blocks * 32};
      args.queries = queries.data();
      args.num_queries = shape_.num_queries;
      args.tokens = {0, tokens(b)};
      args.logits = logits.data();
      args.logits_stride = tokens(b);
      cpu_kernels(Isa::kPortable).blocked_logits(args);
      for (std::int64_t t = 0; t < tokens(b); ++t) {
        float largest = -kInfinity;
        for (std::int64_t r = 0; r < shape_.num_queries; ++r) {
          largest = std::max(largest, logits[static_cast<std::size_t>(r * tokens(b) + t)]);
        }
        guesses.push_back(largest);
      }
    }
    return guesses;
  }

  /// The largest over the queries of the sum of the terms' sizes: bounds the error of every logit,
  /// and so that of the largest.
  double size_of_terms(std::int64_t b, std::int64_t g, std::int64_t t) const {
    double largest = 0.0;
    for (std::int64_t r = 0; r < shape_.num_queries; ++r) {
      double sum = 0.0;
      for (std::int64_t w = 0; w < shape_.width; ++w) {
        sum += std::abs(double{query(b, g, r, w)} * double{key(b, g, t, w)});
      }
      largest = std::max(largest, sum);
    }
    return largest;
  }

  void expect_agreement() const {
    const std::vector<std::vector<float>> guesses = on_device();
    for (std::int64_t b = 0; b < batch(); ++b) {
      const std::vector<float>& of_request = guesses[static_cast<std::size_t>(b)];
      const std::vector<float> expected = by_twin(b);
      for (std::size_t i = 0; i < expected.size(); ++i) {
        const std::int64_t g = static_cast<std::int64_t>(i) / tokens(b);
        const std::int64_t t = static_cast<std::int64_t>(i) % tokens(b);
        ASSERT_NEAR(
            of_request[i], expected[i], 2.0 * sum_error(shape_.width) * size_of_terms(b, g, t))
            << "token " << t << " of head " << g << " of request " << b;
      }
    }
  }

 private:
  Array nans(std::int64_t count) const {
    Array array(dtype_, count);
    std::memset(array.data(), 0xff, static_cast<std::size_t>(count) * size_of(dtype_));
    return array;
  }
  std::int64_t heads() const { return shape_.groups * shape_.num_queries; }
  std::int64_t query_stride() const { return heads() * head_dim_ + 3; }
  std::int64_t key_head_stride(std::int64_t b) const {
    return (tokens(b) + 31) / 32 * 32 * shape_.width + 9;
  }
  std::int64_t query_at(std::int64_t b, std::int64_t g, std::int64_t r, std::int64_t w) const {
    return b * query_stride() + (g * shape_.num_queries + r) * head_dim_ + w;
  }
  std::int64_t key_at(std::int64_t b, std::int64_t g, std::int64_t t, std::int64_t w) const {
    return g * key_head_stride(b) + (t / 32 * shape_.width + w) * 32 + t % 32;
  }

  DType dtype_;
  GuessShape shape_;
  std::int64_t head_dim_ = 1;
  Array queries_;
  std::vector<Array> keys_;
  std::vector<float> columns_;
};

}  // namespace hybridgen::kernels::test
