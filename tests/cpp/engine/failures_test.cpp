// SPDX-License-Identifier: Apache-2.0
// One request's failure is its own: it ends with an event that says why, and what all others get is
// what they would have got without it, bit by bit.
#include <ATen/core/Tensor.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <map>
#include <new>
#include <stdexcept>
#include <utility>

#include "device/own_error.h"
#include "hybridgen/core/error.h"
#include "support/run_to_end.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

using testing::Ended;
using testing::Generated;
using testing::message_of;
using testing::run_to_end;
using testing::tiny_model;

constexpr std::int64_t kBroken = 60;  // a token that only a failing prompt holds

std::vector<std::int64_t> healthy_prompt(std::int64_t length, std::uint64_t seed) {
  std::vector<std::int64_t> tokens = testing::prompt(length, seed);
  std::ranges::replace(tokens, kBroken, 0);
  return tokens;
}

SamplingOptions eight_tokens() {
  SamplingOptions sampling;
  sampling.max_tokens = 8;
  sampling.valid_vocab = kBroken;
  return sampling;
}

EngineOptions options_of(const std::string& method) {
  EngineOptions options = testing::options(method);
  if (method == "hybridgen") {
    options.device_tokens.count = 9;
    options.hybridgen.k = TokenCount::count(6);
  }
  return options;
}

class AFailureOf : public ::testing::TestWithParam<std::string> {};

std::vector<std::string> method_names() {
  std::vector<std::string> names;
  for (const MethodInfo& info : list_methods()) {
    names.push_back(info.name);
  }
  return names;
}

INSTANTIATE_TEST_SUITE_P(Methods, AFailureOf, ::testing::ValuesIn(method_names()));

TEST_P(AFailureOf, OneRequestsNumbersChangesNoOther) {
  const auto model = tiny_model();
  model->weights()
      .embed_tokens.dense.select(0, kBroken)
      .fill_(std::numeric_limits<float>::quiet_NaN());
  std::vector<std::int64_t> early = healthy_prompt(50, 8);
  early[7] = kBroken;  // fails in its prefill or with its first logits
  std::vector<std::int64_t> late = healthy_prompt(50, 9);
  late[48] = kBroken;  // fails in a decode step that the others take part in
  const std::vector<std::vector<std::int64_t>> healthy = {
      healthy_prompt(40, 1), healthy_prompt(23, 2), healthy_prompt(61, 3)};

  Engine alone(model, options_of(GetParam()));
  std::vector<std::int64_t> ids;
  for (const auto& prompt : {healthy[0], early, healthy[1], late, healthy[2]}) {
    ids.push_back(alone.add(prompt, eight_tokens()));
  }
  alone.release(ids[1]);
  alone.release(ids[3]);
  const Ended expected = run_to_end(alone);
  ASSERT_TRUE(expected.errors.empty());

  Engine engine(model, options_of(GetParam()));
  const std::int64_t first = engine.add(healthy[0], eight_tokens());
  const std::int64_t failing = engine.add(early, eight_tokens());
  const std::int64_t second = engine.add(healthy[1], eight_tokens());
  const std::int64_t decoding = engine.add(late, eight_tokens(), {}, /*decode_prompt_tokens=*/4);
  const std::int64_t third = engine.add(healthy[2], eight_tokens());
  const Ended ended = run_to_end(engine);

  ASSERT_EQ(ended.errors.size(), 2U);
  for (const std::int64_t id : {failing, decoding}) {
    EXPECT_NE(message_of<NumericError>(ended.errors.at(id)), "another exception");
    EXPECT_EQ(engine.request_statistics(id).finish_reason, FinishReason::kError);
  }
  EXPECT_EQ(ended.generated.at(first), expected.generated.at(ids[0]));
  EXPECT_EQ(ended.generated.at(second), expected.generated.at(ids[2]));
  EXPECT_EQ(ended.generated.at(third), expected.generated.at(ids[4]));
  for (const TierUsage& tier : engine.memory()) EXPECT_EQ(tier.used_bytes, 0) << tier.tier;
}

