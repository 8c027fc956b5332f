// SPDX-License-Identifier: Apache-2.0
// What crosses the link in decode steps, and what the host reads of its rows, counted by the
// engine, against closed formulas: per layer and step, for every method and every format of the
// rows. H2D goes to the device, D2H to the host; K and V that leave the device for good are counted
// apart
// ("store").
//
//   H, G, D   query heads, KV heads, dimensions of a head; R = H / G
//   e         bytes of an element of K, V, a query or an output (here float32)
//   P, n      tokens of the prompt; tokens of this step, the new one included
//   n_g, n_c  of them on the device, and on the host
//   k, u      offloaded tokens per query head; per KV head (union over its query heads)
//   S         tokens that a method with a fixed budget has kept
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <limits>

#include "hybridgen/core/error.h"
#include "support/method_settings.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::tiny_model;

constexpr std::int64_t e = 4;
constexpr std::int64_t kLogitBytes = 4;
constexpr std::int64_t kIndexBytes = 4;
constexpr std::int64_t kPositionBytes = 4;  // of tokens that the device has chosen
constexpr int kSteps = 9;                   // more than two blocks of HGCA's window below

/// One request in one layer of one decode step.
struct At {
  std::int64_t layer = 0;
  std::int64_t H = 0;
  std::int64_t G = 0;
  std::int64_t D = 0;
  std::int64_t P = 0;
  std::int64_t n = 0;

  std::int64_t R() const { return H / G; }
  std::int64_t key_and_value() const { return 2 * G * D * e; }
  std::int64_t query() const { return H * D * e; }
};

struct Bytes {
  std::int64_t d2h = 0;
  std::int64_t h2d = 0;
  std::int64_t store = 0;
  std::int64_t h2d_spread = 0;  ///< where u is not known beforehand: at most so much more
  std::int64_t key_rows = 0;    ///< of the host's, read by it
  std::int64_t value_rows = 0;
  std::int64_t key_spread = 0;  ///< at most so many more
  std::int64_t value_spread = 0;

  Bytes& operator+=(const Bytes& other) {
    d2h += other.d2h;
    h2d += other.h2d;
    store += other.store;
    h2d_spread += other.h2d_spread;
    key_rows += other.key_rows;
    value_rows += other.value_rows;
    key_spread += other.key_spread;
    value_spread += other.value_spread;
    return *this;
  }
};

using Formula = std::function<Bytes(const At&)>;
using Config = OptionMap;

struct Case {
  std::string name;
  EngineOptions options;
  Formula formula;
};

void PrintTo(const Case& test_case, std::ostream* out) { *out << test_case.name; }

Case method(const std::string& name, const std::string& of, Config config, Formula formula) {
  Case result{name, testing::options(of), std::move(formula)};
  result.options.method_config = std::move(config);
  return result;
}

// ---- flexgen, moe_lightning, infinigen, hgca

Bytes nothing(const At& /*at*/) { return {}; }

// A window of `window` tokens slides: one token leaves per step once it is full.
std::int64_t offloaded(const At& at, std::int64_t window) {
  return std::max<std::int64_t>(at.n - window, 0);
}

Bytes all_keys_and_values(const At& at, std::int64_t window) {
  const std::int64_t n_c = offloaded(at, window);
  return {.h2d = at.key_and_value() * n_c,
          .store = n_c > 0 ? at.key_and_value() : 0,
          .key_rows = at.G * n_c,
          .value_rows = at.G * n_c};
}

Bytes flexgen(const At& at) { return all_keys_and_values(at, 1); }

Bytes flexgen_partly_resident(const At& at) {
  return all_keys_and_values(at, static_cast<std::int64_t>(0.4 * static_cast<double>(at.P)));
}

Bytes moe_lightning(const At& at) {
  return {.d2h = (at.H + 2 * at.G) * at.D * e,
          .h2d = at.H * at.D * e + at.H * kLogitBytes,
          .key_rows = at.G * at.n,
          .value_rows = at.G * at.n};
}

Formula infinigen(const TokenCount& max_fetch) {
  return [max_fetch](const At& at) -> Bytes {
    if (at.layer < 2) {
      return flexgen(at);
    }
    const std::int64_t fetched = max_fetch.resolve(at.n - 1);
    return {.d2h = at.G * fetched * kPositionBytes,
            .h2d = at.key_and_value() * fetched,
            .store = at.key_and_value(),
            .key_rows = at.G * fetched,
            .value_rows = at.G * fetched};
  };
}

