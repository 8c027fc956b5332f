// SPDX-License-Identifier: Apache-2.0
// Decode attention on a device: requests of all kinds in one launch, each against plain loops in
// float64; payloads that lie in the host's memory and are fetched from there.
#include <algorithm>
#include <memory>

#include "hybridgen/core/error.h"
#include "kernel_test_support.h"
#include "kernels/cuda_attention.h"
#include "kernels/cuda_kernels.h"
#include "support/in_every_order.h"

#if HYBRIDGEN_HAS_CUDA
#include "device_copy.h"
#endif

namespace hybridgen::kernels::test {
namespace {

TEST(AttentionCuda, WithoutCudaIsRefused) {
  if (has_cuda_kernels()) GTEST_SKIP() << "a build without nvcc (HYBRIDGEN_CUDA=OFF) would run it";
  EXPECT_THROW(attend_resident_cuda({.batch = 1, .max_resident = 1}, nullptr), DeviceError);
  EXPECT_THROW(merge_cuda({.batch = 1}, nullptr), DeviceError);
  EXPECT_THROW(fetch_payloads_cuda(nullptr, 1, 1, 1, 1, DType::kFloat32, nullptr, nullptr),
               DeviceError);
}

#if HYBRIDGEN_HAS_CUDA

using hybridgen::test::in_every_order;

struct Shape {
  DType dtype = DType::kFloat32;
  std::int64_t num_heads = 1;
  std::int64_t num_kv_heads = 1;
  std::int64_t head_dim = 1;

  std::int64_t per_group() const { return num_heads / num_kv_heads; }
};

/// What the host sends.
enum class Sent : std::uint8_t {
  kNothing,
  kLogitsOfOwn,     ///< every query head has chosen for itself
  kLogitsOfShared,  ///< all query heads of a KV head use the same tokens
  kKeysOfOwn,
  kKeysOfShared,
  kOutput,  ///< attention that it has finished
};

struct Kind {
  std::int64_t resident = 0;
  std::int64_t chosen = 0;
  Sent sent = Sent::kNothing;
  bool wants_weights = false;
  float logit_scale = 1.0F;
  bool is_turned = false;  ///< keys that attention reads lie elsewhere
};

constexpr std::int64_t kLayer = 1;
constexpr std::int64_t kLayers = 3;

/// One request: its inputs on the host, copies on the device, and what should come out.
class Request {
 public:
  Request(const Shape& shape, const Kind& kind, std::uint32_t seed)
      : shape_(shape),
        kind_(kind),
        slots_(kind.resident + 5),
        capacity_(2 * kind.chosen + 1),
        query_(random_array(shape.dtype, shape.num_heads * shape.head_dim, seed)),
        keys_(random_array(shape.dtype, kLayers * layer_size(), seed + 1)),
        values_(random_array(shape.dtype, kLayers * layer_size(), seed + 2)),
        turned_(random_array(
            shape.dtype, shape.num_kv_heads * (kind.resident + 1) * shape.head_dim, seed + 3)),
        payload_keys_(random_array(shape.dtype, payload_size(), seed + 4)),
        payload_values_(random_array(shape.dtype, payload_size(), seed + 5)),
        logits_(random_floats(shape.num_heads * room(), seed + 6)),
        output_(random_array(shape.dtype, shape.num_heads * shape.head_dim, seed + 7)),
        lse_(random_floats(shape.num_heads, seed + 8)) {
    for (std::int64_t i = 0; i < query_.count(); ++i) {
      query_.set(i, query_.at(i) * kind.logit_scale);
    }
    for (float& logit : logits_) logit *= kind.logit_scale;
    for (std::int64_t h = 0; h < shape.num_heads; ++h) {
      for (std::int64_t j = 0; j < kind.chosen; ++j) {
        index_.push_back(static_cast<std::int32_t>((j * 2 + h) % capacity_));
      }
    }
    for (std::int64_t g = 0; g < shape.num_kv_heads; ++g) {
      // Of shared tokens a KV head may have fewer than others, even none.
      sizes_.push_back(is_own() ? capacity_ : std::max<std::int64_t>(0, kind.chosen - g));
    }
  }

