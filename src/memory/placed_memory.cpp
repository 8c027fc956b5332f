// SPDX-License-Identifier: Apache-2.0
#include "memory/placed_memory.h"

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <limits>
#include <numeric>
#include <system_error>
#include <utility>

#include "hybridgen/core/error.h"
#include "memory/huge_pages.h"
#include "memory/numa.h"

namespace hybridgen {
namespace {

constexpr std::size_t kPieceBytes = kHugePageBytes;  // between two looks at where pages came to lie
constexpr std::size_t kPagesAtATime = 4096;          // asked about

// Every run of huge pages among small ones is an area of its own to a system that must be told
// which is which, and a process may have 65,530 areas by default; others want some, too.
constexpr std::int64_t kMostRuns = 8192;
std::atomic<std::int64_t> all_runs{0};

std::size_t round_up(std::size_t bytes, std::size_t multiple) {
  return (bytes + multiple - 1) / multiple * multiple;
}

std::string text_of(int error) { return std::generic_category().message(error); }

std::size_t sum_of(std::span<const ByteRange> ranges) {
  return std::accumulate(
      ranges.begin(), ranges.end(), std::size_t{0}, [](std::size_t sum, const ByteRange& range) {
        return sum + range.bytes;
      });
}

std::string human(std::int64_t bytes) { return human_bytes(static_cast<double>(bytes)); }

/// "node 1", "nodes 0, 1", or "" for any.
std::string names_of(const std::vector<int>& nodes) {
  if (nodes.empty()) return "this machine's memory";
  std::string names = nodes.size() == 1 ? "node " : "nodes ";
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    names += (i == 0 ? "" : ", ") + std::to_string(nodes[i]);
  }
  return names;
}

bool is_right(const PagePlace& place, int node) {
  return std::ranges::find(place.nodes, node) != place.nodes.end();
}

PageRule rule_of(const PagePlace& place) {
  if (place.nodes.empty() && place.first == -1) return {};
  if (place.interleaves) return {PageRule::Kind::kInterleave, place.nodes};
  if (place.first != -1) return {PageRule::Kind::kPrefer, {place.first}};
  return {PageRule::Kind::kPrefer, place.nodes};
}

OutOfMemoryError full(const PagePlace& place,
                      std::int64_t wanted,
                      std::int64_t free,
                      std::string_view operation) {
  return OutOfMemoryError(message("[",
                                  operation,
                                  "] the ",
                                  name_of(place.tier),
                                  " tier is full: ",
                                  human(wanted),
                                  " (",
                                  wanted,
                                  " bytes) are wanted of ",
                                  names_of(place.nodes),
                                  "; allowed: the ",
                                  human(std::max<std::int64_t>(free, 0)),
                                  " that the system has free there; lower ",
                                  place.setting.empty() ? "the memory settings" : place.setting,
                                  ", run fewer or shorter requests at a time, or end what else "
                                  "uses this memory"));
}

OutOfMemoryError refused(const PagePlace& place,
                         std::string_view operation,
                         std::string_view call,
                         std::int64_t bytes,
                         int error) {
  return OutOfMemoryError(
      message("[",
              operation,
              "] ",
              call,
              " ",
              human(bytes),
              " of the ",
              name_of(place.tier),
              " tier (",
              names_of(place.nodes),
              ") failed: ",
              text_of(error),
              "; allowed: what the system has free, of memory and of areas in a process "
              "(vm.max_map_count); lower ",
              place.setting.empty() ? "the memory settings" : place.setting,
              " or run fewer or shorter requests at a time"));
}

/// Calls visit(node) for every page of the spans; -1: there is none. Returns an errno.
template <typename Visit>
int for_each_page(PageCalls& calls, std::span<const PageSpan> spans, const Visit& visit) {
  std::vector<void*> pages;
  std::vector<int> nodes;
  const auto ask = [&]() {
    nodes.assign(pages.size(), -1);
    const int error = calls.find_nodes(pages, nodes);
    if (error == 0) std::ranges::for_each(nodes, visit);
    pages.clear();
    return error;
  };
  for (const PageSpan& span : spans) {
    for (std::size_t at = 0; at < span.bytes; at += page_bytes()) {
      pages.push_back(span.data + at);
      if (pages.size() < kPagesAtATime) continue;
      if (const int error = ask(); error != 0) return error;
    }
  }
  return pages.empty() ? 0 : ask();
}

}  // namespace