constexpr std::int64_t kBlock = 4;
constexpr std::int64_t kBlocks = 3;

// What the prompt leaves over a full window goes at once, later tokens go in whole blocks.
std::int64_t hgca_offloaded(std::int64_t P, std::int64_t n) {
  const std::int64_t after_prompt = std::max<std::int64_t>(P - kBlock * kBlocks, 0);
  const std::int64_t excess = std::max<std::int64_t>(n - after_prompt - kBlock * kBlocks, 0);
  return after_prompt + (excess + kBlock - 1) / kBlock * kBlock;
}

// `is_all`: beta = 0; else how many of the offloaded tokens are salient is not known beforehand.
Bytes hgca_bytes(const At& at, bool is_all) {
  const std::int64_t n_c = hgca_offloaded(at.P, at.n);
  const std::int64_t n_g = at.n - n_c;
  Bytes bytes;
  bytes.d2h = at.H * n_g * kLogitBytes;  // weights, for the moving averages
  bytes.store = (n_c - hgca_offloaded(at.P, at.n - 1)) * at.key_and_value();
  if (n_c > 0) {
    bytes.d2h += at.query();
    bytes.h2d = at.H * at.D * e + at.H * kLogitBytes;
  }
  (is_all ? bytes.key_rows : bytes.key_spread) = at.G * n_c;
  (is_all ? bytes.value_rows : bytes.value_spread) = at.G * n_c;
  return bytes;
}

Bytes hgca(const At& at) { return hgca_bytes(at, false); }
Bytes hgca_of_all_tokens(const At& at) { return hgca_bytes(at, true); }

// ---- Fixed budgets: streaming_llm, h2o, keyformer

using Budget = std::function<std::int64_t(std::int64_t P)>;

Budget tokens(std::int64_t count) {
  return [count](std::int64_t) { return count; };
}

std::int64_t share_of(std::int64_t P, double share) {
  return static_cast<std::int64_t>(share * static_cast<double>(P));
}

enum class Home : std::uint8_t { kDevice, kHost };

Formula retained(const Budget& budget, Home home, bool ranks_by_weights) {
  return [=](const At& at) {
    const std::int64_t S = std::min(budget(at.P), at.n - 1);
    Bytes bytes;
    if (home == Home::kHost) {
      bytes.h2d = at.key_and_value() * S;
      bytes.store = at.key_and_value();
      bytes.key_rows = bytes.value_rows = at.G * S;
    }
    if (ranks_by_weights) {
      bytes.d2h = at.H * (S + 1) * kLogitBytes;  // scores live on the host
    }
    return bytes;
  };
}

// ---- hybridgen

constexpr std::int64_t kWindow = 9;

struct HybridSetting {
  QueryMode query = QueryMode::kExact;
  SelectionStrategy strategy = SelectionStrategy::kPostQkt;
  std::string selector = "topk";
  TokenCount k = TokenCount::count(6);
};

Bytes hybrid_bytes(const At& at, const HybridSetting& setting) {
  const std::int64_t n_c = offloaded(at, kWindow);
  const std::int64_t n_g = at.n - n_c;
  const std::int64_t k = setting.k.resolve(n_c);
  Bytes bytes;
  if (setting.selector == "h2o" || setting.selector == "keyformer") {
    bytes.d2h += at.H * (k + n_g) * kLogitBytes;  // weights, for the running scores
  }
  if (n_c == 0) {
    return bytes;
  }
  bytes.d2h += at.query();
  if (setting.selector == "partial_keys") {
    bytes.d2h += at.G * k * kPositionBytes;
  }
  bytes.store = at.key_and_value();
  const bool is_post = setting.strategy == SelectionStrategy::kPostQkt;
  const bool is_rescored = setting.query == QueryMode::kRescore && at.layer >= 2;
  const std::int64_t row = at.D * e * (is_rescored ? 2 : 1);  // V, and K if the device rescores
  if (!is_rescored) {
    bytes.h2d += at.H * k * kLogitBytes;
  }
  if (is_post && k < n_c) {
    bytes.d2h += at.H * kLogitBytes;  // log-sum-exp of what was attended to, for the lost mass
  }
  if (is_post) {
    // Query heads choose for themselves: k <= u <= min(R k, n_c).
    bytes.h2d += at.H * k * kIndexBytes + at.G * k * row;
    const std::int64_t more = at.G * (std::min(at.R() * k, n_c) - k);
    bytes.h2d_spread = more * row;
    bytes.key_rows = at.G * n_c;  // the scan
    bytes.value_spread = more;
    if (is_rescored) {
      bytes.key_rows += at.G * k;
      bytes.key_spread = more;
    }
  } else {
    bytes.h2d += at.G * k * row;
    bytes.key_rows = at.G * k;
  }
  bytes.value_rows = at.G * k;
  return bytes;
}