  StepRow step_row() {
    StepRow row;
    row.num_resident = kind_.resident;
    row.first_slot = 3;
    row.keys = copy(keys_);
    row.values = copy(values_);
    row.layer_stride = layer_size();
    row.head_stride = slots_ * shape_.head_dim;
    if (kind_.is_turned) {
      row.turned_keys = copy(turned_);
      row.turned_head_stride = (kind_.resident + 1) * shape_.head_dim;
    }
    const std::int64_t parts = part_count(kind_.resident) + part_count(kind_.chosen);
    row.parts = rubbish(shape_.num_heads * parts * (shape_.head_dim + 2));
    finished_ = std::vector<unsigned>(static_cast<std::size_t>(shape_.num_heads), 0U);
    row.finished = static_cast<unsigned*>(copy(finished_));
    if (kind_.wants_weights) {
      row.resident_logits = rubbish(shape_.num_heads * kind_.resident);
      row.weights = rubbish(shape_.num_heads * stride());
      weights_ = row.weights;
    }
    return row;
  }

  /// With matrices where the device reads them, or, to be fetched, in the host's memory.
  PayloadRow payload_row(bool on_host = false) {
    const auto place = [&](const auto& values) -> void* {
      return on_host ? const_cast<void*>(static_cast<const void*>(values.data())) : copy(values);
    };
    PayloadRow row;
    if (kind_.sent == Sent::kNothing) return row;
    if (kind_.sent == Sent::kOutput) {
      row.output = place(output_);
      row.lse = static_cast<const float*>(place(lse_));
      return row;
    }
    row.count = kind_.chosen;
    row.room = room();
    row.union_capacity = capacity_;
    row.union_sizes = static_cast<const std::int64_t*>(place(sizes_));
    row.values = place(payload_values_);
    if (has_keys()) {
      row.keys = place(payload_keys_);
    } else {
      row.logits = static_cast<const float*>(place(logits_));
    }
    if (is_own()) row.index = static_cast<const std::int32_t*>(place(index_));
    return row;
  }

  /// Room on the device for what `from` has.
  PayloadRow room_for(const PayloadRow& from) {
    PayloadRow to = from;
    const auto move = [&]<typename T>(T*& pointer, std::size_t bytes) {
      if (pointer == nullptr) return;
      copies_.push_back(std::make_unique<DeviceCopy>(std::vector<char>(bytes, 0x7f)));
      pointer = copies_.back()->template get<T>();
    };
    const std::size_t element = size_of(shape_.dtype);
    move(to.union_sizes, sizes_.size() * sizeof(std::int64_t));
    move(to.values, static_cast<std::size_t>(payload_size()) * element);
    move(to.keys, static_cast<std::size_t>(payload_size()) * element);
    move(to.logits, logits_.size() * sizeof(float));
    move(to.index, index_.size() * sizeof(std::int32_t));
    move(to.output, static_cast<std::size_t>(output_.count()) * element);
    move(to.lse, lse_.size() * sizeof(float));
    return to;
  }

  const Array& query() const { return query_; }

