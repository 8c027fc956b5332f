// SPDX-License-Identifier: Apache-2.0
// The system's calls about pages, in one place: tests put others in theirs, which fail where a test
// says so and have memory nodes that this machine has not.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace hybridgen {

/// Addresses, of whole pages.
struct PageSpan {
  std::byte* data = nullptr;
  std::size_t bytes = 0;
};

/// How pages that are touched from now on choose among memory nodes. Never a strict rule: where a
/// node has no free page left, strict ones end the process at the first touch.
struct PageRule {
  enum class Kind : std::uint8_t {
    kSystem,     ///< as for any other memory
    kPrefer,     ///< the first of `nodes` that has a free page, else any node
    kInterleave  ///< by turns, page by page, over `nodes`
  };
  Kind kind = Kind::kSystem;
  std::vector<int> nodes;
};

enum class PageAdvice : std::uint8_t {
  kGiveBack,  ///< the pages go back to the system; zeros are read from then on
  kMayJoin,   ///< the system may make huge pages of them
  kNeverJoin,
  kJoin  ///< a huge page of every 2 MiB now, with what is written there
};

/// Used by several threads at a time, on different addresses. Calls that return int return 0 or an
/// errno.
class PageCalls {
 public:
  virtual ~PageCalls() = default;

  /// Addresses that hold nothing yet, and may not be used before allow().
  virtual int reserve(std::size_t bytes, std::byte*& data) = 0;
  /// Reading gives zeros, and writing takes a page.
  virtual int allow(PageSpan span) = 0;
  virtual void release(PageSpan span) noexcept = 0;

  /// `moves`: pages that are there already go where the rule says, as far as they can.
  virtual int set_rule(PageSpan span, const PageRule& rule, bool moves) = 0;
  /// A page everywhere, contents as they are.
  virtual int touch(PageSpan span) = 0;
  virtual int advise(PageSpan span, PageAdvice advice) = 0;
  /// The pages of `from`, each of which is there, take the place of those at `to`, which go back to
  /// the system. `from` holds nothing then, as after allow(). Not both pinned nor in use.
  virtual int replace(std::byte* to, PageSpan from) = 0;
  /// The node of the page at each address; -1: there is none. As many of `nodes` as of `pages`.
  virtual int find_nodes(std::span<void* const> pages, std::span<int> nodes) = 0;

  /// Bytes that `nodes` (empty: all nodes) could still give to this process.
  virtual std::int64_t free_bytes(std::span<const int> nodes) = 0;
  /// Whether all nodes together can give that many, by what was last read: that costs about a
  /// millisecond. Counts them as taken if so.
  virtual bool has_surely(std::int64_t /*bytes*/) { return false; }
  /// Bytes of `spans` on huge pages.
  virtual std::int64_t huge_bytes(std::span<const PageSpan> spans) = 0;
  /// "always": the system makes huge pages unasked, also of what is hardly used; "madvise", "never"
  /// or "unknown".
  virtual std::string huge_setting() = 0;
};

/// The system's own, or what a PageCallsForTest has put in their place.
PageCalls& page_calls();

/// Stands in for the system's calls as long as it lives: for memory that is reserved from now on.
class PageCallsForTest {
 public:
  explicit PageCallsForTest(PageCalls& calls);
  ~PageCallsForTest();
  PageCallsForTest(const PageCallsForTest&) = delete;
  PageCallsForTest& operator=(const PageCallsForTest&) = delete;

 private:
  PageCalls* before_;
};

std::size_t page_bytes();

}  // namespace hybridgen