PagePlace place_on_node(int node) {
  static_cast<void>(find_numa_node(node));
  if (numa_nodes().size() < 2) return {};
  return {.nodes = {node}, .setting = "KVConfig(dram=...) or leave CpuConfig(numa=...) out"};
}

std::int64_t PagesFound::bytes() const {
  std::int64_t sum = 0;
  for (const auto& [node, bytes] : by_node) sum += bytes;
  return sum;
}

// Delegates so that the destructor releases what was reserved when a later call fails.
PlacedMemory::PlacedMemory(std::size_t bytes) : PlacedMemory() {
  if (bytes == 0) return;
  calls_ = &page_calls();
  const std::size_t alignment = bytes >= kHugePageBytes ? kHugePageBytes : page_bytes();
  // A page on both sides, which nobody may use, keeps the system from joining this area with
  // others', and so what it says of this one apart.
  const std::size_t slack = alignment + 2 * page_bytes();
  int error = ENOMEM;
  if (bytes <= std::numeric_limits<std::size_t>::max() - slack - page_bytes()) {
    const std::size_t used = round_up(bytes, page_bytes());
    std::byte* data = nullptr;
    error = calls_->reserve(used + slack, data);
    if (error == 0) {
      reserved_ = {data, used + slack};
      const std::size_t first = reinterpret_cast<std::uintptr_t>(data) + page_bytes();
      span_ = {data + (round_up(first, alignment) - first + page_bytes()), used};
      error = calls_->allow(span_);
    }
  }
  if (error != 0) {
    throw OutOfMemoryError(message("[reserve addresses] mapping ",
                                   human_bytes(static_cast<double>(bytes)),
                                   " failed: ",
                                   text_of(error),
                                   "; allowed: what the system lets a process map; run fewer or "
                                   "shorter requests at a time"));
  }
  const std::string setting = calls_->huge_setting();
  never_joins_ = setting == "always";
  if (never_joins_) static_cast<void>(calls_->advise(span_, PageAdvice::kNeverJoin));
  if (setting != "never") is_joined_.resize(span_.bytes / kHugePageBytes);
}

PlacedMemory::~PlacedMemory() {
  if (reserved_.bytes == 0) return;
  calls_->release(reserved_);
  const auto joined = std::ranges::count(is_joined_, true);
  count_asked_huge_pages(-static_cast<std::int64_t>(joined) *
                         static_cast<std::int64_t>(kHugePageBytes));
  all_runs -= num_runs_;
}

PlacedMemory::PlacedMemory(PlacedMemory&& other) noexcept
    : calls_(other.calls_),
      span_(std::exchange(other.span_, {})),
      reserved_(std::exchange(other.reserved_, {})),
      never_joins_(other.never_joins_),
      is_joined_(std::move(other.is_joined_)),
      num_runs_(std::exchange(other.num_runs_, 0)) {}

PlacedMemory& PlacedMemory::operator=(PlacedMemory&& other) noexcept {
  PlacedMemory taken(std::move(other));
  std::swap(calls_, taken.calls_);
  std::swap(span_, taken.span_);
  std::swap(reserved_, taken.reserved_);
  std::swap(never_joins_, taken.never_joins_);
  std::swap(is_joined_, taken.is_joined_);
  std::swap(num_runs_, taken.num_runs_);
  return *this;
}