Case hybrid(const std::string& name, const HybridSetting& setting) {
  Case result{name, testing::options("hybridgen"), [setting](const At& at) {
                return hybrid_bytes(at, setting);
              }};
  EngineOptions& options = result.options;
  options.hybridgen.query.mode = setting.query;
  options.hybridgen.strategy = setting.strategy;
  (setting.strategy == SelectionStrategy::kPostQkt ? options.hybridgen.selector
                                                   : options.hybridgen.pre_selector) =
      setting.selector;
  options.hybridgen.k = setting.k;
  options.device_tokens.count = kWindow;
  return result;
}

std::vector<Case> cases() {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr auto kPre = SelectionStrategy::kPreQkt;
  constexpr auto kPost = SelectionStrategy::kPostQkt;
  const OptionValue on_host = std::string("host");
  const OptionValue shift = std::string("shift");
  const Config sinks_window = {{"sinks", std::int64_t{2}}, {"window", std::int64_t{7}}};
  const Config growing = {{"heavy", std::int64_t{8}}, {"recent", std::int64_t{28}}};
  const auto with = [](Config config, const std::string& name, const OptionValue& value) {
    config[name] = value;
    return config;
  };
  const Budget h2o_default = [](std::int64_t P) {
    return share_of(P, 0.1) + std::max<std::int64_t>(share_of(P, 0.1), 1);
  };
  const Budget keyformer_share = [](std::int64_t P) {
    return std::max<std::int64_t>(share_of(P, 0.3), 1);
  };
  const auto share = TokenCount::share(0.25);
  const auto all = TokenCount::all();
  return {
      method("full", "full", {}, nothing),
      method("flexgen", "flexgen", {}, flexgen),
      method("flexgen_partly_resident", "flexgen", {{"gpu_share", 0.4}}, flexgen_partly_resident),
      method("moe_lightning", "moe_lightning", {}, moe_lightning),
      method("moe_lightning_one_batch",
             "moe_lightning",
             {{"micro_batches", std::int64_t{1}}},
             moe_lightning),
      method("streaming_llm",
             "streaming_llm",
             sinks_window,
             retained(tokens(9), Home::kDevice, false)),
      method("streaming_llm_shifted",
             "streaming_llm",
             with(sinks_window, "positions", shift),
             retained(tokens(9), Home::kDevice, false)),
      method("streaming_llm_on_host",
             "streaming_llm",
             with(sinks_window, "home", on_host),
             retained(tokens(9), Home::kHost, false)),
      method("h2o", "h2o", {}, retained(h2o_default, Home::kDevice, true)),
      method("h2o_growing", "h2o", growing, retained(tokens(36), Home::kDevice, true)),
      method("h2o_on_host",
             "h2o",
             with({}, "home", on_host),
             retained(h2o_default, Home::kHost, true)),
      method("h2o_growing_on_host",
             "h2o",
             with(growing, "home", on_host),
             retained(tokens(36), Home::kHost, true)),
      method("keyformer",
             "keyformer",
             {{"kv_cache", 0.3}},
             retained(keyformer_share, Home::kDevice, true)),
      method("keyformer_on_host",
             "keyformer",
             {{"kv_cache", 0.3}, {"home", on_host}},
             retained(keyformer_share, Home::kHost, true)),
      // alpha = inf: every token is promising, so that max_fetch alone decides.
      method(
          "infinigen_all", "infinigen", {{"alpha", kInfinity}, {"max_fetch", 1.0}}, infinigen(all)),
      method("infinigen_share",
             "infinigen",
             {{"alpha", kInfinity}, {"max_fetch", 0.25}},
             infinigen(share)),
      method("infinigen_count",
             "infinigen",
             {{"alpha", kInfinity}, {"max_fetch", std::int64_t{5}}},
             infinigen(TokenCount::count(5))),
      method("hgca", "hgca", {{"block", kBlock}, {"blocks", kBlocks}}, hgca),
      method("hgca_of_all_tokens",
             "hgca",
             {{"block", kBlock}, {"blocks", kBlocks}, {"beta", 0.0}},
             hgca_of_all_tokens),
      hybrid("hybridgen_exact", {QueryMode::kExact}),
      hybrid("hybridgen_exact_all", {QueryMode::kExact, kPost, "topk", all}),
      hybrid("hybridgen_speculative", {QueryMode::kSpeculative}),
      hybrid("hybridgen_speculative_all", {QueryMode::kSpeculative, kPost, "topk", all}),
      hybrid("hybridgen_share", {QueryMode::kSpeculative, kPost, "topk", share}),
      hybrid("hybridgen_one_token", {QueryMode::kExact, kPost, "topk", TokenCount::count(1)}),
      hybrid("hybridgen_rescored", {QueryMode::kRescore}),
      hybrid("hybridgen_rescored_all", {QueryMode::kRescore, kPost, "topk", all}),
      hybrid("hybridgen_h2o", {QueryMode::kExact, kPost, "h2o"}),
      hybrid("hybridgen_keyformer", {QueryMode::kSpeculative, kPost, "keyformer"}),
      hybrid("hybridgen_planned", {QueryMode::kExact, kPre, "sinks_recent"}),
      hybrid("hybridgen_planned_speculative", {QueryMode::kSpeculative, kPre, "sinks_recent"}),
      hybrid("hybridgen_planned_all", {QueryMode::kExact, kPre, "sinks_recent", all}),
      hybrid("hybridgen_planned_rescored", {QueryMode::kRescore, kPre, "sinks_recent"}),
      hybrid("hybridgen_partial_keys", {QueryMode::kSpeculative, kPre, "partial_keys"}),
  };
}

