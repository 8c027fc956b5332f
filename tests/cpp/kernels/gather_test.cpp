// SPDX-License-Identifier: Apache-2.0
#include <algorithm>
#include <set>

#include "kernel_test_support.h"

namespace hybridgen::kernels::test {
namespace {

class GatherRows : public testing::TestWithParam<std::tuple<std::int64_t, RowReader>> {};

// Rows of 12 bytes are no whole vectors; those of 80 are.
TEST_P(GatherRows, CopiesTheChosenRowsInTheirOrder) {
  const auto [dim, reader] = GetParam();
  const Array rows = random_array(DType::kBFloat16, 50 * dim, 40);
  std::vector<std::int32_t> positions = {49, 0, 7, 7, 8, 6, 48, 49};
  for (std::int32_t p = 0; p < 40; ++p) positions.push_back(p);
  for (std::int32_t p = 40; p > 0; --p) positions.push_back(p);
  for (const std::int64_t count : {std::int64_t{0}, std::int64_t{1}, std::ssize(positions)}) {
    for (const std::int64_t offset : {0, 1}) {  // in elements: aligned and not
      Array out(DType::kBFloat16, count * dim + offset + 1);
      out.set(count * dim + offset, 3.0F);
      auto* to = static_cast<std::uint16_t*>(out.data()) + offset;
      gather_rows(rows.data(), dim * 2, positions.data(), count, to, reader);
      for (std::int64_t i = 0; i < count * dim; ++i) {
        const std::int64_t row = positions[static_cast<std::size_t>(i / dim)];
        ASSERT_EQ(out.at(offset + i), rows.at(row * dim + i % dim));
      }
      EXPECT_EQ(out.at(count * dim + offset), 3.0F);
    }
  }
}

TEST_P(GatherRows, CopiesAllOfThem) {
  const auto [dim, reader] = GetParam();
  const Array rows = random_array(DType::kFloat32, 50 * dim, 43);
  Array out(DType::kFloat32, 50 * dim);
  copy_rows(rows.data(), 50 * dim * 4, out.data(), reader);
  for (std::int64_t i = 0; i < 50 * dim; ++i) ASSERT_EQ(out.at(i), rows.at(i));
}

INSTANTIATE_TEST_SUITE_P(Widths,
                         GatherRows,
                         testing::Combine(testing::Values(6, 40),
                                          testing::Values(RowReader::kCpu, RowReader::kDevice)));

TEST(GatherBlockedKeys, UndoesTheBlockingForEveryDtype) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    const Array rows = random_array(dtype, 96 * 10, 41);
    const Array blocked = block_keys(rows, 10);
    const std::vector<std::int32_t> positions = {0, 31, 32, 95, 50};
    Array out(dtype, 5 * 10);
    gather_blocked_keys({.data = blocked.data(), .dtype = dtype, .head_dim = 10, .capacity = 96},
                        positions.data(),
                        5,
                        out.data());
    for (std::int64_t i = 0; i < 50; ++i) {
      EXPECT_EQ(out.at(i), rows.at(positions[static_cast<std::size_t>(i / 10)] * 10 + i % 10));
    }
  }
}

