// SPDX-License-Identifier: Apache-2.0
#include "parts/host_pool.h"

#include <gtest/gtest.h>

#include <set>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

HostPool full_pool(PoolPolicy policy) {
  HostPool pool(2, 2, 6, policy);
  pool.append(4);
  pool.append(2);
  return pool;
}

void fetch(HostPool& pool, std::vector<std::int32_t> slots) {
  pool.on_fetch(1, 0, slots);
  pool.end_step();
}

TEST(HostPool, FifoReplacesTheOldestWhateverWasFetched) {
  HostPool pool = full_pool(PoolPolicy::kFifo);
  fetch(pool, {0, 0, 1});
  EXPECT_EQ(pool.replace(1, 0), 0);
  EXPECT_EQ(pool.replace(1, 0), 1);
  EXPECT_EQ(pool.order_of(1, 0, 0), 6);
  EXPECT_EQ(pool.order_of(1, 0, 1), 7);
}

TEST(HostPool, LruReplacesTheLeastRecentlyFetchedOfTheOlderHalf) {
  HostPool pool = full_pool(PoolPolicy::kLru);
  fetch(pool, {0, 1, 2});
  fetch(pool, {0, 2});
  EXPECT_EQ(pool.replace(1, 0), 1);
  // The older half is now {0, 2, 3}; 3 was never fetched.
  EXPECT_EQ(pool.replace(1, 0), 3);
}

TEST(HostPool, CounterReplacesTheLeastOftenFetchedOfTheOlderHalf) {
  HostPool pool = full_pool(PoolPolicy::kCounter);
  fetch(pool, {0, 1, 2});
  fetch(pool, {0, 1});
  fetch(pool, {1, 2});
  // 0 and 2 twice, 1 three times: the older of the two goes. 3 to 5 are the newer half.
  EXPECT_EQ(pool.replace(1, 0), 0);
}

TEST(HostPool, HeadsDecideByThemselves) {
  HostPool pool = full_pool(PoolPolicy::kCounter);
  fetch(pool, {0});
  EXPECT_EQ(pool.replace(1, 0), 1);
  EXPECT_EQ(pool.replace(1, 1), 0);
  EXPECT_EQ(pool.replace(0, 0), 0);
}

TEST(HostPool, ANewTokenStartsWithoutTheFetchesOfItsForerunner) {
  HostPool pool(1, 1, 1, PoolPolicy::kCounter);
  pool.append(1);
  for (int step = 0; step < 5; ++step) {
    const std::vector<std::int32_t> slots = {0};
    pool.on_fetch(0, 0, slots);
    EXPECT_EQ(pool.replace(0, 0), 0);
    EXPECT_EQ(pool.order_of(0, 0, 0), step + 1);
  }
}

TEST(HostPool, BadSizesAreRefused) {
  EXPECT_THROW(HostPool(1, 1, 0, PoolPolicy::kFifo), ConfigError);
  EXPECT_THROW(HostPool(0, 1, 1, PoolPolicy::kFifo), ConfigError);
  HostPool pool(1, 1, 2, PoolPolicy::kFifo);
  EXPECT_THROW(pool.append(3), ConfigError);
  EXPECT_THROW(pool.append(-1), ConfigError);
  EXPECT_THROW(pool.replace(0, 0), ConfigError);
  EXPECT_EQ(pool.size(), 0);
}

}  // namespace
}  // namespace hybridgen
