// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/device/process.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <string>

#include "hybridgen/core/error.h"
#include "hybridgen/device/worker_pool.h"

namespace hybridgen {
namespace {

/// Whether `check` is true in a forked child.
bool holds_in_child(const std::function<bool()>& check) {
  const pid_t child = fork();
  if (child == 0) {
    _exit(check() ? 0 : 1);
  }
  int status = -1;
  return waitpid(child, &status, 0) == child && status == 0;
}

/// Forbids this process to start threads. The limit does not hold for root.
bool forbid_threads() {
  const rlimit none{1, 1};
  const uid_t nobody = 65534;
  return (geteuid() != 0 || setresuid(nobody, nobody, nobody) == 0) &&
         setrlimit(RLIMIT_NPROC, &none) == 0;
}

TEST(MakerProcess, IsTheOneThatMadeItAndNoChildOfIt) {
  const MakerProcess maker;
  EXPECT_TRUE(maker.is_this_one());
  EXPECT_TRUE(holds_in_child([&] { return !maker.is_this_one() && MakerProcess().is_this_one(); }));
}

TEST(CheckThreadsCanStart, AcceptsWhatTheSystemStarts) {
  EXPECT_NO_THROW(check_threads_can_start(0, "test"));
  EXPECT_NO_THROW(check_threads_can_start(8, "test"));
}

TEST(CheckThreadsCanStart, NamesTheLimitOtherwise) {
  EXPECT_TRUE(holds_in_child([] {
    if (!forbid_threads()) return false;
    try {
      check_threads_can_start(2, "test");
    } catch (const DeviceError& error) {
      const std::string text = error.what();
      return text.find("[test] 2 threads are needed, but the system starts only 0") == 0 &&
             text.find("RLIMIT_NPROC (ulimit -u) is 1") != std::string::npos;
    }
    return false;
  }));
}

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

}  // namespace
}  // namespace hybridgen
