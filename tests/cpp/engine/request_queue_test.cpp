// SPDX-License-Identifier: Apache-2.0
#include "engine/request_queue.h"

#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "hybridgen/core/error.h"
#include "support/tiny_model.h"

namespace hybridgen {
namespace {

class Queue : public ::testing::Test {
 protected:
  std::int64_t add() { return queue_.add(std::make_unique<Request>(SamplingOptions{})); }
  Request& run(std::int64_t id) {
    Request& request = queue_.find(id);
    queue_.start_prefill(request);
    queue_.start_running(request);
    return request;
  }
  std::vector<std::int64_t> running() const {
    std::vector<std::int64_t> ids;
    for (const Request* request : queue_.running()) {
      ids.push_back(request->id);
    }
    return ids;
  }

  RequestQueue queue_;
};

TEST_F(Queue, IdsRiseAndAreNeverGivenTwice) {
  EXPECT_EQ(add(), 0);
  EXPECT_EQ(add(), 1);
  queue_.end(queue_.find(1));
  queue_.release(1);
  EXPECT_EQ(add(), 2);
}

TEST_F(Queue, WhoCameFirstIsFirst) {
  add();
  add();
  EXPECT_EQ(queue_.first_waiting()->id, 0);
  queue_.start_prefill(*queue_.first_waiting());
  ASSERT_EQ(queue_.prefilling().size(), 1U);
  EXPECT_EQ(queue_.prefilling().front()->id, 0);
  EXPECT_EQ(queue_.first_waiting()->id, 1);
}

TEST_F(Queue, RunningOnesAreInTheOrderOfTheirIdsWhoeverStartedFirst) {
  add();
  add();
  add();
  run(2);
  run(0);
  run(1);
  EXPECT_EQ(running(), (std::vector<std::int64_t>{0, 1, 2}));
}

TEST_F(Queue, TellsOnceThatTheRunningOnesChanged) {
  add();
  Request& request = run(0);
  EXPECT_TRUE(queue_.take_changed());
  EXPECT_FALSE(queue_.take_changed());
  queue_.end(request);
  EXPECT_TRUE(queue_.take_changed());
  queue_.end(request);
  EXPECT_FALSE(queue_.take_changed());
}

TEST_F(Queue, AnEndedOneIsKnownUntilItIsReleased) {
  const std::int64_t waiting = add();
  const std::int64_t prefilling = add();
  queue_.start_prefill(queue_.find(prefilling));
  EXPECT_TRUE(queue_.has_work());
  queue_.end(queue_.find(prefilling));
  queue_.end(queue_.find(waiting));
  EXPECT_FALSE(queue_.has_work());
  EXPECT_EQ(queue_.find(waiting).id, waiting);
  queue_.release(waiting);
  EXPECT_THROW(queue_.find(waiting), ConfigError);
}

// ------------------------------------------------------------------------------- make_request

constexpr std::int64_t kMaxModelLen = 10;

std::unique_ptr<Request> made(RequestInput input) {
  return make_request(std::move(input), testing::tiny_config(), kMaxModelLen);
}

TEST(MakeRequest, NewTokensEndAtTheModelsLimit) {
  RequestInput input{.prompt = {1, 2, 3, 4, 5, 6}};
  input.sampling.max_tokens = 3;
  EXPECT_EQ(made(input)->max_tokens, 9);
  input.sampling.max_tokens = 16;
  EXPECT_EQ(made(input)->max_tokens, kMaxModelLen);
}

TEST(MakeRequest, PromptTokensThatAreDecodedAreNotPrefilled) {
  EXPECT_EQ(made({.prompt = {1, 2, 3}})->prefill_tokens, 3);
  EXPECT_EQ(made({.prompt = {1, 2, 3}, .decode_prompt_tokens = 2})->prefill_tokens, 1);
  EXPECT_EQ(made({.prompt = {1, 2, 3}, .decode_prompt_tokens = 20})->prefill_tokens, 0);
}

TEST(MakeRequest, ForcedTokensAreAllTheNewOnesThereAre) {
  RequestInput input{.prompt = {1, 2}, .forced = {3, 4, 5}};
  input.sampling.min_tokens = 9;
  const auto request = made(input);
  EXPECT_EQ(request->max_tokens, 5);
  EXPECT_EQ(request->sampling.min_tokens, 0);
}

TEST(MakeRequest, RefusesWhatCannotBeRun) {
  EXPECT_THROW(made({}), ConfigError);
  EXPECT_THROW(made({.prompt = {-1}}), ConfigError);
  EXPECT_THROW(made({.prompt = {61}}), ConfigError);
  EXPECT_THROW(made({.prompt = {1}, .forced = {61}}), ConfigError);
  EXPECT_THROW(made({.prompt = std::vector<std::int64_t>(10, 1)}), ConfigError);
  EXPECT_NO_THROW(made({.prompt = std::vector<std::int64_t>(9, 1)}));
  EXPECT_THROW(made({.prompt = std::vector<std::int64_t>(9, 1), .forced = {1, 1}}), ConfigError);
  EXPECT_THROW(made({.prompt = {1}, .decode_prompt_tokens = -1}), ConfigError);
}

}  // namespace
}  // namespace hybridgen