// ---- Runs

struct Shape {
  std::string name;
  std::int64_t num_kv_heads = 0;
  std::vector<std::int64_t> prompts;
};

std::vector<Shape> shapes() {
  return {{"grouped, one request", 2, {40}},
          {"grouped, one longer request", 2, {80}},
          {"grouped, three requests", 2, {70, 33, 5}},
          {"multi-head, one request", 4, {40}},
          {"multi-head, one longer request", 4, {80}},
          {"multi-head, three requests", 4, {70, 33, 5}}};
}

ModelConfig config_of(const Shape& shape) {
  ModelConfig config = testing::tiny_config();
  config.num_kv_heads = shape.num_kv_heads;
  return config;
}

/// Statistics of kSteps decode steps without what prefill did.
PipelineStatistics decode(const EngineOptions& options, const Shape& shape) {
  Engine engine(tiny_model(config_of(shape)), options);
  SamplingOptions sampling;
  sampling.max_tokens = 2 * kSteps;
  for (std::size_t i = 0; i < shape.prompts.size(); ++i) {
    engine.add(testing::prompt(shape.prompts[i], i + 1), sampling);
  }
  for (std::size_t i = 0; i < shape.prompts.size(); ++i) {
    engine.step();  // one prompt at a time
  }
  engine.reset_statistics();
  for (int step = 0; step < kSteps; ++step) {
    engine.step();
  }
  const PipelineStatistics statistics = engine.run_statistics().pipeline;
  EXPECT_EQ(statistics.decode_steps, kSteps);
  EXPECT_EQ(statistics.decode_tokens, kSteps * static_cast<std::int64_t>(shape.prompts.size()));
  EXPECT_EQ(statistics.prefill_tokens, 0);
  return statistics;
}

Bytes expected(const Formula& formula, const Shape& shape) {
  const ModelConfig config = config_of(shape);
  Bytes sum;
  for (const std::int64_t P : shape.prompts) {
    for (std::int64_t step = 1; step <= kSteps; ++step) {
      for (std::int64_t layer = 0; layer < config.num_layers; ++layer) {
        sum +=
            formula({layer, config.num_heads, config.num_kv_heads, config.head_dim, P, P + step});
      }
    }
  }
  return sum;
}