void PlacedMemory::prefer(ByteRange range, const PagePlace& place) {
  if (range.bytes > 0) static_cast<void>(calls_->set_rule(span_of(range), rule_of(place), false));
}

void PlacedMemory::require_free(std::int64_t bytes,
                                const PagePlace& place,
                                std::string_view operation) {
  if (bytes == 0 || (place.nodes.empty() && calls_->has_surely(bytes))) return;
  const std::int64_t free = calls_->free_bytes(place.nodes) - kReserveBytes;
  if (bytes > free) throw full(place, bytes, free, operation);
}

void PlacedMemory::take(std::span<const ByteRange> ranges,
                        const PagePlace& place,
                        std::string_view operation) {
  require_free(static_cast<std::int64_t>(sum_of(ranges)), place, operation);
  if (place.nodes.empty()) return;
  std::size_t begun = 0;
  try {
    for (; begun < ranges.size(); ++begun) {
      const ByteRange& range = ranges[begun];
      const std::size_t end = range.begin + range.bytes;
      for (std::size_t at = range.begin; at < end;) {
        // A huge page comes whole, by one rule.
        const std::size_t next = std::min(at / kPieceBytes * kPieceBytes + kPieceBytes, end);
        take_piece({at, next - at}, place, operation);
        at = next;
      }
    }
  } catch (...) {
    give_back(ranges.first(begun + 1));
    throw;
  }
}

void PlacedMemory::take_piece(ByteRange piece, const PagePlace& place, std::string_view operation) {
  const PageSpan span = span_of(piece);
  const auto bytes = static_cast<std::int64_t>(piece.bytes);
  if (const int error = calls_->set_rule(span, rule_of(place), false); error != 0) {
    throw refused(place, operation, "setting the memory nodes of", bytes, error);
  }
  if (const int error = calls_->touch(span); error != 0) {
    throw refused(place, operation, "touching", bytes, error);
  }
  bool spilled = false;
  const int error = for_each_page(*calls_, std::span<const PageSpan>(&span, 1), [&](int node) {
    spilled |= !is_right(place, node);
  });
  if (error != 0) throw refused(place, operation, "asking for the memory nodes of", bytes, error);
  if (spilled) {
    throw full(place, bytes, calls_->free_bytes(place.nodes) - kReserveBytes, operation);
  }
}

PageMove PlacedMemory::move(std::span<const ByteRange> ranges, const PagePlace& place) {
  std::vector<PageSpan> spans;
  for (const ByteRange& range : ranges) spans.push_back(span_of(range));
  const auto elsewhere = [&](int& error) {
    std::int64_t bytes = 0;
    error = for_each_page(*calls_, spans, [&](int node) {
      if (node != -1 && !is_right(place, node)) bytes += static_cast<std::int64_t>(page_bytes());
    });
    return bytes;
  };
  PageMove result;
  int error = 0;
  const std::int64_t to_move = elsewhere(error);
  if (error != 0) {
    result.left_bytes = static_cast<std::int64_t>(sum_of(ranges));
    result.why = message("asking for memory nodes failed: ", text_of(error));
    return result;
  }
  const std::int64_t free = calls_->free_bytes(place.nodes) - kReserveBytes;
  if (to_move > free) {
    result.left_bytes = to_move;
    result.why = message(names_of(place.nodes),
                         " of the ",
                         name_of(place.tier),
                         " tier has ",
                         human(std::max<std::int64_t>(free, 0)),
                         " free, ",
                         human(to_move),
                         " are wanted");
    return result;
  }
  int refusal = 0;
  for (const PageSpan& span : spans) {
    if (const int failed = calls_->set_rule(span, rule_of(place), true); failed != 0) {
      refusal = failed;
    }
  }
  result.left_bytes = elsewhere(error);
  if (error != 0) result.left_bytes = to_move;
  result.moved_bytes = std::max<std::int64_t>(to_move - result.left_bytes, 0);
  if (result.left_bytes > 0) {
    result.why = refusal != 0
                     ? message("moving pages failed: ", text_of(refusal))
                     : message("the system found no page for them on ", names_of(place.nodes));
  }
  return result;
}

