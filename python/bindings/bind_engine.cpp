// SPDX-License-Identifier: Apache-2.0
// EngineOptions, SamplingOptions, TokenEvent and Engine.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bind_options.h"
#include "bindings.h"
#include "core/option_tables.h"
#include "engine/lower_tiers.h"
#include "engine/run_plan.h"
#include "engine/sampling_table.h"
#include "hybridgen/core/error.h"
#include "hybridgen/engine/engine.h"
#include "kernels/cpu_kernels.h"
#include "memory/host_tiers.h"
#include "memory/numa.h"
#include "memory/process_memory.h"
#include "models/decoder_model.h"
#include "runtime/cpus.h"
#include "weight_formats.h"

namespace py = pybind11;

namespace hybridgen::bindings {
namespace {

FinishReason parse_reason(const std::string& name) {
  for (const auto reason :
       {FinishReason::kStop, FinishReason::kLength, FinishReason::kAbort, FinishReason::kError}) {
    if (name_of(reason) == name) {
      return reason;
    }
  }
  throw ConfigError(
      message("[finish] reason is '", name, "'; allowed: stop, length, abort, error"));
}

// The exception that Python would have got had `error` been thrown; one of a user's own code is
// the very object, with its traceback.
py::object to_python(const std::exception_ptr& error) {
  if (error == nullptr) {
    return py::none();
  }
  try {
    try {
      std::rethrow_exception(error);
    } catch (const py::error_already_set&) {
      throw;
    } catch (...) {
      py::cpp_function([] { throw; })();  // through the translators of all modules
    }
  } catch (const py::error_already_set& raised) {
    if (raised.trace()) {
      PyException_SetTraceback(raised.value().ptr(), raised.trace().ptr());
    }
    return raised.value();
  }
  return py::none();
}

// Into `events`, one by one: an interrupt on the way back to the caller then loses none of them.
py::list step(Engine& engine, std::optional<py::list> events) {
  std::vector<TokenEvent> found;
  {
    const py::gil_scoped_release released;
    found = engine.step();
  }
  py::list all = events ? *std::move(events) : py::list();
  for (TokenEvent& event : found) {
    all.append(py::cast(std::move(event)));
  }
  return all;
}

/// "composition", a _core.Composition, is no option of the engine, but says which are read.
EngineOptions options_from(py::kwargs given) {
  py::object composition =
      given.contains("composition") ? py::object(given["composition"]) : py::object(py::none());
  if (given.contains("composition")) PyDict_DelItemString(given.ptr(), "composition");
  const std::string operation = "engine options";
  EngineOptions options = engine_table().read(operation, map_from_python(given));
  check_together(operation, options);
  options.hybridgen = hybridgen_options(options);
  // What cannot be is refused now, before a model is loaded.
  if (!composition.is_none()) refuse_unread(composition.cast<const Method&>(), options);
  const Method method =
      composition.is_none() ? make_method(options) : composition.cast<const Method&>();
  check_shrinking(options, method);
  if (options.numa_node >= 0) {
    cpus_of_node(find_numa_node(options.numa_node), available_cpus());
  }
  static_cast<void>(kernels::resolve_isa(options.isa));
  check_lower_tiers(options, method, lower_tiers(options, host_tiers(available_cpus())));
  return options;
}

py::dict to_dict(const RunPlan& plan) {
  py::dict tiers;
  for (const TierPlan& tier : plan.tiers) {
    py::dict d;
    d["weights"] = tier.weights;
    d["keys"] = tier.keys;
    d["values"] = tier.values;
    d["staging"] = tier.staging;
    d["workspaces"] = tier.workspaces;
    d["engine"] = tier.engine;
    d["total"] = tier.total();
    d["capacity"] = tier.capacity;
    tiers[py::str(std::string(name_of(tier.tier)))] = d;
  }
  py::dict nearest;
  if (plan.nearest) {
    nearest["batch_size"] = plan.nearest->batch_size;
    nearest["prompt_tokens"] = plan.nearest->prompt_tokens;
    if (plan.nearest->device_tokens) nearest["device_tokens"] = *plan.nearest->device_tokens;
    if (plan.nearest->dram_bytes) nearest["dram"] = *plan.nearest->dram_bytes;
  }
  py::dict d;
  d["window"] = plan.window;
  d["offloaded_tokens"] = plan.offloaded;
  d["together"] = plan.together;
  d["tiers"] = tiers;
  d["problem"] = plan.problem;
  d["nearest"] = nearest;
  return d;
}

void register_plan(py::module_& module) {
  module.def(
      "plan_run",
      [](const ModelConfig& config,
         const EngineOptions& options,
         std::optional<Method> composition,
         const std::string& dtype,
         const std::string& device,
         bool are_loaded,
         std::int64_t batch_size,
         std::int64_t prompt_tokens,
         std::int64_t new_tokens,
         const py::dict& weights,
         const py::dict& formats) {
        return to_dict(plan_run(config,
                                dtype_from_name(dtype),
                                DeviceContext(device),
                                are_loaded,
                                options,
                                std::move(composition),
                                {batch_size, prompt_tokens, new_tokens},
                                weight_formats_from(weights, formats)));
      },
      py::arg("config"),
      py::arg("options"),
      py::arg("composition") = py::none(),
      py::kw_only(),
      py::arg("dtype"),
      py::arg("device"),
      py::arg("are_loaded"),
      py::arg("batch_size"),
      py::arg("prompt_tokens"),
      py::arg("new_tokens"),
      py::arg("weights") = py::dict(),
      py::arg("formats") = py::dict(),
      "What a batch of equal requests takes of every tier, in bytes. `weights` and `formats` as "
      "Model takes them.");
  module.def(
      "process_memory",
      [] {
        ProcessMemory& memory = ProcessMemory::instance();
        py::dict d;
        d["weights"] = memory.weights();
        for (const TierKind tier :
             {TierKind::kDevice, TierKind::kDram, TierKind::kCxl, TierKind::kDisk}) {
          d[py::str(std::string(name_of(tier)))] = memory.used(tier);
        }
        d["free"] = memory.measure_free();
        return d;
      },
      "Host memory that all engines and models of this process have promised, and what could be "
      "promised beside it, in bytes; \"device\" is what is resident on CPU devices.");
}

void register_values(py::module_& module) {
  module.def(
      "device_window",
      [](const py::object& device_tokens, std::int64_t prompt_tokens) {
        const OptionValue window = device_tokens.is_none() ? "auto" : from_python(device_tokens);
        const OptionMap given = {{"device_tokens", window}};
        return engine_table().read("device_window", given).device_tokens.resolve(prompt_tokens);
      },
      py::arg("device_tokens"),
      py::arg("prompt_tokens"),
      "Tokens of a prompt that may stay on the device; None if as many as fit.");
  py::class_<EngineOptions> options(
      module, "EngineOptions", "What is decided when an engine is built.");
  std::vector<OptionInfo> infos = engine_table().described();
  infos.push_back({"composition", "Composition | None", "", "", {}});
  py::options settings;
  settings.disable_function_signatures();
  options.def(py::init(&options_from), signature_of("__init__", infos).c_str());
  settings.enable_function_signatures();
  bind_properties(options, engine_table());

  py::class_<SamplingOptions> sampling(
      module, "SamplingOptions", "How tokens are drawn; temperature 0 is greedy.");
  bind_options(
      sampling, sampling_table(), "sampling", [](const SamplingOptions& o) { o.validate(); });

  py::class_<TokenEvent>(module, "TokenEvent", "A new token of a request, or its failure.")
      .def_readonly("request_id", &TokenEvent::request_id)
      .def_readonly("token_id", &TokenEvent::token_id)
      .def_readonly("logprob", &TokenEvent::logprob)
      .def_readonly("is_greedy", &TokenEvent::is_greedy)
      .def_readonly("top_logprobs", &TokenEvent::top_logprobs)
      .def_readonly(
          "prompt_logprobs",
          &TokenEvent::prompt_logprobs,
          "With the first token: (token, logprob) of each prompt token but the first, and of "
          "the most likely in its place.")
      .def_property_readonly(
          "finish_reason",
          [](const TokenEvent& event) { return std::string(name_of(event.finish_reason)); },
          "\"\", \"stop\", \"length\" or \"error\".")
      .def_property_readonly(
          "error",
          [](const TokenEvent& event) { return to_python(event.error); },
          "The exception that ended the request; None unless finish_reason is \"error\".");
}

py::dict to_dict(const RequestStatistics& s) {
  py::dict d;
  d["prompt_tokens"] = s.prompt_tokens;
  d["generated_tokens"] = s.generated_tokens;
  d["ttft_s"] = s.ttft_s;
  d["prefill_s"] = s.prefill_s;
  d["decode_s"] = s.decode_s;
  d["decode_steps"] = s.decode_steps;
  d["k"] = s.k;
  d["strategy"] = s.strategy;
  d["offloaded_tokens"] = s.offloaded_tokens;
  d["resident_tokens"] = s.resident_tokens;
  d["dropped_tokens"] = s.dropped_tokens;
  d["scheduler_decisions"] = s.scheduler_decisions;
  d["last_decision"] = s.last_decision;
  d["attended_offloaded_share"] = s.attended_offloaded_share;
  d["lost_mass"] = s.lost_mass;
  d["largest_lost_mass"] = s.largest_lost_mass;
  d["lost_mass_kind"] =
      s.lost_mass_kind.empty() ? py::object(py::none()) : py::object(py::str(s.lost_mass_kind));
  d["lost_mass_steps"] = s.lost_mass_steps;
  d["finish_reason"] = std::string(name_of(s.finish_reason));
  return d;
}

py::dict to_dict(const RunStatistics& s) {
  const PipelineStatistics& p = s.pipeline;
  py::dict d;
  d["requests"] = s.requests;
  d["prompt_tokens"] = s.prompt_tokens;
  d["generated_tokens"] = s.generated_tokens;
  d["prefill_tokens"] = p.prefill_tokens;
  d["prefill_s"] = p.prefill_s;
  d["decode_steps"] = p.decode_steps;
  d["decode_tokens"] = p.decode_tokens;
  d["decode_s"] = p.decode_s;
  d["t_device_s"] = p.device_s;
  d["t_wait_s"] = p.wait_s;
  d["t_cpu_s"] = p.cpu_s;
  d["t_link_s"] = p.link_s;
  d["host_jobs"] = p.host_jobs;
  d["hidden_share"] = p.hidden_share();
  d["h2d_bytes"] = p.h2d_bytes;
  d["d2h_bytes"] = p.d2h_bytes;
  d["evicted_bytes"] = p.evicted_bytes;
  d["host_key_bytes_read"] = p.host_key_bytes;
  d["host_value_bytes_read"] = p.host_value_bytes;
  d["cxl_key_bytes_read"] = p.cxl_key_bytes;
  d["cxl_value_bytes_read"] = p.cxl_value_bytes;
  d["tier_moves_down"] = s.tiers.moves_down;
  d["tier_bytes_moved_down"] = s.tiers.moved_down_bytes;
  d["tier_moves_up"] = s.tiers.moves_up;
  d["tier_bytes_moved_up"] = s.tiers.moved_up_bytes;
  d["tier_moves_failed"] = s.tiers.failed_moves;
  d["tier_move_s"] = s.tiers.move_s;
  d["tier_switches"] = s.tiers.switches;
  d["tier_switch_s"] = s.tiers.switch_s;
  d["tier_growth_waits"] = s.tiers.growth_waits;
  d["tier_growth_wait_s"] = s.tiers.growth_wait_s;
  d["prefill_h2d_bytes"] = p.prefill_h2d_bytes;
  d["disk_bytes_read"] = s.disk.read_bytes;
  d["disk_bytes_written"] = s.disk.written_bytes;
  d["disk_read_s"] = s.disk.read_s;
  d["disk_wait_s"] = s.disk.read_wait_s;
  d["disk_write_wait_s"] = s.disk.write_wait_s;
  d["disk_hidden_share"] = s.disk.hidden_share();
  d["weight_device_bytes"] = s.weights.device_bytes;
  d["weight_host_bytes"] = s.weights.host_bytes;
  d["weight_disk_bytes"] = s.weights.disk_bytes;
  d["weight_bytes_copied"] = s.weights.copied_bytes;
  d["weight_bytes_read"] = s.weights.read_bytes;
  d["weight_read_s"] = s.weights.read_s;
  d["weight_wait_s"] = s.weights.wait_s;
  d["weight_copy_s"] = s.weights.copy_s;
  d["weight_copy_wait_s"] = s.weights.copy_wait_s;
  d["weight_hidden_share"] = s.weights.hidden_share();
  return d;
}

py::list stop_trace(Engine& engine) {
  constexpr const char* kLanes[] = {"device", "cpu", "link", "scheduler", "disk", "moves"};
  engine.trace().stop();
  py::list spans;
  for (const TraceSpan& span : engine.trace().spans()) {
    py::dict d;
    d["name"] = span.name;
    d["lane"] = kLanes[static_cast<std::size_t>(span.lane)];
    d["worker"] = span.worker;
    d["layer"] = span.layer;
    d["step"] = span.step;
    d["begin_ns"] = span.begin_ns;
    d["end_ns"] = span.end_ns;
    d["bytes"] = span.bytes;
    d["value"] = span.value;
    spans.append(d);
  }
  return spans;
}

}  // namespace

// As long as the interface: one statement for each member of a class.
void register_engine(py::module_& module) {
  register_values(module);
  register_plan(module);
  py::class_<Engine>(module, "Engine", "Requests in, tokens out. One caller at a time.")
      .def(py::init<std::shared_ptr<DecoderModel>, EngineOptions>(),
           py::arg("model"),
           py::arg("options"),
           py::call_guard<py::gil_scoped_release>())
      .def(py::init<std::shared_ptr<DecoderModel>, EngineOptions, Method>(),
           py::arg("model"),
           py::arg("options"),
           py::arg("composition"),
           py::call_guard<py::gil_scoped_release>())
      .def(
          "add",
          [](Engine& engine,
             std::vector<std::int64_t> prompt,
             SamplingOptions sampling,
             std::vector<std::int64_t> forced,
             std::int64_t decode_prompt_tokens,
             std::optional<std::int64_t> device_tokens,
             bool on_disk) {
            return engine.add(std::move(prompt),
                              std::move(sampling),
                              std::move(forced),
                              decode_prompt_tokens,
                              {.device_tokens = device_tokens, .on_disk = on_disk});
          },
          py::arg("prompt"),
          py::arg("sampling"),
          py::kw_only(),
          py::arg("forced") = std::vector<std::int64_t>{},
          py::arg("decode_prompt_tokens") = 0,
          py::arg("device_tokens") = py::none(),
          py::arg("on_disk") = false,
          "Queues a request and returns its id; the last two say where its keys and values lie.")
      .def("has_work", &Engine::has_work, "Whether step() has anything to do.")
      .def("step",
           &step,
           py::arg("events") = py::none(),
           "One prefill chunk, or one decode step of all running requests; the GIL is released. "
           "Appends to `events`, or to a new list, and returns it.")
      .def(
          "finish",
          [](Engine& engine, std::int64_t id, const std::string& reason) {
            engine.finish(id, parse_reason(reason));
          },
          py::arg("request_id"),
          py::arg("reason"),
          py::call_guard<py::gil_scoped_release>(),
          "Ends a request now, for the reason stop, length, abort or error.")
      .def("release",
           &Engine::release,
           py::arg("request_id"),
           py::call_guard<py::gil_scoped_release>(),
           "Forgets a request and its statistics.")
      .def(
          "request_stats",
          [](const Engine& engine, std::int64_t id) {
            return to_dict(engine.request_statistics(id));
          },
          py::arg("request_id"),
          "Statistics of one request.")
      .def(
          "run_stats",
          [](const Engine& engine) { return to_dict(engine.run_statistics()); },
          "Sums since the last reset.")
      .def("reset_stats", &Engine::reset_statistics, "Sets all sums to zero.")
      .def(
          "start_trace",
          [](Engine& engine, std::size_t capacity) { engine.trace().start(capacity); },
          py::arg("capacity") = std::size_t{1} << 20,
          "Starts recording spans.")
      .def("stop_trace", &stop_trace, "Stops recording and returns the spans.")
      .def(
          "memory",
          [](const Engine& engine, bool pages) {
            py::dict tiers;
            for (const TierUsage& usage : engine.memory(pages)) {
              py::dict tier;
              tier["capacity"] = usage.capacity_bytes;
              tier["used"] = usage.used_bytes;
              if (pages) {
                tier["bytes"] = usage.found_bytes;
                tier["nodes"] = usage.bytes_by_node;
                tier["huge_page_share"] = usage.huge_page_share;
              }
              tier["process"] = usage.process_bytes;
              tiers[py::str(usage.tier)] = tier;
            }
            return tiers;
          },
          py::arg("pages") = false,
          "Capacity and use of each tier in bytes; with pages=True also where the system says that "
          "they lie.")
      .def(
          "numa_parts",
          [](const Engine& engine) {
            py::list parts;
            for (const NumaPart& part : engine.numa_parts()) {
              py::dict d;
              d["node"] = part.node;
              d["first_head"] = part.first_head;
              d["num_heads"] = part.num_heads;
              d["cpus"] = part.cpus;
              parts.append(d);
            }
            return parts;
          },
          "Memory nodes that KV heads are divided over, with their workers' CPUs.")
      // A copy: a reference would keep the engine, and so the weights, as long as it is held.
      .def_property_readonly("options",
                             [](const Engine& engine) { return EngineOptions(engine.options()); });
}

}  // namespace hybridgen::bindings
