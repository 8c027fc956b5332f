// SPDX-License-Identifier: Apache-2.0
#include "runtime/engine_thread.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <string>

#include "hybridgen/core/error.h"
#include "runtime/worker_pool.h"
#include "support/forked_child.h"

namespace hybridgen {
namespace {

TEST(IsEngineThread, HoldsForWorkersOnly) {
  EXPECT_FALSE(is_engine_thread());
  WorkerPool pool({{-1}, std::chrono::microseconds{50}});
  bool in_worker = false;
  TaskGroup group;
  group.assign(
      [](void* seen, std::int64_t, int) { *static_cast<bool*>(seen) = is_engine_thread(); },
      &in_worker,
      1);
  pool.submit(group);
  pool.wait(group);
  EXPECT_TRUE(in_worker);
}

TEST(StartEngineThread, NamesTheThreadThatCannotBeCreatedAndTheLimit) {
  EXPECT_TRUE(holds_in_child([] {
    if (!forbid_threads()) return false;
    try {
      start_engine_thread("[test] thread 3 of 7", [] {}).join();
    } catch (const DeviceError& error) {
      const std::string text = error.what();
      return text.find("[test] thread 3 of 7 could not be created: ") == 0 &&
             text.find("; allowed: RLIMIT_NPROC (ulimit -u) is 1 ") != std::string::npos;
    }
    return false;
  }));
}

}  // namespace
}  // namespace hybridgen
