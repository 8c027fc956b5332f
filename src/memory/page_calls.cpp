// SPDX-License-Identifier: Apache-2.0
#include "memory/page_calls.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <fstream>

#include "memory/huge_pages.h"
#include "memory/memory_budget.h"
#include "memory/numa.h"

#if defined(HYBRIDGEN_HAS_NUMA)
#include <numa.h>
#include <numaif.h>
#endif

// Names that a kernel may know although this system's headers do not.
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4
#endif
#ifndef MPOL_PREFERRED_MANY
#define MPOL_PREFERRED_MANY 5
#endif

namespace hybridgen {
namespace {

int errno_unless(bool is_done) { return is_done ? 0 : errno; }

/// For systems that do not tell nodes.
bool is_there(void* page) {
  unsigned char resident = 0;
  return ::mincore(page, page_bytes(), &resident) == 0 && (resident & 1U) != 0;
}

class SystemPageCalls final : public PageCalls {
 public:
  int reserve(std::size_t bytes, std::byte*& data) override {
    void* const found =
        ::mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (found == MAP_FAILED) return errno;
    data = static_cast<std::byte*>(found);
    return 0;
  }

  int allow(PageSpan span) override {
    return errno_unless(::mprotect(span.data, span.bytes, PROT_READ | PROT_WRITE) == 0);
  }

  void release(PageSpan span) noexcept override { ::munmap(span.data, span.bytes); }

  int set_rule([[maybe_unused]] PageSpan span,
               [[maybe_unused]] const PageRule& rule,
               [[maybe_unused]] bool moves) override {
#if defined(HYBRIDGEN_HAS_NUMA)
    if (!has_numa()) return ENOSYS;
    bitmask* const nodes = numa_allocate_nodemask();
    for (const int node : rule.nodes) numa_bitmask_setbit(nodes, static_cast<unsigned>(node));
    const bool is_plain = rule.kind == PageRule::Kind::kSystem;
    int mode = is_plain ? MPOL_DEFAULT : MPOL_INTERLEAVE;
    if (rule.kind == PageRule::Kind::kPrefer) {
      mode = rule.nodes.size() > 1 ? MPOL_PREFERRED_MANY : MPOL_PREFERRED;
    }
    // The kernel reads one bit less than it is told.
    const int error = errno_unless(::mbind(span.data,
                                           span.bytes,
                                           mode,
                                           is_plain ? nullptr : nodes->maskp,
                                           is_plain ? 0 : nodes->size + 1,
                                           moves ? MPOL_MF_MOVE : 0) == 0);
    numa_bitmask_free(nodes);
    return error;
#else
    return ENOSYS;
#endif
  }

  int touch(PageSpan span) override {
    if (::madvise(span.data, span.bytes, MADV_POPULATE_WRITE) == 0) return 0;
    if (errno != EINVAL) return errno;
    for (std::size_t at = 0; at < span.bytes; at += page_bytes()) {  // an older kernel
      auto* const byte = reinterpret_cast<volatile unsigned char*>(span.data + at);
      *byte = *byte;
    }
    return 0;
  }

  int advise(PageSpan span, PageAdvice advice) override {
    return errno_unless(::madvise(span.data, span.bytes, word_for(advice)) == 0);
  }

  int replace(std::byte* to, PageSpan from) override {
    return errno_unless(::mremap(from.data,
                                 from.bytes,
                                 from.bytes,
                                 MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
                                 to) != MAP_FAILED);
  }

  int find_nodes(std::span<void* const> pages, std::span<int> nodes) override {
#if defined(HYBRIDGEN_HAS_NUMA)
    if (has_numa()) {
      const long error = numa_move_pages(
          0, pages.size(), const_cast<void**>(pages.data()), nullptr, nodes.data(), 0);
      if (error != 0) return errno;
      for (int& node : nodes) node = std::max(node, -1);  // below: why there is no page
      return 0;
    }
#endif
    for (std::size_t i = 0; i < pages.size(); ++i) {
      nodes[i] = is_there(pages[i]) ? 0 : -1;
    }
    return 0;
  }

  std::int64_t free_bytes(std::span<const int> nodes) override {
    if (nodes.empty()) {
      const std::int64_t all = available_host_bytes();
      sure_bytes_ = std::min(all / 16, kMostSureBytes);
      return all;
    }
    std::int64_t bytes = 0;
    for (const int node : nodes) bytes += available_node_bytes(node);
    return std::min(bytes, available_host_bytes());
  }

  bool has_surely(std::int64_t bytes) override {
    return bytes <= kMostSureBytes && (sure_bytes_ -= bytes) >= 0;
  }

  std::int64_t huge_bytes(std::span<const PageSpan> spans) override {
    std::ifstream smaps("/proc/self/smaps");
    return anonymous_huge_bytes_of(smaps, [&spans](std::uintptr_t begin, std::uintptr_t end) {
      return std::ranges::any_of(spans, [&](const PageSpan& span) {
        const auto first = reinterpret_cast<std::uintptr_t>(span.data);
        return begin >= first && end <= first + span.bytes;
      });
    });
  }

  std::string huge_setting() override {
    static const std::string setting = huge_pages().setting;
    return setting;
  }

 private:
  // Others take memory, too: so much may come between two looks at how much there is.
  static constexpr std::int64_t kMostSureBytes = std::int64_t{64} << 20;

  static int word_for(PageAdvice advice) {
    switch (advice) {
      case PageAdvice::kGiveBack:
        return MADV_DONTNEED;
      case PageAdvice::kMayJoin:
        return MADV_HUGEPAGE;
      case PageAdvice::kNeverJoin:
        return MADV_NOHUGEPAGE;
      case PageAdvice::kJoin:
        break;
    }
    return MADV_COLLAPSE;
  }

  std::atomic<std::int64_t> sure_bytes_{0};
};

PageCalls*& current_calls() {
  static SystemPageCalls system;
  static PageCalls* current = &system;
  return current;
}

}  // namespace

PageCalls& page_calls() { return *current_calls(); }

PageCallsForTest::PageCallsForTest(PageCalls& calls) : before_(current_calls()) {
  current_calls() = &calls;
}

PageCallsForTest::~PageCallsForTest() { current_calls() = before_; }

std::size_t page_bytes() {
  static const auto bytes = static_cast<std::size_t>(sysconf(_SC_PAGESIZE));
  return bytes;
}

}  // namespace hybridgen
