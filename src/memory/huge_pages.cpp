// SPDX-License-Identifier: Apache-2.0
#include "memory/huge_pages.h"

#include <atomic>
#include <fstream>
#include <sstream>

namespace hybridgen {
namespace {

std::atomic<std::int64_t> asked{0};

}  // namespace

std::int64_t anonymous_huge_bytes(std::istream& smaps) {
  std::string line;
  while (std::getline(smaps, line)) {
    std::istringstream words(line);
    std::string name;
    std::int64_t kibibytes = 0;
    if (words >> name >> kibibytes && name == "AnonHugePages:") return kibibytes * 1024;
  }
  return 0;
}

std::int64_t anonymous_huge_bytes_of(
    std::istream& smaps, const std::function<bool(std::uintptr_t, std::uintptr_t)>& counts) {
  std::int64_t bytes = 0;
  bool counted = false;
  std::string line;
  while (std::getline(smaps, line)) {
    std::istringstream words(line);
    std::uintptr_t begin = 0;
    std::uintptr_t end = 0;
    char dash = 0;
    std::string name;
    std::int64_t kibibytes = 0;
    if (words >> std::hex >> begin >> dash >> end && dash == '-') {  // "7f01-7f02 rw-p 0 0:0 0"
      counted = counts(begin, end);
    } else if (counted && line.starts_with("AnonHugePages:")) {
      words.clear();
      words.seekg(0);
      if (words >> name >> std::dec >> kibibytes) bytes += kibibytes * 1024;
    }
  }
  return bytes;
}

std::string chosen_word(const std::string& setting) {
  const std::size_t open = setting.find('[');
  const std::size_t close = setting.find(']');
  if (open == std::string::npos || close == std::string::npos || close < open) return "unknown";
  return setting.substr(open + 1, close - open - 1);
}

HugePages huge_pages() {
  std::ifstream file("/sys/kernel/mm/transparent_hugepage/enabled");
  std::string line;
  std::getline(file, line);
  std::ifstream smaps("/proc/self/smaps_rollup");
  return {chosen_word(line), asked.load(), anonymous_huge_bytes(smaps)};
}

void count_asked_huge_pages(std::int64_t bytes) noexcept { asked += bytes; }

}  // namespace hybridgen
