// SPDX-License-Identifier: Apache-2.0
// Memory nodes that this machine has not, over real memory: a table says which of them every page
// lies on, by the rules that were set, as a kernel would choose. Any call can be told to fail.
// Memory that takes pages through take() alone is all that it knows of.
#pragma once

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "memory/page_calls.h"

namespace hybridgen {

class InventedNodes final : public PageCalls {
 public:
  enum class Call : std::uint8_t {
    kReserve,
    kAllow,
    kSetRule,
    kTouch,
    kAdvise,
    kReplace,
    kFindNodes
  };

  /// Bytes that are free on each node, beyond what PlacedMemory leaves free.
  explicit InventedNodes(std::map<int, std::int64_t> free) : free_(std::move(free)) {}

  /// The `nth` call of that kind from now on, counted from 0, gives `error` and does nothing.
  void fail(Call call, std::int64_t nth, int error) {
    const std::lock_guard<std::mutex> lock(mutex_);
    failures_[{call, counts_[call] + nth}] = error;
  }
  /// Nothing fails any more.
  void heal() {
    const std::lock_guard<std::mutex> lock(mutex_);
    failures_.clear();
  }
  std::int64_t count(Call call) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = counts_.find(call);
    return found == counts_.end() ? 0 : found->second;
  }
  /// What free_bytes() says is `bytes` more than there is, as where others take memory meanwhile.
  void boast(std::int64_t bytes) { boasted_ = bytes; }
  void set_huge_setting(std::string setting) { huge_setting_ = std::move(setting); }

