// SPDX-License-Identifier: Apache-2.0
// Memory nodes of this machine and the tier that each belongs to.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "bindings.h"
#include "memory/disk_leftovers.h"
#include "memory/host_tiers.h"
#include "memory/host_topology.h"
#include "memory/numa.h"
#include "runtime/cpus.h"

namespace py = pybind11;

namespace hybridgen::bindings {
namespace {

/// What firmware says; nothing else has an entry.
py::dict described(const NodePerformance& told) {
  py::dict d;
  if (told.read_bytes_per_second > 0) d["read_bytes_per_second"] = told.read_bytes_per_second;
  if (told.write_bytes_per_second > 0) d["write_bytes_per_second"] = told.write_bytes_per_second;
  if (told.read_latency_ns > 0) d["read_latency_ns"] = told.read_latency_ns;
  if (told.write_latency_ns > 0) d["write_latency_ns"] = told.write_latency_ns;
  return d;
}

py::list described_tiers() {
  HostTiers tiers;
  HostFacts facts;
  {
    const py::gil_scoped_release released;  // it may measure
    const std::vector<int> cpus = available_cpus();
    tiers = host_tiers(cpus);
    facts = read_host_facts("/", cpus, has_numa());
  }
  py::list nodes;
  for (const ClassifiedNode& node : tiers.nodes) {
    py::dict d;
    d["node"] = node.id;
    d["tier"] = std::string(name_of(node.use));
    d["why"] = node.why;
    d["total_bytes"] = node.total_bytes;
    d["available_bytes"] = node.available_bytes;
    if (const NodeFacts* found = facts.find(node.id)) {
      d["distances"] = found->distances;
      d["firmware"] = described(found->told);
    }
    nodes.append(d);
  }
  return nodes;
}

}  // namespace

void register_host_tiers(py::module_& module) {
  module.def(
      "host_tiers",
      &described_tiers,
      "Every memory node: its tier and why it is that one, bytes, distances to nodes by their "
      "numbers, and what firmware says of its memory. May measure, once and for less than "
      "some seconds.");
  module.def("new_disk_file_name",
             &new_disk_file_name,
             "A name for a file in a Disk's folder, which the next start there removes once this "
             "process is no more.");
}

}  // namespace hybridgen::bindings