  /// `lse`: [H].
  void expect_result(const Array& out,
                     std::int64_t first,
                     const float* lse,
                     bool weights_only) const {
    for (std::int64_t h = 0; h < shape_.num_heads; ++h) {
      const std::vector<Token> tokens = tokens_of(h);
      double peak = -kInfinity;
      for (const Token& token : tokens) peak = std::max(peak, token.logit);
      double sum = 0.0;
      for (const Token& token : tokens) sum += token.weight(peak);
      // Of a logit, whose terms' sizes are at most so large; twice, since a softmax subtracts one.
      const double logit_error = 2.0 * sum_error(shape_.head_dim + 8) * largest_logit_;
      const double error =
          logit_error + 2.0 * sum_error(static_cast<std::int64_t>(tokens.size()) + 40);
      for (std::int64_t d = 0; d < (weights_only ? 0 : shape_.head_dim); ++d) {
        double value = 0.0;
        double size = 0.0;
        for (const Token& token : tokens) {
          value += token.weight(peak) / sum * token.values.at(token.row * shape_.head_dim + d);
          size = std::max(size, std::abs(double{token.values.at(token.row * shape_.head_dim + d)}));
        }
        ASSERT_NEAR(out.at(first + h * shape_.head_dim + d),
                    value,
                    size * error + 1.01 * std::abs(value) * unit_roundoff(shape_.dtype) +
                        absolute_floor(shape_.dtype))
            << "head " << h << ", " << d;
      }
      if (kind_.wants_weights) expect_weights(h, tokens, error);
      const double all = peak + std::log(sum);
      ASSERT_NEAR(lse[h], all, error + 2.0 * std::abs(all) * unit_roundoff(DType::kFloat32));
    }
  }

 private:
  struct Token {
    double logit;
    const Array& values;
    std::int64_t row;
    bool has_weight = true;

    double weight(double peak) const { return std::exp(logit - peak); }
  };

  std::int64_t layer_size() const { return shape_.num_kv_heads * slots_ * shape_.head_dim; }
  std::int64_t payload_size() const { return shape_.num_kv_heads * capacity_ * shape_.head_dim; }
  bool is_own() const { return kind_.sent == Sent::kLogitsOfOwn || kind_.sent == Sent::kKeysOfOwn; }
  bool has_keys() const {
    return kind_.sent == Sent::kKeysOfOwn || kind_.sent == Sent::kKeysOfShared;
  }
  std::int64_t chosen() const {
    return kind_.sent == Sent::kNothing || kind_.sent == Sent::kOutput ? 0 : kind_.chosen;
  }
  /// Of a KV head's logits, for each of its query heads: more than it needs where that may be.
  std::int64_t room() const { return kind_.chosen + (is_own() ? 0 : 3); }
  std::int64_t stride() const { return kind_.resident + chosen(); }

  double logit(std::int64_t head, const Array& keys, std::int64_t row) const {
    double sum = 0.0;
    double size = 0.0;
    for (std::int64_t d = 0; d < shape_.head_dim; ++d) {
      const double product = double{query_.at(head * shape_.head_dim + d)} *
                             double{keys.at(row * shape_.head_dim + d)};
      sum += product;
      size += std::abs(product);
    }
    const double scale = 1.0 / std::sqrt(static_cast<double>(shape_.head_dim));
    largest_logit_ = std::max(largest_logit_, size * scale);
    return sum * scale;
  }

  /// All tokens that a query head attends to, the host's first.
  std::vector<Token> tokens_of(std::int64_t head) const {
    const std::int64_t g = head / shape_.per_group();
    std::vector<Token> tokens;
    const std::int64_t host = chosen() == 0 ? 0
                              : is_own()    ? kind_.chosen
                                            : sizes_[static_cast<std::size_t>(g)];
    for (std::int64_t j = 0; j < host; ++j) {
      const std::int64_t r = head % shape_.per_group();
      const auto place = static_cast<std::size_t>(g * shape_.per_group() * room() + r * host + j);
      const std::int64_t row = g * capacity_ + (is_own() ? index_[place] : j);
      if (!has_keys()) {
        largest_logit_ = std::max(largest_logit_, std::abs(double{logits_[place]}));
      }
      tokens.push_back(
          {has_keys() ? logit(head, payload_keys_, row) : logits_[place], payload_values_, row});
    }
    for (std::int64_t t = 0; t < kind_.resident; ++t) {
      const std::int64_t row = (kLayer * shape_.num_kv_heads + g) * slots_ + 3 + t;
      tokens.push_back({kind_.is_turned ? logit(head, turned_, g * (kind_.resident + 1) + t)
                                        : logit(head, keys_, row),
                        values_,
                        row});
    }
    if (kind_.sent == Sent::kOutput) {
      tokens.push_back({lse_[static_cast<std::size_t>(head)], output_, head, false});
    }
    return tokens;
  }

