// SPDX-License-Identifier: Apache-2.0
#include "memory/host_topology.h"

#include <algorithm>
#include <cstddef>
#include <fstream>
#include <iterator>
#include <sstream>
#include <system_error>
#include <utility>

#include "runtime/control_group.h"

namespace hybridgen {

namespace {

namespace fs = std::filesystem;

constexpr std::int64_t kKiB = 1024;
constexpr std::int64_t kMegabyte = 1000 * 1000;
constexpr const char* kNodes = "sys/devices/system/node";

std::string first_line(const fs::path& file) {
  std::ifstream stream(file);
  std::string line;
  std::getline(stream, line);
  return line;
}

/// The names in a folder, ascending; none if it is not there or may not be read.
std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  std::error_code error;
  for (fs::directory_iterator entry(folder, error); !error && entry != fs::directory_iterator();
       entry.increment(error)) {
    names.push_back(entry->path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

/// N of "nodeN".
std::optional<int> node_number(const std::string& name) {
  constexpr std::size_t kPrefix = 4;
  constexpr std::size_t kLongest = kPrefix + 6;
  if (name.size() == kPrefix || name.size() > kLongest || !name.starts_with("node") ||
      name.find_first_not_of("0123456789", kPrefix) != std::string::npos) {
    return std::nullopt;
  }
  return std::stoi(name.substr(kPrefix));
}

/// Numbers of the entries "nodeN" of a folder, ascending.
std::vector<int> nodes_in(const fs::path& folder) {
  std::vector<int> nodes;
  for (const std::string& name : names_in(folder)) {
    if (const std::optional<int> node = node_number(name)) nodes.push_back(*node);
  }
  std::ranges::sort(nodes);
  return nodes;
}

/// Bytes by name in a text like /proc/meminfo, or a node's ("Node 0 MemFree:  1234 kB").
std::map<std::string, std::int64_t> read_meminfo(const fs::path& file) {
  std::map<std::string, std::int64_t> bytes;
  std::ifstream stream(file);
  std::string line;
  while (std::getline(stream, line)) {
    std::istringstream words(line);
    std::string name;
    std::int64_t kib = 0;
    words >> name;
    if (name == "Node") words >> name >> name;
    if (words >> kib) bytes[name] = kib * kKiB;
  }
  return bytes;
}

/// Whether there is anything.
bool read_sizes(const fs::path& meminfo, NodeFacts* facts) {
  std::map<std::string, std::int64_t> bytes = read_meminfo(meminfo);
  const bool is_there = !bytes.empty();
  facts->node.total_bytes = bytes["MemTotal:"];
  facts->node.free_bytes = bytes["MemFree:"];
  facts->file_bytes = bytes["Active(file):"] + bytes["Inactive(file):"];
  return is_there;
}

fs::path folder_of(const fs::path& root, int node) {
  return root / kNodes / ("node" + std::to_string(node));
}

/// Access class 1 has only CPUs as initiators, class 0 also devices; older kernels lack class 1.
NodePerformance read_performance(const fs::path& node) {
  for (const char* access : {"access1", "access0"}) {
    const fs::path folder = node / access / "initiators";
    NodePerformance told;
    told.initiators = nodes_in(folder);
    told.read_bytes_per_second = read_integer(folder / "read_bandwidth").value_or(0) * kMegabyte;
    told.write_bytes_per_second = read_integer(folder / "write_bandwidth").value_or(0) * kMegabyte;
    told.read_latency_ns = read_integer(folder / "read_latency").value_or(0);
    told.write_latency_ns = read_integer(folder / "write_latency").value_or(0);
    const bool tells = told.read_bytes_per_second > 0 || told.read_latency_ns > 0;
    if (tells && !told.initiators.empty()) return told;
  }
  return {};
}

NodeFacts read_node(const fs::path& folder, int id, const std::vector<int>& ids) {
  NodeFacts facts;
  facts.node.id = id;
  facts.node.cpus = parse_number_list(first_line(folder / "cpulist"));
  static_cast<void>(read_sizes(folder / "meminfo", &facts));
  std::istringstream distances(first_line(folder / "distance"));
  int distance = 0;
  for (std::size_t i = 0; i < ids.size() && distances >> distance; ++i) {
    facts.distances[ids[i]] = distance;
  }
  facts.told = read_performance(folder);
  return facts;
}

/// By node: whose own memory it is. NVIDIA's driver says so of GPUs whose memory the system took
/// as a node; nodes of other devices that start memory accesses by themselves (ACPI's generic
/// initiators; also how GH200 announces its GPU, and visible in containers) are the devices', too.
std::map<int, std::string> read_devices(const fs::path& root, const fs::path& nodes) {
  std::map<int, std::string> devices;
  for (const int node : parse_number_list(first_line(nodes / "has_generic_initiator"))) {
    devices[node] = "a device (an ACPI generic initiator)";
  }
  const fs::path gpus = root / "proc/driver/nvidia/gpus";
  for (const std::string& gpu : names_in(gpus)) {
    const auto node = read_keyed_integer(gpus / gpu / "numa_status", "Node:");
    if (node && *node >= 0) devices[static_cast<int>(*node)] = "GPU " + gpu;
  }
  return devices;
}

/// Nodes whose memory this process's cpuset permits; nothing: it does not say.
std::optional<std::vector<int>> read_allowed_nodes(const fs::path& root) {
  std::ifstream stream(root / "proc/self/status");
  std::string line;
  const std::string key = "Mems_allowed_list:";
  while (std::getline(stream, line)) {
    if (line.starts_with(key)) return parse_number_list(line.substr(key.size()));
  }
  return std::nullopt;
}

NodeFacts only_node(const fs::path& root, const std::vector<int>& usable_cpus) {
  NodeFacts facts;
  facts.node.cpus = usable_cpus;
  static_cast<void>(read_sizes(root / "proc/meminfo", &facts));
  return facts;
}

}  // namespace

const NodeFacts* HostFacts::find(int id) const {
  const auto found =
      std::ranges::find_if(nodes, [id](const NodeFacts& facts) { return facts.node.id == id; });
  return found == nodes.end() ? nullptr : &*found;
}

std::vector<int> HostFacts::nodes_of_others() const {
  std::vector<int> numbers;
  for (const NodeFacts& facts : nodes) {
    if (!facts.is_ours() && facts.node.total_bytes > 0) numbers.push_back(facts.node.id);
  }
  return numbers;
}

std::optional<std::int64_t> read_available_bytes(const fs::path& root, int node) {
  NodeFacts facts;
  if (!read_sizes(folder_of(root, node) / "meminfo", &facts)) return std::nullopt;
  return facts.available_bytes();
}

std::optional<std::int64_t> read_process_bytes(const fs::path& root, std::span<const int> without) {
  const std::map<std::string, std::int64_t> bytes = read_meminfo(root / "proc/meminfo");
  const auto available = bytes.find("MemAvailable:");
  const std::optional<std::int64_t> limit = control_group_free_bytes(root);
  if (available == bytes.end()) return limit;
  std::int64_t left = available->second;
  for (const int node : without) left -= read_available_bytes(root, node).value_or(0);
  left = std::max<std::int64_t>(0, left);
  return std::min(limit.value_or(left), left);
}

std::vector<int> parse_number_list(const std::string& text) {
  std::vector<int> numbers;
  std::istringstream stream(text);
  int first = 0;
  while (stream >> first) {
    int last = first;
    if (stream.peek() == '-') {
      stream.get();
      if (!(stream >> last)) last = first;
    }
    for (int number = first; number <= last; ++number) numbers.push_back(number);
    if (stream.peek() != ',') break;
    stream.get();
  }
  return numbers;
}

HostFacts read_host_facts(const fs::path& root,
                          const std::vector<int>& usable_cpus,
                          bool can_place) {
  HostFacts facts;
  facts.usable_cpus = usable_cpus;
  facts.can_place = can_place;
  facts.limit_bytes = read_process_bytes(root);
  const fs::path folder = root / kNodes;
  const std::vector<int> ids = nodes_in(folder);
  for (const int id : ids) {
    facts.nodes.push_back(read_node(folder_of(root, id), id, ids));
  }
  if (facts.nodes.empty()) facts.nodes.push_back(only_node(root, usable_cpus));

  const std::map<int, std::string> devices = read_devices(root, folder);
  const std::optional<std::vector<int>> allowed = read_allowed_nodes(root);
  for (NodeFacts& node : facts.nodes) {
    const int id = node.node.id;
    node.allowed = !allowed || std::ranges::find(*allowed, id) != allowed->end();
    // A node with CPUs is theirs, whoever else starts accesses from there.
    const auto device = devices.find(id);
    if (device != devices.end() && node.node.cpus.empty()) node.device = device->second;
  }
  return facts;
}

}  // namespace hybridgen