/// Works as top-K or as the last tokens do, but for the request that has room for so many tokens.
class FailingSelector final : public TokenSelector {
 public:
  FailingSelector(const SelectorShape& shape, SelectionStrategy strategy, bool fails)
      : inner_(make_selector(strategy == SelectionStrategy::kPostQkt ? "topk" : "sinks_recent",
                             shape)),
        fails_(fails) {}
  std::string_view name() const override { return "failing"; }
  SelectionStrategy strategy() const override { return inner_->strategy(); }
  std::span<const std::int32_t> plan(const PlanContext& context,
                                     std::vector<std::int32_t>& scratch) const override {
    check(context.layer);
    return inner_->plan(context, scratch);
  }
  void select(std::int64_t layer,
              std::int64_t query_head,
              std::span<const float> logits,
              std::span<std::int32_t> positions,
              std::span<float> values,
              std::vector<float>& scratch) const override {
    check(layer);
    inner_->select(layer, query_head, logits, positions, values, scratch);
  }

 private:
  void check(std::int64_t layer) const {
    if (fails_ && layer >= 2) throw std::domain_error(message("no idea in layer ", layer));
  }
  std::unique_ptr<TokenSelector> inner_;
  bool fails_;
};

std::int64_t room_of_victim = -1;  // SelectorShape::max_offloaded
std::int64_t room_of_misfit = -1;  // cannot even be made

SelectorFactory failing(SelectionStrategy strategy) {
  return [strategy](const SelectorShape& shape) -> std::unique_ptr<TokenSelector> {
    if (shape.max_offloaded == room_of_misfit) throw std::domain_error("no selector for this one");
    return std::make_unique<FailingSelector>(
        shape, strategy, shape.max_offloaded == room_of_victim);
  };
}

TEST(AFailureOfASelector, OfAUsersOwnEndsTheRequestItChoosesFor) {
  register_selector(
      "failing_post", SelectionStrategy::kPostQkt, failing(SelectionStrategy::kPostQkt));
  register_selector("failing_pre", SelectionStrategy::kPreQkt, failing(SelectionStrategy::kPreQkt));
  const auto model = tiny_model();
  for (const auto query : {QueryMode::kExact, QueryMode::kSpeculative, QueryMode::kRescore}) {
    for (const auto strategy : {SelectionStrategy::kPostQkt, SelectionStrategy::kPreQkt}) {
      EngineOptions options = options_of("hybridgen");
      options.hybridgen.query.mode = query;
      options.hybridgen.strategy = strategy;
      if (strategy == SelectionStrategy::kPostQkt) {
        options.hybridgen.selector = "failing_post";
      } else {
        options.hybridgen.pre_selector = "failing_pre";
      }
      const std::int64_t window = *options.device_tokens.count;
      room_of_victim = room_of_misfit = -1;
      Engine alone(model, options);
      const std::int64_t id = alone.add(healthy_prompt(40, 1), eight_tokens());
      const Generated expected = run_to_end(alone).generated.at(id);

      room_of_victim = 33 + 8 - window;
      room_of_misfit = 55 + 8 - window;
      Engine engine(model, options);
      const std::int64_t victim = engine.add(healthy_prompt(33, 4), eight_tokens());
      const std::int64_t healthy = engine.add(healthy_prompt(40, 1), eight_tokens());
      const std::int64_t misfit = engine.add(healthy_prompt(55, 5), eight_tokens());
      const Ended ended = run_to_end(engine);
      ASSERT_EQ(ended.errors.size(), 2U);
      EXPECT_EQ(message_of<std::domain_error>(ended.errors.at(victim)), "no idea in layer 2");
      EXPECT_EQ(message_of<std::domain_error>(ended.errors.at(misfit)), "no selector for this one");
      EXPECT_EQ(ended.generated.at(healthy), expected);
    }
  }
}

