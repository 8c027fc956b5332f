// SPDX-License-Identifier: Apache-2.0
#include "memory/disk_leftovers.h"

#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <charconv>
#include <cstdint>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <string_view>
#include <system_error>

#include "hybridgen/core/error.h"

namespace hybridgen {
namespace {

constexpr std::string_view kPrefix = ".hybridgen-disk-";

/// When a process started, in ticks since the machine did; nothing if there is none.
std::optional<std::int64_t> start_of(std::int64_t process, const std::filesystem::path& processes) {
  std::ifstream file(processes / std::to_string(process) / "stat");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const std::size_t name_end = text.rfind(')');  // the name may hold anything
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream fields(text.substr(name_end + 1));
  std::string skipped;
  constexpr int kFieldsBetween = 19;  // state (3) to itrealvalue (21); starttime is 22
  for (int i = 0; i < kFieldsBetween; ++i) fields >> skipped;
  std::int64_t start = 0;
  if (fields >> start) return start;
  return std::nullopt;
}

struct Owner {
  std::int64_t process = 0;
  std::int64_t start = 0;
};

/// "NUMBER" up to `end` and what follows it.
std::optional<std::int64_t> take_number(std::string_view& text, bool is_last) {
  std::int64_t number = 0;
  const auto [after, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  text.remove_prefix(static_cast<std::size_t>(after - text.data()));
  if (error != std::errc{} || number < 0 || text.empty() != is_last) return std::nullopt;
  if (!is_last) {
    if (text.front() != '-') return std::nullopt;
    text.remove_prefix(1);
  }
  return number;
}

std::optional<Owner> owner_of(std::string_view name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  name.remove_prefix(kPrefix.size());
  const auto process = take_number(name, /*is_last=*/false);
  if (!process) return std::nullopt;
  const auto start = take_number(name, /*is_last=*/false);
  if (!start || !take_number(name, /*is_last=*/true)) return std::nullopt;
  return Owner{.process = *process, .start = *start};
}

// Of another user's processes a system may show nothing, so their files are left to that user.
bool is_own_file(const std::filesystem::path& path) {
  struct stat facts{};
  return ::lstat(path.c_str(), &facts) == 0 && S_ISREG(facts.st_mode) &&
         facts.st_uid == ::geteuid();
}

}  // namespace

std::string new_disk_file_name() {
  static std::atomic<std::int64_t> number{0};
  const std::int64_t process = ::getpid();
  return message(
      kPrefix, process, '-', start_of(process, "/proc").value_or(0), '-', number.fetch_add(1));
}

int sweep_disk_leftovers(const std::string& folder,
                         DiskCalls& calls,
                         const std::filesystem::path& processes) {
  if (!start_of(::getpid(), processes)) return 0;  // nobody's life can be told here
  int removed = 0;
  std::error_code error;
  for (std::filesystem::directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    const auto owner = owner_of(entry->path().filename().string());
    if (!owner || start_of(owner->process, processes) == owner->start) continue;
    if (is_own_file(entry->path()) && calls.unlink(entry->path().string()) == 0) ++removed;
  }
  return removed;
}

}  // namespace hybridgen