int PlacedMemory::take_over(std::span<const ByteRange> ranges, PlacedMemory& other) {
  for (const ByteRange& range : ranges) {
    if (range.bytes == 0) continue;
    const int error = calls_->replace(span_.data + range.begin, other.span_of(range));
    if (error != 0) return error;
  }
  return 0;
}

void PlacedMemory::give_back(std::span<const ByteRange> ranges) noexcept {
  for (const ByteRange& range : ranges) {
    if (range.bytes > 0) static_cast<void>(calls_->advise(span_of(range), PageAdvice::kGiveBack));
  }
}

// Whether it may; then it counts as joined.
bool PlacedMemory::begin_join(std::size_t unit) {
  if (unit >= is_joined_.size() || is_joined_[unit]) return false;
  if (never_joins_) {
    const bool follows = unit > 0 && is_joined_[unit - 1];
    const bool precedes = unit + 1 < is_joined_.size() && is_joined_[unit + 1];
    const std::int64_t runs = 1 - (follows ? 1 : 0) - (precedes ? 1 : 0);
    if (all_runs + runs > kMostRuns) return false;
    all_runs += runs;
    num_runs_ += runs;
  }
  is_joined_[unit] = true;
  count_asked_huge_pages(static_cast<std::int64_t>(kHugePageBytes));
  return true;
}

bool PlacedMemory::is_on_one_node(PageSpan span) const {
  int first = -1;
  bool is_one = true;
  const int error = for_each_page(*calls_, std::span<const PageSpan>(&span, 1), [&](int node) {
    if (first == -1) first = node;
    is_one &= node == -1 || node == first;
  });
  return error == 0 && is_one;
}

void PlacedMemory::join(ByteRange range, bool asks_nodes) {
  for (std::size_t at = range.begin; at < range.begin + range.bytes; at += kHugePageBytes) {
    const std::size_t unit = at / kHugePageBytes;
    const PageSpan span{span_.data + at, kHugePageBytes};
    if ((asks_nodes && !is_on_one_node(span)) || !begin_join(unit)) continue;
    if (never_joins_) static_cast<void>(calls_->advise(span, PageAdvice::kMayJoin));
    // Where nothing is there yet, not even zeros that were read, there is nothing to join.
    static_cast<void>(*static_cast<volatile std::byte*>(span.data));
    if (calls_->advise(span, PageAdvice::kJoin) != 0 && !never_joins_) {
      static_cast<void>(
          calls_->advise(span, PageAdvice::kMayJoin));  // an older kernel, in its time
    }
  }
}

void PlacedMemory::join_from_first_touch(ByteRange range) {
  for (std::size_t at = range.begin; at < range.begin + range.bytes; at += kHugePageBytes) {
    if (!begin_join(at / kHugePageBytes)) continue;
    static_cast<void>(calls_->advise({span_.data + at, kHugePageBytes}, PageAdvice::kMayJoin));
  }
}

PagesFound PlacedMemory::found() const {
  if (span_.bytes == 0) return {};
  const ByteRange all{0, span_.bytes};
  return found(std::span<const ByteRange>(&all, 1));
}

PagesFound PlacedMemory::found(std::span<const ByteRange> ranges) const {
  std::vector<PageSpan> spans;
  for (const ByteRange& range : ranges) spans.push_back(span_of(range));
  PagesFound pages;
  const int error = for_each_page(*calls_, spans, [&](int node) {
    if (node != -1) pages.by_node[node] += static_cast<std::int64_t>(page_bytes());
  });
  if (error != 0) {
    throw DeviceError(message("[memory nodes] asking where pages lie failed: ",
                              text_of(error),
                              "; allowed: a system that lets a process ask; leave these figures "
                              "out"));
  }
  return pages;
}

}  // namespace hybridgen