TEST(AFailureWithoutAnOwner, EndsEveryRequestOfTheStepAndLeavesTheEngineUsable) {
  const auto model = tiny_model();
  EngineOptions options = options_of("full");
  options.math = Math::kAten;  // whose products check their operands
  Engine engine(model, options);
  const std::int64_t id = engine.add(healthy_prompt(20, 1), eight_tokens());
  const Generated expected = run_to_end(engine).generated.at(id);

  const std::int64_t first = engine.add(healthy_prompt(20, 1), eight_tokens());
  const std::int64_t second = engine.add(healthy_prompt(9, 2), eight_tokens());
  engine.step();
  engine.step();
  at::Tensor& weight = model->weights().layers[3].down.parts[0].dense;
  const at::Tensor whole = weight;
  weight = whole.narrow(1, 0, whole.size(1) - 1);
  engine.reset_statistics();
  const std::vector<TokenEvent> events = engine.step();
  weight = whole;
  ASSERT_EQ(events.size(), 2U);
  EXPECT_EQ(events[0].request_id, first);
  EXPECT_EQ(events[1].request_id, second);
  for (const TokenEvent& event : events) {
    EXPECT_EQ(event.finish_reason, FinishReason::kError);
    EXPECT_NE(message_of<DeviceError>(event.error).find("[LibTorch]"), std::string::npos);
  }
  EXPECT_FALSE(engine.has_work());
  const std::int64_t again = engine.add(healthy_prompt(20, 1), eight_tokens());
  EXPECT_EQ(run_to_end(engine).generated.at(again), expected);
  // The step that was broken off belongs to nobody's time.
  const PipelineStatistics times = engine.run_statistics().pipeline;
  EXPECT_LE(times.device_s + times.wait_s, times.decode_s);
}

TEST(Requests, CanBeAbortedWhileTheyWaitArePrefilledOrRun) {
  const auto model = tiny_model();
  EngineOptions options = options_of("hybridgen");
  options.prefill_chunk = 16;
  Engine engine(model, options);
  const std::int64_t alone = engine.add(healthy_prompt(40, 1), eight_tokens());
  const Generated expected = run_to_end(engine).generated.at(alone);

  const std::int64_t running = engine.add(healthy_prompt(12, 2), eight_tokens());
  const std::int64_t healthy = engine.add(healthy_prompt(40, 1), eight_tokens());
  const std::int64_t prefilled = engine.add(healthy_prompt(60, 3), eight_tokens());
  const std::int64_t waiting = engine.add(healthy_prompt(30, 4), eight_tokens());
  Generated seen;
  const auto step = [&] {
    for (const TokenEvent& event : engine.step()) {
      if (event.request_id == healthy) {
        seen.tokens.push_back(event.token_id);
        seen.logprobs.push_back(event.logprob);
      }
    }
  };
  for (int i = 0; i < 1 + 3 + 2; ++i) step();  // two prompts, and half of the third
  for (const std::int64_t id : {waiting, prefilled, running}) {
    engine.finish(id, FinishReason::kAbort);
    EXPECT_EQ(engine.request_statistics(id).finish_reason, FinishReason::kAbort);
    engine.release(id);
  }
  while (engine.has_work()) step();
  EXPECT_EQ(seen, expected);
}

TEST(OwnErrors, SayWhatTheAllocatorAndLibTorchMean) {
  const auto own = [](auto error) { return own_error(std::make_exception_ptr(std::move(error))); };
  const auto of_torch = [](const char* text) { return c10::Error({__func__, __FILE__, 1}, text); };
  EXPECT_NE(message_of<OutOfMemoryError>(own(std::bad_alloc())).find("an allocation failed"),
            std::string::npos);
  for (const char* text : {"DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes.",
                           "unable to mmap 12 bytes from file <x>: Cannot allocate memory (12)"}) {
    EXPECT_NE(message_of<OutOfMemoryError>(own(of_torch(text))).find(text), std::string::npos);
  }
  for (const char* text : {"could not create a primitive", "could not execute a primitive"}) {
    EXPECT_NE(message_of<OutOfMemoryError>(own(std::runtime_error(text))).find(text),
              std::string::npos);
  }
  EXPECT_NE(message_of<DeviceError>(own(of_torch("mat1 and mat2"))).find("mat1 and mat2"),
            std::string::npos);
  EXPECT_LT(message_of<DeviceError>(own(of_torch(std::string(5000, 'x').c_str()))).size(), 2000U);
  EXPECT_EQ(message_of<ConfigError>(own(ConfigError("out of memory"))), "out of memory");
  const std::exception_ptr users = std::make_exception_ptr(std::domain_error("out of memory"));
  EXPECT_EQ(own_error(users), users);
}

}  // namespace
}  // namespace hybridgen
