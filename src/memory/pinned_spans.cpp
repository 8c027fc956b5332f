// SPDX-License-Identifier: Apache-2.0
#include "memory/pinned_spans.h"

#include <iterator>
#include <utility>
#include <vector>

namespace hybridgen {
namespace {

std::vector<PageSpan> joined(std::span<const PageSpan> spans) {
  std::vector<PageSpan> runs;
  for (const PageSpan& span : spans) {
    if (span.bytes == 0) continue;
    if (!runs.empty() && runs.back().data + runs.back().bytes == span.data) {
      runs.back().bytes += span.bytes;
    } else {
      runs.push_back(span);
    }
  }
  return runs;
}

}  // namespace

PinnedSpans::~PinnedSpans() {
  for (const auto& [data, bytes] : pinned_) pins_->unpin({data, bytes});
}

PinnedSpans::PinnedSpans(PinnedSpans&& other) noexcept
    : pins_(other.pins_), pinned_(std::exchange(other.pinned_, {})) {}

PinnedSpans& PinnedSpans::operator=(PinnedSpans&& other) noexcept {
  PinnedSpans taken(std::move(other));
  std::swap(pins_, taken.pins_);
  std::swap(pinned_, taken.pinned_);
  return *this;
}

void PinnedSpans::pin(std::span<const PageSpan> spans) {
  if (pins_ == nullptr) return;
  const std::vector<PageSpan> runs = joined(spans);
  std::size_t done = 0;
  const auto undo = [&] {
    for (std::size_t i = 0; i < done; ++i) unpin(std::span(&runs[i], 1));
  };
  try {
    for (; done < runs.size(); ++done) {
      const auto at = pinned_.emplace(runs[done].data, runs[done].bytes).first;
      bool is_pinned = false;
      try {
        is_pinned = pins_->pin(runs[done]);
      } catch (...) {
        pinned_.erase(at);
        throw;
      }
      if (!is_pinned) {
        pinned_.erase(at);
        undo();
        return;
      }
    }
  } catch (...) {
    undo();
    throw;
  }
}

// The first that ends behind the span's begin, if it begins before the span's end.
PinnedSpans::Pinned::const_iterator PinnedSpans::find(PageSpan span) const {
  auto at = pinned_.upper_bound(span.data);
  if (at != pinned_.begin()) {
    const auto before = std::prev(at);
    if (before->first + before->second > span.data) at = before;
  }
  return at != pinned_.end() && at->first < span.data + span.bytes ? at : pinned_.end();
}

void PinnedSpans::unpin(std::span<const PageSpan> spans) noexcept {
  for (const PageSpan& span : spans) {
    for (auto at = find(span); at != pinned_.end(); at = find(span)) {
      pins_->unpin({at->first, at->second});
      pinned_.erase(at);
    }
  }
}

bool PinnedSpans::has_all(std::span<const PageSpan> spans) const {
  for (PageSpan rest : spans) {
    while (rest.bytes > 0) {
      const auto at = find(rest);
      if (at == pinned_.end() || at->first > rest.data) return false;
      const std::size_t covered = at->second - static_cast<std::size_t>(rest.data - at->first);
      if (covered >= rest.bytes) break;
      rest = {rest.data + covered, rest.bytes - covered};
    }
  }
  return true;
}

bool PinnedSpans::has_any(std::span<const PageSpan> spans) const {
  for (const PageSpan& span : spans) {
    if (find(span) != pinned_.end()) return true;
  }
  return false;
}

}  // namespace hybridgen
