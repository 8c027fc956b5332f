// SPDX-License-Identifier: Apache-2.0
// Limits that Linux control groups (v1 and v2) put on this process; containers have them. A limit
// of any enclosing group counts, so every level up to the mount point is looked at. What cannot be
// read does not limit. `root` replaces "/" in tests.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <optional>
#include <sstream>
#include <string>
#include <vector>

namespace hybridgen {

inline std::optional<std::int64_t> read_integer(const std::filesystem::path& file) {
  std::ifstream stream(file);
  std::int64_t value = 0;
  if (stream >> value) return value;
  return std::nullopt;  // absent, or "max"
}

/// Value after `key` in a file of "key value" lines.
inline std::optional<std::int64_t> read_keyed_integer(const std::filesystem::path& file,
                                                      const std::string& key) {
  std::ifstream stream(file);
  std::string line;
  while (std::getline(stream, line)) {
    std::istringstream words(line);
    std::string name;
    std::int64_t value = 0;
    if (words >> name >> value && name == key) return value;
  }
  return std::nullopt;
}

/// Directories of this process's groups that may hold settings of `controller` ("cpu", "memory"),
/// innermost first, for both versions (a file that is not there tells which version it is).
inline std::vector<std::filesystem::path> control_group_directories(
    const std::string& controller, const std::filesystem::path& root = "/") {
  namespace fs = std::filesystem;
  std::vector<fs::path> directories;
  std::ifstream stream(root / "proc/self/cgroup");
  std::string line;
  while (std::getline(stream, line)) {  // "id:controllers:path"; v2 has no controllers
    const std::size_t first = line.find(':');
    if (first == std::string::npos) continue;
    const std::size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool listed = ("," + controllers + ",").find("," + controller + ",") != std::string::npos;
    if (!controllers.empty() && !listed) continue;

    fs::path mount = root / "sys/fs/cgroup";
    if (listed) mount /= controller;
    // In a container the path may be the host's, which does not exist below our mount point; the
    // walk upwards then ends at the mount point, which is the container's own group.
    fs::path inner = fs::path(line.substr(second + 1)).relative_path().lexically_normal();
    if (inner.begin() != inner.end() && *inner.begin() == "..") inner.clear();
    for (; !inner.empty() && inner != "."; inner = inner.parent_path()) {
      directories.push_back(mount / inner);
    }
    directories.push_back(mount);
  }
  return directories;
}

/// Smallest "limit - usage" of the memory groups; file pages that can be dropped count as free.
inline std::optional<std::int64_t> control_group_free_bytes(
    const std::filesystem::path& root = "/") {
  std::optional<std::int64_t> smallest;
  for (const std::filesystem::path& directory : control_group_directories("memory", root)) {
    std::optional<std::int64_t> limit = read_integer(directory / "memory.max");
    std::optional<std::int64_t> usage = read_integer(directory / "memory.current");
    const auto file_pages = [&](const std::string& prefix) {
      const auto inactive = read_keyed_integer(directory / "memory.stat", prefix + "inactive_file");
      const auto active = read_keyed_integer(directory / "memory.stat", prefix + "active_file");
      return inactive ? std::optional(*inactive + active.value_or(0)) : std::nullopt;
    };
    std::optional<std::int64_t> droppable = file_pages("total_");
    if (!limit) limit = read_integer(directory / "memory.limit_in_bytes");
    if (!usage) usage = read_integer(directory / "memory.usage_in_bytes");
    if (!droppable) droppable = file_pages("");
    if (!limit) continue;
    const std::int64_t in_use =
        std::max<std::int64_t>(0, usage.value_or(0) - droppable.value_or(0));
    const std::int64_t free = std::max<std::int64_t>(0, *limit - in_use);
    smallest = std::min(free, smallest.value_or(free));
  }
  return smallest;
}

/// Smallest CPU quota of the groups, in CPUs.
inline std::optional<double> control_group_quota(const std::filesystem::path& root = "/") {
  std::optional<double> smallest;
  for (const std::filesystem::path& directory : control_group_directories("cpu", root)) {
    std::int64_t quota = -1;
    std::int64_t period = 0;
    std::ifstream v2(directory / "cpu.max");  // "quota period" or "max period"
    if (!(v2 >> quota >> period)) {
      quota = read_integer(directory / "cpu.cfs_quota_us").value_or(-1);
      period = read_integer(directory / "cpu.cfs_period_us").value_or(0);
    }
    if (quota <= 0 || period <= 0) continue;
    const double cpus = static_cast<double>(quota) / static_cast<double>(period);
    smallest = std::min(cpus, smallest.value_or(cpus));
  }
  return smallest;
}

/// The same, rounded up.
inline std::optional<std::int64_t> control_group_cpus(const std::filesystem::path& root = "/") {
  const std::optional<double> quota = control_group_quota(root);
  if (!quota) return std::nullopt;
  return static_cast<std::int64_t>(std::ceil(*quota));
}

}  // namespace hybridgen
