// SPDX-License-Identifier: Apache-2.0
#include "memory/file_mapping.h"

#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cerrno>
#include <csignal>
#include <mutex>

#include "memory/page_calls.h"

namespace hybridgen {

// What a signal handler reads is made of atomics, and never freed: entries are used again.
struct GuardedAddresses {
  std::atomic<std::byte*> begin{nullptr};
  std::atomic<std::byte*> end{nullptr};  ///< null: of nobody
  std::atomic<std::int64_t> zero_reads{0};
  std::atomic<std::int64_t> latest{0};  ///< of zero_reads_of_all
  std::atomic<bool> is_torn{false};     ///< pages of zeros lie there
  GuardedAddresses* next = nullptr;
};

namespace {

std::atomic<GuardedAddresses*> guarded{nullptr};
std::atomic<std::int64_t> zero_reads_of_all{0};
/// Whom the handler replaced, of the two latest.
std::array<struct sigaction, 2> handlers_before;
std::atomic<const struct sigaction*> handler_before{nullptr};
/// It replaced one that came after it, and that may call it in turn.
std::atomic<bool> is_back{false};
std::atomic<bool> has_passed_on{false};

bool put_zeros(std::byte* address) {
  for (GuardedAddresses* each = guarded.load(); each != nullptr; each = each->next) {
    if (address < each->begin.load() || address >= each->end.load()) continue;
    std::byte* const page = address - reinterpret_cast<std::uintptr_t>(address) % page_bytes();
    if (::mmap(page, page_bytes(), PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
        MAP_FAILED) {
      return false;
    }
    each->is_torn.store(true);
    each->latest.store(zero_reads_of_all.fetch_add(1) + 1);
    each->zero_reads.fetch_add(1);
    return true;
  }
  return false;
}

// As if there had never been a handler: the same instruction again, or the same signal.
void end_by_default(int signal, bool is_fault) {
  struct sigaction action{};
  action.sa_handler = SIG_DFL;
  ::sigaction(signal, &action, nullptr);
  if (!is_fault) ::raise(signal);
}

// Of others' addresses the handler that was there before is told, or the process ends as ever.
void on_bus_error(int signal, siginfo_t* info, void* context) {
  const int error = errno;
  const bool is_fault = info->si_code > 0;  // else somebody sent it
  if (!is_fault || !put_zeros(static_cast<std::byte*>(info->si_addr))) {
    const struct sigaction& before = *handler_before.load();
    const bool has_handler = before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN;
    if (!has_handler || (is_back.load() && has_passed_on.exchange(true))) {
      end_by_default(signal, is_fault);
    } else if ((before.sa_flags & SA_SIGINFO) != 0) {
      before.sa_sigaction(signal, info, context);
    } else {
      before.sa_handler(signal);
    }
  }
  errno = error;
}

std::mutex& guard_mutex() {
  static std::mutex mutex;
  return mutex;
}

/// With guard_mutex() held.
bool install() {
  struct sigaction current{};
  if (::sigaction(SIGBUS, nullptr, &current) != 0) return false;
  if ((current.sa_flags & SA_SIGINFO) != 0 && current.sa_sigaction == on_bus_error) return true;
  static_cast<void>(page_bytes());  // read once, before a handler needs it
  const bool is_first = handler_before.load() == nullptr;
  auto& free =
      handler_before.load() == handlers_before.data() ? handlers_before[1] : handlers_before[0];
  free = current;
  is_back.store(!is_first);
  handler_before.store(&free);
  struct sigaction action{};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO | SA_ONSTACK;
  ::sigemptyset(&action.sa_mask);
  return ::sigaction(SIGBUS, &action, nullptr) == 0;
}

GuardedAddresses* guard(std::byte* data, std::int64_t bytes) {
  const std::scoped_lock lock(guard_mutex());
  if (!install()) return nullptr;
  GuardedAddresses* entry = guarded.load();
  while (entry != nullptr && entry->end.load() != nullptr) entry = entry->next;
  const bool is_new = entry == nullptr;
  if (is_new) entry = new GuardedAddresses{.next = guarded.load()};
  entry->zero_reads.store(0);
  entry->latest.store(0);
  entry->is_torn.store(false);
  entry->begin.store(data);
  entry->end.store(data + bytes);
  if (is_new) guarded.store(entry);
  return entry;
}

}  // namespace

FileMapping::FileMapping(int file, std::int64_t bytes, DiskCalls& calls)
    : file_(file), bytes_(bytes), calls_(calls), error_(-calls_.map(file_, bytes_, data_)) {
  if (error_ != 0) return;
  // Of files that are another user's the system says that all is there.
  struct stat status{};
  is_told_ = ::fstat(file_, &status) == 0 && (status.st_uid == ::geteuid() || ::geteuid() == 0);
  guard_ = guard(data_, bytes_);
  if (guard_ == nullptr) {
    error_ = ENOTSUP;
    calls_.unmap(data_, bytes_);
  }
}

FileMapping::~FileMapping() {
  if (error_ != 0) return;
  guard_->end.store(nullptr);
  guard_->begin.store(nullptr);
  calls_.unmap(data_, bytes_);
}

int FileMapping::fetch(std::int64_t begin, std::int64_t bytes) {
  if (const int error = restore(); error != 0) return error;
  // The rest of a page that the file ends in is zeros to its readers, and no error.
  struct stat status{};
  if (::fstat(file_, &status) != 0) return errno;
  const std::int64_t end = begin + bytes;
  if (status.st_size < end) return ENODATA;
  begin -= begin % static_cast<std::int64_t>(page_bytes());
  if (is_there(begin, end)) return 0;
  const std::int64_t before = zero_reads();
  const int error = -calls_.fetch(data_ + begin, end - begin);
  if (error == EFAULT) return EIO;  // what the system says of mapped memory, whatever the reason
  return error == 0 && zero_reads() != before ? EIO : error;
}

bool FileMapping::has(std::int64_t begin, std::int64_t bytes) {
  struct stat status{};
  const std::int64_t end = begin + bytes;
  return restore() == 0 && ::fstat(file_, &status) == 0 && status.st_size >= end &&
         is_there(begin - begin % static_cast<std::int64_t>(page_bytes()), end);
}

void FileMapping::protect() {
  const std::scoped_lock lock(guard_mutex());
  install();
}

bool FileMapping::is_there() { return is_there(0, bytes_); }

bool FileMapping::is_there(std::int64_t begin, std::int64_t end) {
  if (!is_told_) return false;
  std::array<unsigned char, 4096> pages;  // bit 0 of each
  const auto page = static_cast<std::int64_t>(page_bytes());
  for (std::int64_t count = 0; begin < end; begin += count * page) {
    count = std::min((end - begin + page - 1) / page, std::ssize(pages));
    const auto part = static_cast<std::size_t>(std::min(count * page, end - begin));
    if (calls_.find_cached(data_ + begin, part, pages.data()) != 0) return false;
    if (!std::all_of(pages.begin(), pages.begin() + count, [](auto is) { return (is & 1) != 0; })) {
      return false;
    }
  }
  return true;
}

int FileMapping::restore() {
  // In this order: who finds it whole while somebody restores it waits for that.
  if (!guard_->is_torn.load() && !is_restoring_.load()) return 0;
  const std::scoped_lock lock(restoring_);
  is_restoring_.store(true);
  int error = 0;
  if (guard_->is_torn.exchange(false)) {
    std::byte* data = data_;
    error = -calls_.map(file_, bytes_, data);
    if (error != 0) guard_->is_torn.store(true);
  }
  is_restoring_.store(false);
  return error;
}

std::int64_t FileMapping::zero_reads() const { return guard_->zero_reads.load(); }

std::int64_t FileMapping::latest_zero_read() const { return guard_->latest.load(); }

std::int64_t FileMapping::all_zero_reads() { return zero_reads_of_all.load(); }

}  // namespace hybridgen
