// SPDX-License-Identifier: Apache-2.0
// The compiled module hybridgen._core: errors, facts about the build and the machine, and the
// classes of the other bind_*.cpp files.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <chrono>
#include <cstring>
#include <thread>

#include "bind_options.h"
#include "bindings.h"
#include "device/device_ops.h"
#include "device/own_error.h"
#include "hybridgen/core/error.h"
#include "hybridgen/methods/method.h"
#include "hybridgen/selection/token_selector.h"
#include "kernels/cpu_kernels.h"
#include "kvcache/scoring_shadow.h"
#include "memory/host_buffer.h"
#include "memory/huge_pages.h"
#include "memory/memory_budget.h"
#include "memory/numa.h"
#include "runtime/cpus.h"
#include "runtime/engine_thread.h"
#include "runtime/process.h"

namespace py = pybind11;

namespace hybridgen::bindings {
namespace {

void raise_python(const char* class_name, const char* text) {
  // Looked up when it happens: hybridgen.errors must not be imported while _core is being imported.
  const py::object type = py::module_::import("hybridgen.errors").attr(class_name);
  PyErr_SetString(type.ptr(), text);
}

SelectionStrategy strategy_from_name(const std::string& name) {
  for (const auto strategy : {SelectionStrategy::kPostQkt, SelectionStrategy::kPreQkt}) {
    if (name_of(strategy) == name) {
      return strategy;
    }
  }
  throw ConfigError(message("[strategy] '", name, "' is not known; allowed: post, pre"));
}

using Matrix = py::array_t<float, py::array::c_style | py::array::forcecast>;

// What a scoring shadow of `keys` [n, D] gives for `queries` [R, D]: [R, n], the logits less one
// constant per query.
Matrix shadow_scores(const Matrix& keys, const Matrix& queries, const std::string& precision) {
  if (keys.ndim() != 2 || queries.ndim() != 2 || keys.shape(0) < 1 || keys.shape(1) < 1 ||
      keys.shape(1) != queries.shape(1) || (precision != "int8" && precision != "int4")) {
    throw ConfigError(message("[shadow_scores] precision is '",
                              precision,
                              "', keys and queries have ",
                              keys.ndim(),
                              " and ",
                              queries.ndim(),
                              " dimensions; allowed: 'int8' or 'int4', keys [n, D] and queries "
                              "[R, D] with n and D >= 1"));
  }
  const std::int64_t count = keys.shape(0);
  const std::int64_t dim = keys.shape(1);
  const std::int64_t num_queries = queries.shape(0);
  Matrix scores({num_queries, count});
  ScoringShadow shadow(
      {.num_layers = 1,
       .num_kv_heads = 1,
       .head_dim = dim,
       .capacity = count,
       .precision = precision == "int8" ? ShadowPrecision::kInt8 : ShadowPrecision::kInt4});
  shadow.grow(shadow.shape().capacity);
  shadow.write(0, {0, count}, {keys.data(), count * dim, dim});
  kernels::ShadowLogitsArgs args;
  args.keys = shadow.keys(0, 0);
  std::vector<std::int8_t> rounded(static_cast<std::size_t>(num_queries * args.keys.padded_dim));
  std::vector<float> scales(static_cast<std::size_t>(num_queries));
  kernels::prepare_shadow_queries(
      args.keys, queries.data(), num_queries, rounded.data(), scales.data());
  args.queries = rounded.data();
  args.scales = scales.data();
  args.num_queries = num_queries;
  args.tokens = {0, count};
  args.scores = scores.mutable_data();
  args.scores_stride = count;
  kernels::cpu_kernels(kernels::resolve_isa("auto")).shadow_logits(args);
  return scores;
}

// Bytes per second that `threads` threads read from memory together: median of five passes over
// `bytes`, which should be far larger than the caches.
double read_bandwidth(int threads, std::int64_t bytes) {
  if (threads < 1 || bytes < (1 << 20)) {
    throw ConfigError(message("[read_bandwidth] threads is ",
                              threads,
                              ", bytes is ",
                              bytes,
                              "; allowed: threads >= 1, bytes >= 1 MiB"));
  }
  HostBuffer buffer(static_cast<std::size_t>(bytes));
  std::memset(buffer.data(), 1, buffer.size_bytes());
  const std::int64_t part = bytes / threads / 64 * 64;
  std::vector<double> rates;
  for (int pass = 0; pass < 6; ++pass) {
    const auto begin = std::chrono::steady_clock::now();
    check_threads_can_start(threads, "read_bandwidth");
    std::vector<std::jthread> readers;
    std::vector<std::uint64_t> sums(static_cast<std::size_t>(threads));
    for (int i = 0; i < threads; ++i) {
      readers.emplace_back([&, i] {
        sums[static_cast<std::size_t>(i)] = kernels::read_all(buffer.data() + i * part, part);
      });
    }
    for (std::jthread& reader : readers) {
      reader.join();
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - begin;
    if (pass > 0) {  // the first warms up
      rates.push_back(static_cast<double>(part * threads) / elapsed.count());
    }
  }
  std::ranges::sort(rates);
  return rates[rates.size() / 2];
}

py::dict build_info() {
  py::dict info;
  info["version"] = HYBRIDGEN_VERSION;
  info["torch_version"] = HYBRIDGEN_TORCH_VERSION;
  info["compiler"] = "gcc " __VERSION__;
  info["build_type"] = HYBRIDGEN_BUILD_TYPE;
  info["cuda"] = runs_cuda_kernels();
  info["onednn"] = static_cast<bool>(HYBRIDGEN_HAS_ONEDNN);
  info["numa"] = has_numa();
  std::vector<std::string> isas;
  for (const kernels::Isa isa : kernels::supported_isas()) {
    isas.emplace_back(name_of(isa));
  }
  info["isas"] = isas;
  info["isa"] = std::string(name_of(kernels::resolve_isa("auto")));
  info["scan_prefetch"] = std::string(name_of(kernels::scan_prefetch()));
  info["cpus"] = available_parallelism();
  return info;
}

}  // namespace

void register_errors(py::module_& /*module*/) {
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) {
        std::rethrow_exception(own_error(pointer));
      }
    } catch (const UnsupportedModelError& error) {
      raise_python("UnsupportedModelError", error.what());
    } catch (const CheckpointError& error) {
      raise_python("CheckpointError", error.what());
    } catch (const OutOfMemoryError& error) {
      raise_python("OutOfMemoryError", error.what());
    } catch (const DeviceError& error) {
      raise_python("DeviceError", error.what());
    } catch (const NumericError& error) {
      raise_python("NumericError", error.what());
    } catch (const ConfigError& error) {
      raise_python("ConfigError", error.what());
    } catch (const Error& error) {
      raise_python("HybridGenError", error.what());
    }
  });
}

