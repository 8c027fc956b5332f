// SPDX-License-Identifier: Apache-2.0
#include "runtime/worker_pool.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iterator>
#include <memory>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "hybridgen/core/error.h"
#include "runtime/cpus.h"

namespace hybridgen {
namespace {

using std::chrono::microseconds;

WorkerPool::Options unpinned(std::size_t threads, microseconds spin = microseconds{50}) {
  return {std::vector<int>(threads, -1), spin};
}

/// A group whose tasks call `function`, which must outlive it.
using Body = std::function<void(std::int64_t index, int worker)>;
void assign(TaskGroup& group, Body& body, std::int64_t count) {
  group.assign(
      [](void* context, std::int64_t index, int worker) {
        (*static_cast<Body*>(context))(index, worker);
      },
      &body,
      count);
}

/// Counts the calls per index.
struct Counted {
  explicit Counted(std::int64_t count) : calls(static_cast<std::size_t>(count)) {
    body = [this](std::int64_t index, int) {
      calls[static_cast<std::size_t>(index)].fetch_add(1, std::memory_order_relaxed);
    };
    assign(group, body, count);
  }
  bool every_index_once() const {
    return std::all_of(calls.begin(), calls.end(), [](const auto& n) { return n.load() == 1; });
  }

  std::vector<std::atomic<int>> calls;
  Body body;
  TaskGroup group;
};

std::set<std::filesystem::path> threads_of_process() {
  const std::filesystem::directory_iterator tasks("/proc/self/task");
  return {begin(tasks), end(tasks)};
}

class WorkerPoolOfThreads : public testing::TestWithParam<std::size_t> {};

TEST_P(WorkerPoolOfThreads, RunsEveryIndexExactlyOnce) {
  WorkerPool pool(unpinned(GetParam()));
  EXPECT_EQ(pool.size(), static_cast<int>(GetParam()));
  for (const std::int64_t count : {0, 1, 2, 7, 1000}) {
    Counted counted(count);
    pool.submit(counted.group);
    pool.wait(counted.group);
    EXPECT_TRUE(counted.group.done());
    EXPECT_TRUE(counted.every_index_once()) << count << " tasks";
  }
}

TEST_P(WorkerPoolOfThreads, SleepingWorkersWakeForNewWork) {
  WorkerPool pool(unpinned(GetParam(), microseconds{0}));  // sleeps whenever idle
  for (int repeat = 0; repeat < 200; ++repeat) {
    Counted counted(3);
    pool.submit(counted.group);
    pool.wait(counted.group);
    ASSERT_TRUE(counted.every_index_once());
  }
}

TEST_P(WorkerPoolOfThreads, TheSpinMayChangeWhileWorkersSpinOrSleep) {
  WorkerPool pool(unpinned(GetParam()));
  for (int repeat = 0; repeat < 200; ++repeat) {
    Counted counted(3);
    pool.set_spin(repeat % 2 == 0 ? microseconds{0} : WorkerPool::kDecodeSpin);
    pool.submit(counted.group);
    pool.set_spin(repeat % 3 == 0 ? microseconds{0} : WorkerPool::kDecodeSpin);
    pool.wait(counted.group);
    ASSERT_TRUE(counted.every_index_once());
  }
}

TEST_P(WorkerPoolOfThreads, RunCallsEveryIndexExactlyOnce) {
  WorkerPool pool(unpinned(GetParam()));
  for (const std::int64_t count : {0, 1, 2, 7, 1000}) {
    Counted counted(count);
    pool.run(counted.group);
    EXPECT_TRUE(counted.group.done());
    EXPECT_TRUE(counted.every_index_once()) << count << " tasks";
  }
}

TEST(WorkerPool, AGroupCanBeUsedAgainAfterWait) {
  WorkerPool pool(unpinned(2));
  std::atomic<std::int64_t> sum{0};
  Body body = [&](std::int64_t index, int) { sum += index + 1; };
  TaskGroup group;
  for (int repeat = 0; repeat < 100; ++repeat) {
    assign(group, body, 10);
    pool.submit(group);
    pool.wait(group);
  }
  EXPECT_EQ(sum.load(), 100 * 55);
  pool.submit(group);  // without another assign()
  pool.wait(group);
  EXPECT_EQ(sum.load(), 101 * 55);
}

TEST_P(WorkerPoolOfThreads, ForEachCallsEveryIndexExactlyOnceAndRethrows) {
  WorkerPool pool(unpinned(GetParam()));
  std::vector<std::atomic<int>> calls(1000);
  pool.for_each(1000, [&](std::int64_t i) { ++calls[static_cast<std::size_t>(i)]; });
  for (const std::atomic<int>& count : calls) ASSERT_EQ(count.load(), 1);
  pool.for_each(0, [](std::int64_t) { ADD_FAILURE() << "there is nothing to call"; });
  EXPECT_THROW(pool.for_each(3, [](std::int64_t) { throw std::runtime_error("no"); }),
               std::runtime_error);
}

TEST_P(WorkerPoolOfThreads, FinishCallsWhatNoWorkerHasTakenYet) {
  WorkerPool pool(unpinned(GetParam()));
  for (const std::int64_t count : {0, 1, 2, 7, 1000}) {
    Counted first(count);
    Counted second(count);
    pool.submit(first.group);
    pool.submit(second.group);
    pool.finish(second.group);
    EXPECT_TRUE(second.every_index_once()) << count << " tasks";
    pool.finish(first.group);
    pool.finish(first.group);  // nothing is left
    EXPECT_TRUE(first.every_index_once()) << count << " tasks";
  }
}

INSTANTIATE_TEST_SUITE_P(OneToFour, WorkerPoolOfThreads, testing::Values(1, 2, 4));

TEST(WorkerPool, FinishRethrowsTheErrorOfATaskOfTheCaller) {
  WorkerPool pool(unpinned(1));
  Body fail = [](std::int64_t, int) { throw std::runtime_error("no"); };
  TaskGroup group;
  for (int repeat = 0; repeat < 100; ++repeat) {
    assign(group, fail, 3);
    pool.submit(group);
    EXPECT_THROW(pool.finish(group), std::runtime_error);
  }
}

TEST(WorkerPool, RunDoesNotWaitForWorkersThatAreBusyWithEarlierGroups) {
  WorkerPool pool(unpinned(1));
  std::atomic<bool> is_busy{false};
  std::atomic<bool> may_finish{false};
  Body block = [&](std::int64_t, int) {
    is_busy = true;
    while (!may_finish) std::this_thread::yield();
  };
  TaskGroup blocked;
  assign(blocked, block, 1);
  pool.submit(blocked);
  while (!is_busy) std::this_thread::yield();
  std::vector<int> workers;
  Body note = [&](std::int64_t, int worker) { workers.push_back(worker); };
  TaskGroup group;
  for (int repeat = 0; repeat < 3000; ++repeat) {  // more than the ring holds
    assign(group, note, 1);
    pool.run(group);
  }
  may_finish = true;
  pool.wait(blocked);
  EXPECT_EQ(workers, std::vector<int>(3000, pool.size()));
}

TEST(WorkerPool, RunRethrowsATaskErrorWhoeverHadTheTask) {
  WorkerPool pool(unpinned(2));
  for (std::int64_t bad = 0; bad < 20; ++bad) {
    Body body = [&](std::int64_t index, int) {
      if (index == bad) throw std::runtime_error("task");
    };
    TaskGroup group;
    assign(group, body, 20);
    EXPECT_THROW(pool.run(group), std::runtime_error);
    Counted counted(5);
    pool.run(counted.group);
    EXPECT_TRUE(counted.every_index_once());
  }
}

TEST(WorkerPool, WaitReturnsAtOnceForAGroupThatWasNeverSubmitted) {
  WorkerPool pool(unpinned(1));
  TaskGroup group;
  pool.wait(group);
  EXPECT_TRUE(group.done());
}

TEST(WorkerPool, OneWorkerRunsGroupsAndTheirTasksInSubmissionOrder) {
  WorkerPool pool(unpinned(1));
  std::vector<int> order;  // one worker: no lock needed
  std::vector<Body> bodies(5);
  std::vector<TaskGroup> groups(5);
  for (std::size_t g = 0; g < 5; ++g) {
    bodies[g] = [&order, g](std::int64_t index, int) {
      order.push_back(static_cast<int>(g) * 10 + static_cast<int>(index));
    };
    assign(groups[g], bodies[g], 2);
  }
  for (TaskGroup& group : groups) pool.submit(group);
  for (TaskGroup& group : groups) pool.wait(group);
  EXPECT_EQ(order, (std::vector<int>{0, 1, 10, 11, 20, 21, 30, 31, 40, 41}));
}

TEST(WorkerPool, AFreeWorkerGoesOnWithTheNextGroup) {
  WorkerPool pool(unpinned(2));
  std::atomic<bool> second_ran{false};
  // Ends only if the second group runs beside it.
  Body blocking = [&](std::int64_t, int) {
    while (!second_ran.load()) std::this_thread::yield();
  };
  Body releasing = [&](std::int64_t, int) { second_ran.store(true); };
  TaskGroup first;
  TaskGroup second;
  assign(first, blocking, 1);
  assign(second, releasing, 1);
  pool.submit(first);
  pool.submit(second);
  pool.wait(second);
  pool.wait(first);
  EXPECT_TRUE(second_ran.load());
}

TEST(WorkerPool, WorkerNumbersAreBelowItsSizeAndNeverSharedByRunningTasks) {
  WorkerPool pool(unpinned(3));
  std::array<std::atomic<int>, 3> running{};
  std::atomic<int> errors{0};
  Body body = [&](std::int64_t, int worker) {
    if (worker < 0 || worker >= 3) {
      ++errors;
      return;
    }
    std::atomic<int>& mine = running[static_cast<std::size_t>(worker)];
    if (mine.fetch_add(1) != 0) ++errors;
    std::this_thread::yield();
    mine.fetch_sub(1);
  };
  TaskGroup group;
  assign(group, body, 500);
  pool.submit(group);
  pool.wait(group);
  EXPECT_EQ(errors.load(), 0);
}

TEST(WorkerPool, ATaskErrorIsRethrownByWaitAndThePoolAndTheGroupStayUsable) {
  WorkerPool pool(unpinned(2));
  Body failing = [](std::int64_t index, int) {
    if (index == 3) throw NumericError("task 3");
  };
  TaskGroup group;
  for (int repeat = 0; repeat < 20; ++repeat) {
    assign(group, failing, 10);
    pool.submit(group);
    EXPECT_THROW(pool.wait(group), NumericError);
    EXPECT_NO_THROW(pool.wait(group));  // told once
    Counted counted(10);
    pool.submit(counted.group);
    EXPECT_NO_THROW(pool.wait(counted.group));
    EXPECT_TRUE(counted.every_index_once());
  }
  Body fine = [](std::int64_t, int) {};
  assign(group, fine, 10);
  pool.submit(group);
  EXPECT_NO_THROW(pool.wait(group));
}

TEST_P(WorkerPoolOfThreads, RethrowsTheErrorOfTheLowestIndexWhateverTheTiming) {
  WorkerPool pool(unpinned(GetParam()));
  for (int round = 0; round < 20; ++round) {
    try {
      pool.for_each(16, [&](std::int64_t i) {
        // What fails first in time is not what fails first in order.
        if (i == 1) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        if (i > 0) throw std::runtime_error(std::to_string(i));
      });
      FAIL() << "nothing was thrown";
    } catch (const std::runtime_error& error) {
      ASSERT_STREQ(error.what(), "1");
    }
  }
}

TEST(WorkerPool, AnErrorConcernsItsOwnGroupOnly) {
  WorkerPool pool(unpinned(2));
  Body failing = [](std::int64_t, int) { throw std::runtime_error("always"); };
  TaskGroup group;
  assign(group, failing, 100);
  Counted counted(100);
  pool.submit(group);
  pool.submit(counted.group);
  EXPECT_NO_THROW(pool.wait(counted.group));
  EXPECT_THROW(pool.wait(group), std::runtime_error);
  EXPECT_TRUE(counted.every_index_once());
}

TEST(WorkerPool, AfterAnErrorTheRestOfTheGroupIsSkippedButCounted) {
  WorkerPool pool(unpinned(1));
  int calls = 0;  // one worker: no lock needed
  Body failing = [&](std::int64_t, int) {
    ++calls;
    throw std::runtime_error("first");
  };
  TaskGroup group;
  assign(group, failing, 1000);
  pool.submit(group);
  EXPECT_THROW(pool.wait(group), std::runtime_error);
  EXPECT_TRUE(group.done());
  EXPECT_EQ(calls, 1);
}

TEST(WorkerPool, TwoThreadsCanKeepManyGroupsInFlight) {
  WorkerPool pool(unpinned(3));
  std::atomic<int> wrong{0};
  const auto submitter = [&] {
    for (int repeat = 0; repeat < 20; ++repeat) {
      std::vector<std::unique_ptr<Counted>> flight;
      for (std::int64_t i = 0; i < 20; ++i) {
        flight.push_back(std::make_unique<Counted>(i % 5));
        pool.submit(flight.back()->group);
      }
      for (const auto& counted : flight) {
        pool.wait(counted->group);
        if (!counted->every_index_once()) ++wrong;
      }
    }
  };
  std::thread other(submitter);
  submitter();
  other.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST(WorkerPool, MoreGroupsThanTheRingHoldsAreAllRun) {
  WorkerPool pool(unpinned(2));
  std::vector<std::unique_ptr<Counted>> flight;
  for (int i = 0; i < 5000; ++i) {
    flight.push_back(std::make_unique<Counted>(2));
    pool.submit(flight.back()->group);
  }
  bool all = true;
  for (const auto& counted : flight) {
    pool.wait(counted->group);
    all = all && counted->every_index_once();
  }
  EXPECT_TRUE(all);
}

// The owner destroys the group right after wait(), while workers may still be looking for tasks in
// its place of the ring: what the sanitizers would report is a worker touching it then.
TEST(WorkerPool, AGroupMayBeDestroyedAsSoonAsWaitReturned) {
  WorkerPool pool(unpinned(4, microseconds{1}));
  std::mt19937 random(3);
  bool all = true;
  for (int repeat = 0; repeat < 3000; ++repeat) {
    const auto counted = std::make_unique<Counted>(1 + static_cast<std::int64_t>(random() % 6));
    pool.submit(counted->group);
    pool.wait(counted->group);
    all = all && counted->every_index_once();
  }
  EXPECT_TRUE(all);
}

TEST(WorkerPool, SurvivesRandomDelaysOfTasksAndSubmitters) {
  WorkerPool pool(unpinned(3, microseconds{20}));
  std::atomic<int> wrong{0};
  const auto submitter = [&](unsigned seed) {
    std::mt19937 random(seed);
    const auto nap = [&random] {
      const auto choice = random() % 4;
      if (choice == 0) std::this_thread::sleep_for(microseconds{random() % 150});
    };
    for (int repeat = 0; repeat < 60; ++repeat) {
      std::vector<std::atomic<int>> calls(8);
      Body body = [&calls](std::int64_t index, int) {
        if (index % 3 == 0) std::this_thread::sleep_for(microseconds{10 * index});
        calls[static_cast<std::size_t>(index)]++;
        if (index == 7) throw std::runtime_error("last");
      };
      const std::int64_t count = 1 + static_cast<std::int64_t>(random() % 8);
      TaskGroup group;
      assign(group, body, count);
      nap();
      pool.submit(group);
      nap();
      bool threw = false;
      try {
        pool.wait(group);
      } catch (const std::runtime_error&) {
        threw = true;
      }
      if (threw != (count == 8)) ++wrong;
      for (std::int64_t i = 0; i < count; ++i) {
        if (calls[static_cast<std::size_t>(i)].load() != 1) ++wrong;
      }
    }
  };
  std::thread first(submitter, 1U);
  std::thread second(submitter, 2U);
  submitter(3U);
  first.join();
  second.join();
  EXPECT_EQ(wrong.load(), 0);
}

TEST(WorkerPool, TheDestructorFinishesQueuedGroups) {
  std::vector<std::unique_ptr<Counted>> flight;
  {
    WorkerPool pool(unpinned(2));
    for (int i = 0; i < 50; ++i) {
      flight.push_back(std::make_unique<Counted>(4));
      pool.submit(flight.back()->group);
    }
  }
  for (const auto& counted : flight) {
    EXPECT_TRUE(counted->group.done());
    EXPECT_TRUE(counted->every_index_once());
  }
}

TEST(WorkerPool, LeavesNoThreadBehind) {
  {
    const WorkerPool warm_up(unpinned(1));
  }  // sanitizers start a thread of their own on first use
  const auto before = threads_of_process();
  std::vector<std::filesystem::path> own;
  {
    const WorkerPool pool(unpinned(4));
    std::ranges::set_difference(threads_of_process(), before, std::back_inserter(own));
    EXPECT_EQ(own.size(), 4U);
  }
  // A joined thread leaves the list of the kernel a moment after join() returned.
  const auto is_there = [](const auto& thread) { return std::filesystem::exists(thread); };
  for (int i = 0; i < 20'000 && std::ranges::any_of(own, is_there); ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds{1});
  }
  EXPECT_TRUE(std::ranges::none_of(own, is_there));
}

TEST(WorkerPool, PinsItsThreadsToTheGivenCpus) {
  const int cpu = available_cpus().back();
  WorkerPool pool({{cpu, -1}, microseconds{50}});
  std::array<std::vector<int>, 2> seen;
  Body body = [&](std::int64_t, int worker) {
    seen[static_cast<std::size_t>(worker)] = available_cpus();  // of the calling thread
    std::this_thread::sleep_for(std::chrono::milliseconds{1});  // lets the other worker take one
  };
  TaskGroup group;
  for (int i = 0; i < 1000 && (seen[0].empty() || seen[1].empty()); ++i) {
    assign(group, body, 4);
    pool.submit(group);
    pool.wait(group);
  }
  EXPECT_EQ(seen[0], std::vector<int>{cpu});
  EXPECT_EQ(seen[1], available_cpus());
}

TEST(WorkerPool, RefusesCpusThatAreNotThere) {
  EXPECT_THROW(WorkerPool({{}, microseconds{50}}), ConfigError);
  EXPECT_THROW(WorkerPool({{-1, 100000}, microseconds{50}}), DeviceError);
}

TEST(WorkerPool, WorkersFlushDenormals) {
  WorkerPool pool(unpinned(1));
  volatile float smallest_normal = 1.17549435e-38F;
  volatile float half = 0.5F;
  volatile float in_worker = 1.0F;
  Body body = [&](std::int64_t, int) { in_worker = smallest_normal * half; };
  TaskGroup group;
  assign(group, body, 1);
  pool.submit(group);
  pool.wait(group);
  EXPECT_EQ(in_worker, 0.0F);
  EXPECT_GT(smallest_normal * half, 0.0F) << "the caller's own mode must not change";
}

TEST(TaskGroup, RejectsCountsItCannotHold) {
  TaskGroup group;
  const TaskGroup::Function nothing = [](void*, std::int64_t, int) {};
  EXPECT_THROW(group.assign(nothing, nullptr, -1), ConfigError);
  EXPECT_THROW(group.assign(nothing, nullptr, std::int64_t{1} << 32), ConfigError);
  EXPECT_NO_THROW(group.assign(nothing, nullptr, (std::int64_t{1} << 32) - 1));
}

TEST(WorkerPool, ForkedChildLetsGoOfIt) {
  auto pool = std::make_unique<WorkerPool>(unpinned(2));
  const pid_t child = fork();
  if (child == 0) {
    alarm(30);  // a join would never return
    pool.reset();
    _exit(0);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
}

}  // namespace
}  // namespace hybridgen