const auto kName = [](const auto& info) { return info.param.name; };

constexpr auto kPrecisions = {KvPrecision::kFull, KvPrecision::kInt8, KvPrecision::kInt4};

const char* text_of(KvPrecision precision) {
  switch (precision) {
    case KvPrecision::kFull:
      return "full";
    case KvPrecision::kInt8:
      return "int8";
    case KvPrecision::kInt4:
      return "int4";
  }
  return "";
}

// Of a key of `dims` dimensions on the host: in fewer bits eight dimensions at a time, and a step.
std::int64_t key_row_bytes(KvPrecision precision, std::int64_t dims) {
  const std::int64_t padded = (dims + 7) / 8 * 8;
  switch (precision) {
    case KvPrecision::kFull:
      return dims * e;
    case KvPrecision::kInt8:
      return padded + 2;
    case KvPrecision::kInt4:
      return padded / 2 + 2;
  }
  return 0;
}

// Of a value: in fewer bits a minimum and a scale for every 64 dimensions.
std::int64_t value_row_bytes(KvPrecision precision, std::int64_t dims) {
  const std::int64_t ranges = (dims + 63) / 64 * 4;
  switch (precision) {
    case KvPrecision::kFull:
      return dims * e;
    case KvPrecision::kInt8:
      return dims + ranges;
    case KvPrecision::kInt4:
      return (dims + 1) / 2 + ranges;
  }
  return 0;
}

class LinkBytes : public ::testing::TestWithParam<Case> {};

TEST_P(LinkBytes, FollowTheMethodsFormulas) {
  for (const Shape& shape : shapes()) {
    SCOPED_TRACE(shape.name);
    const PipelineStatistics actual = decode(GetParam().options, shape);
    const Bytes formula = expected(GetParam().formula, shape);
    EXPECT_EQ(actual.d2h_bytes, formula.d2h);
    EXPECT_EQ(actual.evicted_bytes, formula.store);
    EXPECT_GE(actual.h2d_bytes, formula.h2d);
    EXPECT_LE(actual.h2d_bytes, formula.h2d + formula.h2d_spread);
  }
}

// What the host reads, and that the link does not see how its rows lie.
TEST_P(LinkBytes, AreTheSameInEveryFormatAndTheHostReadsItsRows) {
  const Shape shape = shapes()[2];
  const Bytes formula = expected(GetParam().formula, shape);
  if (formula.store == 0 && formula.key_rows == 0) GTEST_SKIP() << "no rows on the host";
  const std::int64_t dims = config_of(shape).head_dim;
  for (const KvPrecision keys : kPrecisions) {
    for (const KvPrecision values : kPrecisions) {
      SCOPED_TRACE(message("keys ", text_of(keys), ", values ", text_of(values)));
      EngineOptions options = GetParam().options;
      options.key_precision = keys;
      options.value_precision = values;
      const PipelineStatistics actual = decode(options, shape);
      EXPECT_EQ(actual.d2h_bytes, formula.d2h);
      EXPECT_EQ(actual.evicted_bytes, formula.store);
      EXPECT_GE(actual.h2d_bytes, formula.h2d);
      EXPECT_LE(actual.h2d_bytes, formula.h2d + formula.h2d_spread);
      const std::int64_t key_bytes = key_row_bytes(keys, dims);
      EXPECT_GE(actual.host_key_bytes, formula.key_rows * key_bytes);
      EXPECT_LE(actual.host_key_bytes, (formula.key_rows + formula.key_spread) * key_bytes);
      const std::int64_t value_bytes = value_row_bytes(values, dims);
      EXPECT_GE(actual.host_value_bytes, formula.value_rows * value_bytes);
      EXPECT_LE(actual.host_value_bytes, (formula.value_rows + formula.value_spread) * value_bytes);
    }
  }
}

