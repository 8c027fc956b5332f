// SPDX-License-Identifier: Apache-2.0
// Steps of an engine whose requests may fail: what each gave, and what ended it.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <exception>
#include <map>
#include <string>

#include "hybridgen/engine/engine.h"
#include "support/tiny_model.h"

namespace hybridgen::testing {

struct Ended {
  std::map<std::int64_t, Generated> generated;        ///< by request
  std::map<std::int64_t, std::exception_ptr> errors;  ///< of those that failed
};

/// One step; a request fails once, and gives no token with its failure.
inline void step(Engine& engine, Ended& ended) {
  for (const TokenEvent& event : engine.step()) {
    EXPECT_EQ(event.error != nullptr, event.finish_reason == FinishReason::kError);
    if (event.error != nullptr) {
      EXPECT_TRUE(ended.errors.emplace(event.request_id, event.error).second);
      EXPECT_EQ(event.token_id, -1);
      continue;
    }
    ended.generated[event.request_id].tokens.push_back(event.token_id);
    ended.generated[event.request_id].logprobs.push_back(event.logprob);
  }
}

/// Steps until no request is left, whatever happens to whom.
inline Ended run_to_end(Engine& engine) {
  Ended ended;
  while (engine.has_work()) {
    step(engine, ended);
  }
  return ended;
}

/// What an exception of this type says; of any other, that it is another.
template <typename Exception>
std::string message_of(const std::exception_ptr& error) {
  try {
    std::rethrow_exception(error);
  } catch (const Exception& found) {
    return found.what();
  } catch (...) {
    return "another exception";
  }
}

}  // namespace hybridgen::testing
