// SPDX-License-Identifier: Apache-2.0
#include "runtime/process.h"

#include <gtest/gtest.h>

#include <string>

#include "hybridgen/core/error.h"
#include "support/forked_child.h"

namespace hybridgen {
namespace {

TEST(MakerProcess, IsTheOneThatMadeItAndNoChildOfIt) {
  const MakerProcess maker;
  EXPECT_TRUE(maker.is_this_one());
  EXPECT_TRUE(holds_in_child([&] { return !maker.is_this_one() && MakerProcess().is_this_one(); }));
}

TEST(CheckThreadsCanStart, AcceptsWhatTheSystemStarts) {
  EXPECT_NO_THROW(check_threads_can_start(-1, "test"));  // none beside the caller
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

}  // namespace
}  // namespace hybridgen