// As long as the interface: one statement for each function.
void register_info(py::module_& module) {
  module.def("build_info", &build_info, "Facts about this build and what this CPU supports.");
  module.def(
      "huge_pages",
      [] {
        const HugePages pages = huge_pages();
        py::dict d;
        d["setting"] = pages.setting;
        d["asked_bytes"] = pages.asked_bytes;
        d["obtained_bytes"] = pages.obtained_bytes;
        return d;
      },
      "The system's setting of huge pages, bytes that asked for them, and bytes of this process "
      "that have them.");
  module.def(
      "available_host_bytes", &available_host_bytes, "Host memory that could still be taken.");
  module.def(
      "release_free_memory",
      [] {
#if defined(__GLIBC__)
        malloc_trim(0);
#endif
      },
      py::call_guard<py::gil_scoped_release>(),
      "Gives what the allocator holds and nobody uses back to the operating system.");
  module.def(
      "is_engine_thread",
      &is_engine_thread,
      "Whether the calling thread belongs to an engine: it runs work that somebody waits for.");
  module.def("available_parallelism",
             &available_parallelism,
             "CPUs' worth of time this process may use (affinity and cgroup quota).");
  module.def(
      "method_table",
      [] {
        py::list table;
        for (const MethodInfo& info : list_methods()) {
          py::dict row;
          row["name"] = info.name;
          row["summary"] = info.summary;
          row["attention"] = info.attention;
          row["timing"] = info.timing;
          row["exact_when"] = info.exact_when;
          row["drops"] = info.drops;
          row["link"] = info.link;
          row["tunables"] = to_python(info.tunables);
          row["reads"] = info.reads;
          table.append(row);
        }
        return table;
      },
      "What there is to know about every method, in a fixed order.");
  module.def(
      "selector_names",
      [](const std::string& name) {
        const SelectionStrategy strategy = strategy_from_name(name);
        std::vector<std::string> names = selector_names(strategy);
        if (strategy == SelectionStrategy::kPreQkt) {
          names.emplace_back(kPartialKeysSelector);
        }
        return names;
      },
      py::arg("strategy"),
      "Token selectors of a strategy, 'post' or 'pre'.");
  module.def(
      "numa_nodes",
      [] {
        py::list nodes;
        for (const NumaNode& node : numa_nodes()) {
          py::dict d;
          d["id"] = node.id;
          d["cpus"] = node.cpus;
          d["total_bytes"] = node.total_bytes;
          d["free_bytes"] = node.free_bytes;
          nodes.append(d);
        }
        return nodes;
      },
      "Memory nodes with their CPUs and bytes; a single one where the system tells of none.");
  module.def("shadow_scores",
             &shadow_scores,
             py::arg("keys"),
             py::arg("queries"),
             py::arg("precision"),
             "Scores [R, n] of float32 queries [R, D] over an 8-bit or 4-bit copy of keys [n, D]: "
             "the logits less one constant per query.");
  module.def(
      "read_bandwidth",
      &read_bandwidth,
      py::arg("threads"),
      py::arg("bytes") = std::int64_t{1} << 29,
      py::call_guard<py::gil_scoped_release>(),
      "Bytes per second that `threads` threads read from memory, measured now (median of 5).");
}

}  // namespace hybridgen::bindings

PYBIND11_MODULE(_core, module) {
  module.doc() = "Compiled core of hybridgen.";
  hybridgen::bindings::register_errors(module);
  hybridgen::bindings::register_info(module);
  hybridgen::bindings::register_host_tiers(module);
  hybridgen::bindings::register_options(module);
  hybridgen::bindings::register_model(module);
  hybridgen::bindings::register_unpack(module);
  hybridgen::bindings::register_methods(module);
  hybridgen::bindings::register_engine(module);
  hybridgen::bindings::register_measurements(module);
  hybridgen::bindings::register_machines(module);
}