  /// Bytes of pages on a node.
  std::int64_t used(int node) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return used_pages(node) * static_cast<std::int64_t>(page_bytes());
  }
  std::size_t num_reserved() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return reserved_.size();
  }
  std::int64_t joined_bytes() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<std::int64_t>(joined_.size() * (std::size_t{2} << 20));
  }

  int reserve(std::size_t bytes, std::byte*& data) override {
    if (const int error = begin(Call::kReserve); error != 0) return error;
    const int error = system_.reserve(bytes, data);
    const std::lock_guard<std::mutex> lock(mutex_);
    if (error == 0) reserved_.insert(data);
    return error;
  }
  int allow(PageSpan span) override {
    const int error = begin(Call::kAllow);
    return error != 0 ? error : system_.allow(span);
  }
  void release(PageSpan span) noexcept override {
    const std::lock_guard<std::mutex> lock(mutex_);
    forget(span);
    rules_.erase(rules_.lower_bound(span.data), rules_.lower_bound(span.data + span.bytes));
    reserved_.erase(span.data);
    system_.release(span);
  }
  int set_rule(PageSpan span, const PageRule& rule, bool moves) override {
    if (const int error = begin(Call::kSetRule); error != 0) return error;
    const std::lock_guard<std::mutex> lock(mutex_);
    for_each_page(span, [&](std::byte* page) {
      rules_[page] = rule;
      const auto at = nodes_.find(page);
      if (!moves || at == nodes_.end() || is_right(rule, at->second)) return;
      const int before = at->second;
      const int chosen = choose(page);
      remove(at);
      put(page, is_right(rule, chosen) ? chosen : before);
    });
    return 0;
  }
  int touch(PageSpan span) override {
    if (const int error = begin(Call::kTouch); error != 0) return error;
    if (const int error = system_.touch(span); error != 0) return error;
    const std::lock_guard<std::mutex> lock(mutex_);
    for_each_page(span, [&](std::byte* page) {
      if (!nodes_.contains(page)) put(page, choose(page));
    });
    return 0;
  }
  int advise(PageSpan span, PageAdvice advice) override {
    if (const int error = begin(Call::kAdvise); error != 0) return error;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (advice == PageAdvice::kGiveBack) forget(span);
    if (advice == PageAdvice::kJoin) joined_.insert(span.data);
    return advice == PageAdvice::kGiveBack ? system_.advise(span, advice) : 0;
  }
  int replace(std::byte* to, PageSpan from) override {
    if (const int error = begin(Call::kReplace); error != 0) return error;
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const int error = system_.replace(to, from); error != 0) return error;
    forget({to, from.bytes});
    for (std::size_t at = 0; at < from.bytes; at += page_bytes()) {
      const auto page = nodes_.find(from.data + at);
      if (page == nodes_.end()) continue;
      nodes_[to + at] = page->second;
      nodes_.erase(page);
      rules_[to + at] = rules_[from.data + at];
    }
    return 0;
  }
  int find_nodes(std::span<void* const> pages, std::span<int> nodes) override {
    if (const int error = begin(Call::kFindNodes); error != 0) return error;
    const std::lock_guard<std::mutex> lock(mutex_);
    for (std::size_t i = 0; i < pages.size(); ++i) {
      const auto found = nodes_.find(static_cast<std::byte*>(pages[i]));
      nodes[i] = found == nodes_.end() ? -1 : found->second;
    }
    return 0;
  }
  std::int64_t free_bytes(std::span<const int> nodes) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::int64_t bytes = boasted_ + kReserve;
    for (const auto& [node, free] : free_) {
      if (nodes.empty() || std::ranges::find(nodes, node) != nodes.end()) {
        bytes += free - used_pages(node) * static_cast<std::int64_t>(page_bytes());
      }
    }
    return bytes;
  }
  std::int64_t huge_bytes(std::span<const PageSpan> spans) override {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::int64_t bytes = 0;
    for (const PageSpan& span : spans) {
      bytes += std::distance(joined_.lower_bound(span.data),
                             joined_.lower_bound(span.data + span.bytes)) *
               (std::int64_t{2} << 20);
    }
    return bytes;
  }
  std::string huge_setting() override { return huge_setting_; }

 private:
  static constexpr std::int64_t kReserve = std::int64_t{16} << 20;

  int begin(Call call) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = failures_.find({call, counts_[call]++});
    return found == failures_.end() ? 0 : found->second;
  }
  template <typename Visit>
  static void for_each_page(PageSpan span, const Visit& visit) {
    for (std::size_t at = 0; at < span.bytes; at += page_bytes()) visit(span.data + at);
  }
  static bool is_right(const PageRule& rule, int node) {
    return rule.nodes.empty() || std::ranges::find(rule.nodes, node) != rule.nodes.end();
  }
  std::int64_t used_pages(int node) const {
    const auto found = used_.find(node);
    return found == used_.end() ? 0 : found->second;
  }
  void put(std::byte* page, int node) {
    nodes_[page] = node;
    used_[node] += 1;
  }
  std::map<std::byte*, int>::iterator remove(std::map<std::byte*, int>::iterator page) {
    used_[page->second] -= 1;
    return nodes_.erase(page);
  }
  bool has_room(int node) const {
    const auto free = free_.find(node);
    return free != free_.end() &&
           (used_pages(node) + 1) * static_cast<std::int64_t>(page_bytes()) <= free->second;
  }
  /// As by the rule, else the first node with room, else the last one.
  int choose(std::byte* page) const {
    const auto found = rules_.find(page);
    const PageRule rule = found == rules_.end() ? PageRule{} : found->second;
    std::vector<int> wanted = rule.nodes;
    if (rule.kind == PageRule::Kind::kInterleave) {
      const std::size_t turn = reinterpret_cast<std::uintptr_t>(page) / page_bytes();
      std::ranges::rotate(wanted,
                          wanted.begin() + static_cast<std::ptrdiff_t>(turn % wanted.size()));
    }
    for (const auto& [node, bytes] : free_) wanted.push_back(node);
    const auto node = std::ranges::find_if(wanted, [this](int id) { return has_room(id); });
    return node == wanted.end() ? wanted.back() : *node;
  }
  void forget(PageSpan span) {
    for (auto page = nodes_.lower_bound(span.data);
         page != nodes_.end() && page->first < span.data + span.bytes;) {
      page = remove(page);
    }
    joined_.erase(joined_.lower_bound(span.data), joined_.lower_bound(span.data + span.bytes));
  }

  mutable std::mutex mutex_;
  PageCalls& system_ = page_calls();
  std::map<int, std::int64_t> free_;
  std::int64_t boasted_ = 0;
  std::string huge_setting_ = "madvise";
  std::map<std::byte*, PageRule> rules_;
  std::map<std::byte*, int> nodes_;
  std::map<int, std::int64_t> used_;  ///< pages
  std::set<std::byte*> joined_;
  std::set<std::byte*> reserved_;
  std::map<Call, std::int64_t> counts_;
  std::map<std::pair<Call, std::int64_t>, int> failures_;
};

}  // namespace hybridgen