  /// Of what the host has finished there are no weights, and the others are a softmax of their own.
  void expect_weights(std::int64_t head, const std::vector<Token>& tokens, double error) const {
    std::vector<float> weights(static_cast<std::size_t>(stride()));
    if (weights.empty()) return;
    ASSERT_EQ(cudaMemcpy(weights.data(),
                         weights_ + head * stride(),
                         weights.size() * sizeof(float),
                         cudaMemcpyDeviceToHost),
              cudaSuccess);
    double peak = -kInfinity;
    for (const Token& token : tokens) {
      if (token.has_weight) peak = std::max(peak, token.logit);
    }
    double sum = 0.0;
    for (const Token& token : tokens) sum += token.has_weight ? token.weight(peak) : 0.0;
    std::size_t place = 0;
    for (const Token& token : tokens) {
      if (!token.has_weight) continue;
      const double weight = token.weight(peak) / sum;
      // The logarithm of the sum is rounded to float32 before a weight is made by it.
      const double rounded = std::abs(peak + std::log(sum)) * unit_roundoff(DType::kFloat32);
      ASSERT_NEAR(weights[place++],
                  weight,
                  weight * (error + 2.0 * rounded) + std::numeric_limits<float>::min());
    }
  }

  template <typename Values>
  void* copy(const Values& values) {
    copies_.push_back(std::make_unique<DeviceCopy>(values));
    return copies_.back()->get();
  }
  float* rubbish(std::int64_t count) {
    return static_cast<float*>(copy(std::vector<float>(static_cast<std::size_t>(count), 5.0F)));
  }

