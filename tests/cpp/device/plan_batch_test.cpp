// SPDX-License-Identifier: Apache-2.0
#include <gtest/gtest.h>

#include <vector>

#include "device/device_ops.h"

namespace hybridgen {
namespace {

PlanItem item_of(std::int64_t tokens, std::int64_t places) {
  PlanItem item;
  item.num_tokens = tokens;
  item.most = places;
  return item;
}

// Grids are as large as the flat rows need, which stay when an item goes with its request.
TEST(PlanBatch, IsAsLargeAsTheLargestRowsThatHavePlacesThoughTheirItemsAreGone) {
  std::vector<PlanItem> items{item_of(5000, 20), item_of(300, 90), item_of(9000, 0)};
  PlanBatch batch;
  for (const PlanItem& item : items) batch.count(item);
  items.erase(items.begin());
  batch.items = items;
  EXPECT_EQ(batch.counted().max_tokens, 5000);
  EXPECT_EQ(batch.counted().max_places, 90);
  const PlanBatch of_items{.items = items};
  EXPECT_EQ(of_items.counted().max_tokens, 300);
  EXPECT_EQ(of_items.counted().max_places, 90);
}

}  // namespace
}  // namespace hybridgen