// How many rows a mass takes depends on the logits; what crosses follows from how many they are.
TEST(LinkBytesByMass, AreLogitsAndRowsOfWhatAKvHeadTook) {
  for (const Shape& shape : shapes()) {
    SCOPED_TRACE(shape.name);
    const ModelConfig config = config_of(shape);
    const std::int64_t row = config.head_dim * e;
    const std::int64_t logits = config.query_heads_per_kv_head() * kLogitBytes;
    for (const QueryMode query : {QueryMode::kExact, QueryMode::kSpeculative}) {
      const PipelineStatistics actual =
          decode(testing::hybrid_by_mass("", query, 0.5).options, shape);
      const std::int64_t rows = actual.host_value_bytes / row;
      EXPECT_GT(rows, 0);
      EXPECT_EQ(actual.h2d_bytes, rows * (logits + row));
    }
    // Guessed layers send keys in place of logits; of the others the scan reads keys, too.
    const PipelineStatistics actual =
        decode(testing::hybrid_by_mass("", QueryMode::kRescore, 0.5).options, shape);
    const Bytes scan = expected(
        [](const At& at) {
          Bytes bytes;
          bytes.key_rows = at.G * offloaded(at, kWindow);
          bytes.d2h = offloaded(at, kWindow) > 0 ? at.query() : 0;
          return bytes;
        },
        shape);
    const std::int64_t rows = actual.host_value_bytes / row;
    const std::int64_t keys = actual.host_key_bytes / row - scan.key_rows;
    EXPECT_GT(keys, 0);
    EXPECT_LT(keys, rows);
    EXPECT_EQ(actual.h2d_bytes, rows * row + keys * row + (rows - keys) * logits);
    // And of layers that left something out the log-sum-exp of what they attended to.
    const std::int64_t sums = actual.d2h_bytes - scan.d2h;
    EXPECT_GE(sums, 0);
    EXPECT_EQ(sums % (config.num_heads * kLogitBytes), 0);
    EXPECT_LE(sums,
              config.num_heads * kLogitBytes * config.num_layers * kSteps *
                  static_cast<std::int64_t>(shape.prompts.size()));
  }
}

TEST_P(LinkBytes, DoNotDependOnMicroBatches) {
  const Shape shape = shapes()[2];
  EngineOptions options = GetParam().options;
  const PipelineStatistics whole = decode(options, shape);
  options.micro_batch = 1;
  const PipelineStatistics parts = decode(options, shape);
  EXPECT_EQ(parts.d2h_bytes, whole.d2h_bytes);
  EXPECT_EQ(parts.h2d_bytes, whole.h2d_bytes);
  EXPECT_EQ(parts.evicted_bytes, whole.evicted_bytes);
}

INSTANTIATE_TEST_SUITE_P(Methods, LinkBytes, ::testing::ValuesIn(cases()), kName);

// ---- Growth with the context

std::int64_t h2d(const EngineOptions& options, std::int64_t P, std::int64_t num_kv_heads) {
  return decode(options, {"", num_kv_heads, {P}}).h2d_bytes;
}

TEST(LinkBytesOfTwiceTheTokens, AreTheSameWhereTheHostAttends) {
  EngineOptions hgca = testing::options("hgca");
  hgca.method_config = {{"block", kBlock}, {"blocks", kBlocks}};
  for (const EngineOptions& options : {testing::options("moe_lightning"), hgca}) {
    EXPECT_EQ(h2d(options, 80, 2), h2d(options, 40, 2)) << options.method;
    EXPECT_GT(h2d(options, 80, 2), 0) << options.method;
  }
}

TEST(LinkBytesOfTwiceTheTokens, AreTheSameWhereTheBudgetIsFixed) {
  EngineOptions options = testing::options("streaming_llm");
  options.method_config = {
      {"sinks", std::int64_t{2}}, {"window", std::int64_t{7}}, {"home", std::string("host")}};
  EXPECT_EQ(h2d(options, 80, 2), h2d(options, 40, 2));
}

TEST(LinkBytesOfTwiceTheTokens, AreTheSameForAFixedK) {
  // Multi-head, where u = k.
  const EngineOptions options = hybrid("", {QueryMode::kSpeculative}).options;
  EXPECT_EQ(h2d(options, 80, 4), h2d(options, 40, 4));
}

TEST(LinkBytesOfTwiceTheTokens, GrowByEveryTokenWhereAllOfThemAreStreamed) {
  const ModelConfig config = testing::tiny_config();
  const std::int64_t key_and_value = 2 * config.num_kv_heads * config.head_dim * e;
  const EngineOptions options = testing::options("flexgen");
  EXPECT_EQ(h2d(options, 80, 2) - h2d(options, 40, 2),
            kSteps * config.num_layers * 40 * key_and_value);
}

}  // namespace
}  // namespace hybridgen