  Shape shape_;
  Kind kind_;
  std::int64_t slots_;
  std::int64_t capacity_;
  Array query_, keys_, values_, turned_, payload_keys_, payload_values_;
  std::vector<float> logits_;
  std::vector<std::int32_t> index_;
  std::vector<std::int64_t> sizes_;
  Array output_;
  std::vector<float> lse_;
  mutable double largest_logit_ = 0.0;
  const float* weights_ = nullptr;
  std::vector<unsigned> finished_;
  std::vector<std::unique_ptr<DeviceCopy>> copies_;
};

/// Whether payloads lie on the device already.
enum class Payloads : std::uint8_t { kThere, kFetched };

/// One step of requests of these kinds together; each gets what it would get alone. With weights
/// alone there are neither values nor an output.
void expect_attention(const Shape& shape,
                      const std::vector<Kind>& kinds,
                      Payloads how,
                      bool weights_only = false) {
  const auto batch = static_cast<std::int64_t>(kinds.size());
  const std::int64_t row = shape.num_heads * shape.head_dim;
  const std::int64_t stride = row + 8;  // other columns lie between
  std::vector<std::unique_ptr<Request>> requests;
  std::vector<StepRow> rows;
  std::vector<PayloadRow> payloads;
  std::vector<PayloadCopy> moves;
  Array query = random_array(shape.dtype, batch * stride, 1);
  DecodeAttention attention{.dtype = shape.dtype,
                            .query_stride = stride,
                            .out_stride = stride,
                            .batch = batch,
                            .num_heads = shape.num_heads,
                            .num_kv_heads = shape.num_kv_heads,
                            .head_dim = shape.head_dim,
                            .layer = kLayer};
  for (std::int64_t b = 0; b < batch; ++b) {
    const Kind& kind = kinds[static_cast<std::size_t>(b)];
    requests.push_back(
        std::make_unique<Request>(shape, kind, static_cast<std::uint32_t>(100 + 20 * b)));
    Request& request = *requests.back();
    for (std::int64_t i = 0; i < row; ++i) query.set(b * stride + i, request.query().at(i));
    rows.push_back(request.step_row());
    PayloadRow from = request.payload_row(how == Payloads::kFetched);
    if (weights_only) {
      rows.back().values = nullptr;
      from.values = nullptr;
    }
    payloads.push_back(from);
    moves.push_back({from, how == Payloads::kFetched ? request.room_for(from) : from});
    attention.max_resident = std::max(attention.max_resident, kind.resident);
    attention.max_chosen = std::max(attention.max_chosen, from.count);
  }
  const DeviceCopy device_query(query);
  const DeviceCopy device_out(random_array(shape.dtype, batch * stride, 2));
  std::vector<float> sums(static_cast<std::size_t>(batch * shape.num_heads));
  const DeviceCopy device_sums(sums);
  const DeviceCopy device_rows(rows);
  const DeviceCopy device_payloads(
      how == Payloads::kThere ? payloads : std::vector<PayloadRow>(payloads.size()));
  attention.query = device_query.get();
  attention.out = weights_only ? nullptr : device_out.get();
  attention.weights_only = weights_only;
  attention.lse = device_sums.get<float>();
  attention.rows = device_rows.get<StepRow>();
  attention.payloads = device_payloads.get<PayloadRow>();
  attend_resident_cuda(attention, nullptr);
  if (how == Payloads::kFetched) {
    fetch_payloads_cuda(moves.data(),
                        batch,
                        shape.num_heads,
                        shape.num_kv_heads,
                        shape.head_dim,
                        shape.dtype,
                        device_payloads.get<PayloadRow>(),
                        nullptr);
  }
  merge_cuda(attention, nullptr);
  merge_cuda(attention, nullptr);  // leaves behind what the next one needs
  Array out(shape.dtype, batch * stride);
  device_out.copy_to(out.data());
  device_sums.copy_to(sums.data());
  for (std::int64_t b = 0; b < batch; ++b) {
    SCOPED_TRACE("request " + std::to_string(b));
    requests[static_cast<std::size_t>(b)]->expect_result(
        out, b * stride, sums.data() + b * shape.num_heads, weights_only);
    if (testing::Test::HasFatalFailure()) return;
  }
}

class AttentionOnDevice : public testing::TestWithParam<DType> {
 protected:
  void SetUp() override {
    if (cuda_device_count() == 0) GTEST_SKIP() << "a machine with a CUDA device would run it";
  }
};

TEST_P(AttentionOnDevice, IsThatOfPlainLoopsForAllShapes) {
  struct Heads {
    std::int64_t dim;
    std::int64_t per_group;
  };
  for (const Heads& heads : {Heads{32, 4},
                             Heads{80, 3},
                             Heads{128, 1},
                             Heads{128, 8},
                             Heads{256, 7},
                             Heads{6, 2},
                             Heads{64, 11}}) {
    const Shape shape{GetParam(), 2 * heads.per_group, 2, heads.dim};
    expect_attention(shape,
                     {{.resident = 300, .chosen = 20, .sent = Sent::kLogitsOfOwn},
                      {.resident = 33, .chosen = 270, .sent = Sent::kKeysOfShared}},
                     Payloads::kThere);
    if (HasFatalFailure()) return;
  }
}

TEST_P(AttentionOnDevice, OfRequestsOfAllKindsTogetherInAnyOrder) {
  const Shape shape{GetParam(), 6, 2, 64};
  const std::vector<Kind> kinds = {
      {.resident = 1},
      {.resident = 257, .wants_weights = true},
      {.resident = 5, .chosen = 40, .sent = Sent::kLogitsOfOwn, .wants_weights = true},
      {.resident = 60, .chosen = 3, .sent = Sent::kLogitsOfShared, .wants_weights = true},
      {.resident = 30, .chosen = 258, .sent = Sent::kKeysOfOwn, .wants_weights = true},
      {.resident = 0, .chosen = 90, .sent = Sent::kKeysOfShared},
      {.resident = 40, .sent = Sent::kOutput, .wants_weights = true},
      {.resident = 0, .sent = Sent::kOutput},
      {.resident = 50, .chosen = 9, .sent = Sent::kLogitsOfOwn, .logit_scale = 60.0F},
      {.resident = 20, .is_turned = true}};
  in_every_order([&] { expect_attention(shape, kinds, Payloads::kFetched); });
  expect_attention(shape, kinds, Payloads::kThere);
}

TEST_P(AttentionOnDevice, LeavesWeightsAloneWithoutAnyValues) {
  const std::vector<Kind> kinds = {
      {.resident = 257, .wants_weights = true},
      {.resident = 60, .chosen = 300, .sent = Sent::kKeysOfShared, .wants_weights = true}};
  for (const std::int64_t head_dim : {64, 6}) {
    const Shape shape{GetParam(), 6, 2, head_dim};
    in_every_order(
        [&] { expect_attention(shape, kinds, Payloads::kFetched, /*weights_only=*/true); });
  }
}

TEST_P(AttentionOnDevice, WithoutAnyTokenIsZeroAndNanStays) {
  const Shape shape{GetParam(), 2, 1, 32};
  const DeviceCopy query(random_array(shape.dtype, 2 * 64, 1));
  const DeviceCopy values(random_array(shape.dtype, 32, 2));
  const DeviceCopy sizes(std::vector<std::int64_t>{1});
  const DeviceCopy logits(std::vector<float>(2, std::numeric_limits<float>::quiet_NaN()));
  const DeviceCopy parts(std::vector<float>(2 * 34));
  const DeviceCopy out(random_array(shape.dtype, 2 * 64, 3));
  const DeviceCopy sums(std::vector<float>(4));
  const DeviceCopy finished(std::vector<unsigned>(2));
  const DeviceCopy rows(std::vector<StepRow>{
      {}, {.parts = parts.get<float>(), .finished = finished.get<unsigned>()}});
  const DeviceCopy payloads(std::vector<PayloadRow>{{},
                                                    {.count = 1,
                                                     .room = 1,
                                                     .logits = logits.get<float>(),
                                                     .values = values.get(),
                                                     .union_capacity = 1,
                                                     .union_sizes = sizes.get<std::int64_t>()}});
  const DecodeAttention attention{.dtype = shape.dtype,
                                  .query = query.get(),
                                  .query_stride = 64,
                                  .out = out.get(),
                                  .out_stride = 64,
                                  .batch = 2,
                                  .num_heads = 2,
                                  .num_kv_heads = 1,
                                  .head_dim = 32,
                                  .rows = rows.get<StepRow>(),
                                  .payloads = payloads.get<PayloadRow>(),
                                  .max_chosen = 1,
                                  .lse = sums.get<float>()};
  attend_resident_cuda(attention, nullptr);
  merge_cuda(attention, nullptr);
  Array result(shape.dtype, 2 * 64);
  out.copy_to(result.data());
  std::vector<float> lse(4);
  sums.copy_to(lse.data());
  EXPECT_EQ(lse[0], -kInfinity);
  EXPECT_EQ(lse[1], -kInfinity);
  EXPECT_TRUE(std::isnan(lse[2]));
  for (std::int64_t i = 0; i < 64; ++i) {
    EXPECT_EQ(result.at(i), 0.0F);
    EXPECT_TRUE(std::isnan(result.at(64 + i)));
  }
}

INSTANTIATE_TEST_SUITE_P(DTypes,
                         AttentionOnDevice,
                         testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16),
                         [](const auto& param) { return std::string(name_of(param.param)); });

#endif  // HYBRIDGEN_HAS_CUDA

}  // namespace
}  // namespace hybridgen::kernels::test