TEST(MergePositions, CoverEveryListExactly) {
  std::mt19937 generator(42);
  std::vector<std::uint64_t> scratch;
  for (int round = 0; round < 200; ++round) {
    const auto num_lists = static_cast<std::int64_t>(generator() % 8 + 1);
    const auto count = static_cast<std::int64_t>(generator() % 20);
    const std::uint32_t span =
        static_cast<std::uint32_t>(count) + generator() % (round % 2 == 0 ? 30 : 5000) + 1;
    std::vector<std::int32_t> lists;
    std::set<std::int32_t> expected;
    for (std::int64_t l = 0; l < num_lists; ++l) {
      std::set<std::int32_t> list;
      while (static_cast<std::int64_t>(list.size()) < count) {
        list.insert(static_cast<std::int32_t>(generator() % span));
      }
      lists.insert(lists.end(), list.begin(), list.end());
      expected.insert(list.begin(), list.end());
    }
    std::vector<std::int32_t> merged(lists.size(), -1);
    std::vector<std::int32_t> index(lists.size(), -1);
    const std::int64_t size =
        merge_positions(lists.data(), num_lists, count, merged.data(), index.data(), scratch);
    merged.resize(static_cast<std::size_t>(size));
    ASSERT_EQ(merged, std::vector<std::int32_t>(expected.begin(), expected.end()));
    for (std::size_t i = 0; i < lists.size(); ++i) {
      ASSERT_EQ(merged[static_cast<std::size_t>(index[i])], lists[i]);
    }
  }
}

TEST(UnionOf, IsASetOfThePositionsInOrder) {
  for (const std::int64_t num_tokens : {1, 63, 64, 65, 5000}) {
    std::mt19937 random(static_cast<std::uint32_t>(num_tokens));
    std::vector<std::int32_t> positions(static_cast<std::size_t>(num_tokens) / 2 + 1);
    for (std::int32_t& position : positions) {
      position = static_cast<std::int32_t>(random() % static_cast<std::uint32_t>(num_tokens));
    }
    const std::set<std::int32_t> expected(positions.begin(), positions.end());
    std::vector<std::int32_t> merged(positions.size(), -1);
    std::vector<std::uint64_t> scratch(3, ~std::uint64_t{0});  // of a call before
    ASSERT_EQ(union_of(positions, num_tokens, merged.data(), scratch),
              static_cast<std::int64_t>(expected.size()));
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), merged.begin()));
  }
  std::vector<std::uint64_t> scratch;
  EXPECT_EQ(union_of({}, 10, nullptr, scratch), 0);
}

TEST(MergePositions, OfOneListAreThatList) {
  const std::vector<std::int32_t> list = {3, 8, 1000000};
  std::vector<std::int32_t> merged(3);
  std::vector<std::int32_t> index(3);
  std::vector<std::uint64_t> scratch;
  EXPECT_EQ(merge_positions(list.data(), 1, 3, merged.data(), index.data(), scratch), 3);
  EXPECT_EQ(merged, list);
  EXPECT_EQ(index, (std::vector<std::int32_t>{0, 1, 2}));
}

TEST(ConcatLogits, PutsHostBeforeResidentInEachRow) {
  const std::vector<float> host = {1, 2, -1, 3, 4, -1};  // stride 3, the third is a gap
  const std::vector<float> resident = {5, 6, 7, 8};
  std::vector<float> out(2 * 5, -9.0F);
  concat_logits(host.data(), 3, 2, resident.data(), 2, 2, out.data(), 5, 2);
  EXPECT_EQ(out, (std::vector<float>{1, 2, 5, 6, -9, 3, 4, 7, 8, -9}));
}

TEST(ConcatLogits, AllowsEitherSideToBeEmpty) {
  const std::vector<float> part = {1, 2, 3};
  std::vector<float> out(3);
  concat_logits(nullptr, 0, 0, part.data(), 3, 3, out.data(), 3, 1);
  EXPECT_EQ(out, part);
  std::fill(out.begin(), out.end(), 0.0F);
  concat_logits(part.data(), 3, 3, nullptr, 0, 0, out.data(), 3, 1);
  EXPECT_EQ(out, part);
}

TEST(ReadAll, TouchesEveryByte) {
  std::vector<unsigned char> data(1000, 0);
  const std::uint64_t empty = read_all(data.data(), 1000);
  for (std::size_t i = 0; i < data.size(); ++i) {
    data[i] = 1;
    EXPECT_NE(read_all(data.data(), 1000), empty) << "byte " << i;
    data[i] = 0;
  }
}

}  // namespace
}  // namespace hybridgen::kernels::test
