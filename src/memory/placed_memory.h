// SPDX-License-Identifier: Apache-2.0
// Addresses that never move, and the pages behind them, which come, go and change memory node as
// their owner says. Where pages lie is proven, not assumed: they are touched by a rule that may
// spill over to other nodes rather than by one that ends the process, and then asked for.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hybridgen/core/tiers.h"
#include "memory/page_calls.h"

namespace hybridgen {

/// Of a PlacedMemory, from its start; whole pages.
struct ByteRange {
  std::size_t begin = 0;
  std::size_t bytes = 0;
  friend bool operator==(const ByteRange&, const ByteRange&) = default;
};

/// Where pages are to lie.
struct PagePlace {
  /// The only ones that are right. Empty: all are, nothing is verified and pages come with the
  /// first write.
  std::vector<int> nodes{};
  int first = -1;                   ///< of `nodes`, preferred to the others; -1: none is
  bool interleaves = false;         ///< over `nodes`, page by page
  TierKind tier = TierKind::kDram;  ///< for messages
  std::string setting{};            ///< the option that sets how much there is, for messages
};

/// That node, strictly, or anywhere where the machine has no other. ConfigError for an unknown one.
PagePlace place_on_node(int node);

/// What came of PlacedMemory::move().
struct PageMove {
  std::int64_t moved_bytes = 0;
  std::int64_t left_bytes = 0;  ///< still elsewhere
  std::string why;              ///< says why bytes were left; else empty
};

/// Bytes of pages that are there.
struct PagesFound {
  std::map<int, std::int64_t> by_node;
  std::int64_t bytes() const;
};

/// Movable. Calls about different ranges may come from several threads at a time.
class PlacedMemory {
 public:
  /// Left free on a node, for what others take meanwhile.
  static constexpr std::int64_t kReserveBytes = std::int64_t{16} << 20;

  PlacedMemory() = default;
  /// Addresses for `bytes`, rounded up to whole pages, at a multiple of 2 MiB if there are so many;
  /// zero when read. Nothing is taken yet. Throws OutOfMemoryError with errno text.
  explicit PlacedMemory(std::size_t bytes);
  ~PlacedMemory();
  PlacedMemory(PlacedMemory&& other) noexcept;
  PlacedMemory& operator=(PlacedMemory&& other) noexcept;

  std::byte* data() { return span_.data; }
  const std::byte* data() const { return span_.data; }
  std::size_t size_bytes() const { return span_.bytes; }

  /// Pages of `range` that come later come by the rule of `place`, as far as it has free ones.
  /// Advice only, for large ranges: with it, take() of parts of it needs no areas of their own.
  void prefer(ByteRange range, const PagePlace& place);

  /// Brings in the pages of `ranges`, none of which has any; nobody else uses them meanwhile. If
  /// the place has too little, all of them are given back and OutOfMemoryError names `operation`,
  /// tier, nodes, bytes wanted and free, and the setting.
  void take(std::span<const ByteRange> ranges, const PagePlace& place, std::string_view operation);

  /// The first half of take(): throws if the place has not so many bytes free now. All that there
  /// is to do where it has no nodes.
  void require_free(std::int64_t bytes, const PagePlace& place, std::string_view operation);

  /// Moves pages to `place`; others may read and write them meanwhile. Throws nothing but
  /// std::bad_alloc: what could not be moved stays where it is.
  PageMove move(std::span<const ByteRange> ranges, const PagePlace& place);

  /// Pages of `other`, at the same ranges, take the place of those here, which go back to the
  /// system; `other` has none there then. Nobody uses either meanwhile. Returns an errno: what came
  /// before the range that failed has been replaced.
  int take_over(std::span<const ByteRange> ranges, PlacedMemory& other);

  /// The pages go back to the system.
  void give_back(std::span<const ByteRange> ranges) noexcept;

  /// Makes huge pages of `range`, multiples of 2 MiB from the start, with what is written there and
  /// zeros elsewhere. Only where asked: no other page is ever huge. Advice only. By one thread.
  /// `asks_nodes`: small pages on several nodes stay as they are, as a huge one lies on one.
  void join(ByteRange range, bool asks_nodes = false);

  /// Pages of `range`, multiples of 2 MiB from the start of which none is there yet, come as huge
  /// ones. Else as join().
  void join_from_first_touch(ByteRange range);

  /// Asks the system about every page.
  PagesFound found(std::span<const ByteRange> ranges) const;
  /// Of all.
  PagesFound found() const;
  PageSpan span() const { return span_; }
  PageSpan span_of(ByteRange range) const { return {span_.data + range.begin, range.bytes}; }

 private:
  void take_piece(ByteRange piece, const PagePlace& place, std::string_view operation);
  bool begin_join(std::size_t unit);
  bool is_on_one_node(PageSpan span) const;

  PageCalls* calls_ = nullptr;
  PageSpan span_;                ///< in use
  PageSpan reserved_;            ///< around it
  bool never_joins_ = false;     ///< unless told, because the system would without being asked
  std::vector<bool> is_joined_;  ///< of each 2 MiB
  std::int64_t num_runs_ = 0;    ///< of joined ones
};

}  // namespace hybridgen
