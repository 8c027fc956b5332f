// SPDX-License-Identifier: Apache-2.0
// EngineOptions, SamplingOptions, TokenEvent and Engine.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "hybridgen/core/error.h"
#include "hybridgen/engine/engine.h"
#include "memory/numa.h"
#include "runtime/cpus.h"

namespace py = pybind11;

namespace hybridgen::bindings {
namespace {

QueryMode parse_query(const std::string& name) {
  for (const auto mode : {QueryMode::kExact, QueryMode::kSpeculative, QueryMode::kRescore}) {
    if (name_of(mode) == name) {
      return mode;
    }
  }
  throw ConfigError(
      message("[engine options] query is '", name, "'; allowed: exact, speculative, rescore"));
}

SelectionStrategy parse_strategy(const std::string& name) {
  for (const auto strategy : {SelectionStrategy::kPostQkt, SelectionStrategy::kPreQkt}) {
    if (name_of(strategy) == name) {
      return strategy;
    }
  }
  throw ConfigError(message("[engine options] strategy is '", name, "'; allowed: post, pre"));
}

TokenCount parse_token_count(const py::object& value) {
  if (value.is_none()) {
    return TokenCount::all();
  }
  if (py::isinstance<py::tuple>(value)) {
    const auto [tokens, share] = value.cast<std::pair<std::int64_t, double>>();
    return TokenCount::larger_of(tokens, share);
  }
  return py::isinstance<py::int_>(value) ? TokenCount::count(value.cast<std::int64_t>())
                                         : TokenCount::share(value.cast<double>());
}

py::object to_python(const TokenCount& count) {
  if (count.as_count() && count.as_share()) {
    return py::make_tuple(*count.as_count(), *count.as_share());
  }
  if (count.as_count()) {
    return py::int_(*count.as_count());
  }
  return count.as_share() ? py::object(py::float_(*count.as_share())) : py::none();
}

WindowSetting parse_window(const py::object& value) {
  WindowSetting window;
  if (py::isinstance<py::int_>(value)) {
    window.count = value.cast<std::int64_t>();
  } else if (!value.is_none()) {
    window.share = value.cast<double>();
  }
  return window;
}

py::object to_python(const WindowSetting& window) {
  if (window.count) {
    return py::int_(*window.count);
  }
  return window.share ? py::object(py::float_(*window.share)) : py::none();
}

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

void register_options(py::module_& module) {
  module.def(
      "device_window",
      [](const py::object& device_tokens, std::int64_t prompt_tokens) {
        return parse_window(device_tokens).resolve(prompt_tokens);
      },
      py::arg("device_tokens"),
      py::arg("prompt_tokens"),
      "Tokens of a prompt that may stay on the device; None if as many as fit.");
  py::class_<EngineOptions>(module, "EngineOptions", "What is decided when an engine is built.")
      .def(py::init([](const std::string& method,
                       const std::map<std::string, MethodValue>& method_config,
                       const std::optional<SchedulerOptions>& scheduler,
                       const std::string& guess_norm,
                       const std::string& guess_source,
                       const std::string& query,
                       const std::string& selector,
                       const std::string& pre_selector,
                       const std::string& strategy,
                       const py::object& k,
                       const std::string& scoring,
                       double candidates_per_k,
                       const py::object& device_tokens,
                       std::int64_t spec_first_layer,
                       std::int64_t dram_bytes,
                       std::int64_t device_bytes,
                       std::int64_t threads,
                       std::int64_t device_threads,
                       int numa_node,
                       bool divides_heads,
                       const std::string& isa,
                       const std::string& math,
                       std::int64_t max_model_len,
                       std::int64_t prefill_chunk,
                       std::int64_t micro_batch,
                       std::int64_t max_batch,
                       bool synchronous,
                       std::int64_t random_delay_us,
                       bool oracle_proxy,
                       std::int64_t invented_nodes,
                       const std::optional<Method>& composition) {
             EngineOptions options;
             options.method = method;
             options.method_config = method_config;
             options.scheduler = scheduler;
             options.guess_norm = guess_norm;
             options.guess_source = guess_source;
             options.query = parse_query(query);
             options.selector = selector;
             options.pre_selector = pre_selector;
             options.strategy = parse_strategy(strategy);
             options.k = parse_token_count(k);
             options.scoring = scoring;
             options.candidates_per_k = candidates_per_k;
             options.device_tokens = parse_window(device_tokens);
             options.spec_first_layer = spec_first_layer;
             options.dram_bytes = dram_bytes;
             options.device_bytes = device_bytes;
             options.threads = threads;
             options.device_threads = device_threads;
             options.numa_node = numa_node;
             options.divides_heads = divides_heads;
             options.isa = isa;
             options.math = math;
             options.max_model_len = max_model_len;
             options.prefill_chunk = prefill_chunk;
             options.micro_batch = micro_batch;
             options.max_batch = max_batch;
             options.test = {synchronous, random_delay_us, oracle_proxy, invented_nodes};
             options.validate();
             // What cannot be is refused now, before a model is loaded.
             if (composition) {
               refuse_unread(*composition, options);
             } else {
               static_cast<void>(make_method(options));
             }
             if (numa_node >= 0) {
               cpus_of_node(find_numa_node(numa_node), available_cpus());
             }
             return options;
           }),
           py::kw_only(),
           py::arg("method") = "hybridgen",
           py::arg("method_config") = std::map<std::string, MethodValue>{},
           py::arg("scheduler") = py::none(),
           py::arg("guess_norm") = "next",
           py::arg("guess_source") = "next_weights",
           py::arg("query") = "rescore",
           py::arg("selector") = "topk",
           py::arg("pre_selector") = "partial_keys",
           py::arg("strategy") = "post",
           py::arg("k") = to_python(TokenCount::usual()),
           py::arg("scoring") = "full",
           py::arg("candidates_per_k") = 0.0,
           py::arg("device_tokens") = py::none(),
           py::arg("spec_first_layer") = 2,
           py::arg("dram_bytes") = 0,
           py::arg("device_bytes") = 0,
           py::arg("threads") = 0,
           py::arg("device_threads") = 0,
           py::arg("numa_node") = -1,
           py::arg("divides_heads") = true,
           py::arg("isa") = "auto",
           py::arg("math") = "auto",
           py::arg("max_model_len") = 0,
           py::arg("prefill_chunk") = 1024,
           py::arg("micro_batch") = 16,
           py::arg("max_batch") = 64,
           py::arg("synchronous") = false,
           py::arg("random_delay_us") = 0,
           py::arg("oracle_proxy") = false,
           py::arg("invented_nodes") = 0,
           py::arg("composition") = py::none())
      .def_readonly("method", &EngineOptions::method)
      .def_readonly("selector", &EngineOptions::selector)
      .def_readonly("pre_selector", &EngineOptions::pre_selector)
      .def_readonly("spec_first_layer", &EngineOptions::spec_first_layer)
      .def_readonly("scoring", &EngineOptions::scoring)
      .def_readonly("candidates_per_k", &EngineOptions::candidates_per_k)
      .def_readonly("dram_bytes", &EngineOptions::dram_bytes)
      .def_readonly("device_bytes", &EngineOptions::device_bytes)
      .def_readonly("threads", &EngineOptions::threads)
      .def_readonly("device_threads", &EngineOptions::device_threads)
      .def_readonly("numa_node", &EngineOptions::numa_node)
      .def_readonly("divides_heads", &EngineOptions::divides_heads)
      .def_readonly("isa", &EngineOptions::isa)
      .def_readonly("math", &EngineOptions::math)
      .def_readonly("max_model_len", &EngineOptions::max_model_len)
      .def_readonly("prefill_chunk", &EngineOptions::prefill_chunk)
      .def_readonly("micro_batch", &EngineOptions::micro_batch)
      .def_readonly("max_batch", &EngineOptions::max_batch)
      .def_property_readonly("query",
                             [](const EngineOptions& o) { return std::string(name_of(o.query)); })
      .def_property_readonly(
          "strategy", [](const EngineOptions& o) { return std::string(name_of(o.strategy)); })
      .def_property_readonly("k", [](const EngineOptions& o) { return to_python(o.k); })
      .def_property_readonly("device_tokens",
                             [](const EngineOptions& o) { return to_python(o.device_tokens); });

  py::class_<SamplingOptions>(
      module, "SamplingOptions", "How tokens are drawn; temperature 0 is greedy.")
      .def(py::init([](float temperature,
                       int top_k,
                       float top_p,
                       float min_p,
                       float repetition_penalty,
                       float presence_penalty,
                       float frequency_penalty,
                       std::map<std::int64_t, float> logit_bias,
                       std::uint64_t seed,
                       int max_tokens,
                       int min_tokens,
                       std::vector<std::int64_t> stop_token_ids,
                       int num_logprobs,
                       int num_prompt_logprobs,
                       std::int64_t valid_vocab) {
             SamplingOptions options;
             options.temperature = temperature;
             options.top_k = top_k;
             options.top_p = top_p;
             options.min_p = min_p;
             options.repetition_penalty = repetition_penalty;
             options.presence_penalty = presence_penalty;
             options.frequency_penalty = frequency_penalty;
             options.logit_bias = std::move(logit_bias);
             options.seed = seed;
             options.max_tokens = max_tokens;
             options.min_tokens = min_tokens;
             options.stop_token_ids = std::move(stop_token_ids);
             options.num_logprobs = num_logprobs;
             options.num_prompt_logprobs = num_prompt_logprobs;
             options.valid_vocab = valid_vocab;
             options.validate();
             return options;
           }),
           py::kw_only(),
           py::arg("temperature") = 0.0F,
           py::arg("top_k") = 0,
           py::arg("top_p") = 1.0F,
           py::arg("min_p") = 0.0F,
           py::arg("repetition_penalty") = 1.0F,
           py::arg("presence_penalty") = 0.0F,
           py::arg("frequency_penalty") = 0.0F,
           py::arg("logit_bias") = std::map<std::int64_t, float>{},
           py::arg("seed") = 0,
           py::arg("max_tokens") = 16,
           py::arg("min_tokens") = 0,
           py::arg("stop_token_ids") = std::vector<std::int64_t>{},
           py::arg("num_logprobs") = -1,
           py::arg("num_prompt_logprobs") = -1,
           py::arg("valid_vocab") = 0);

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
  d["prefill_h2d_bytes"] = p.prefill_h2d_bytes;
  return d;
}

py::list stop_trace(Engine& engine) {
  constexpr const char* kLanes[] = {"device", "cpu", "link", "scheduler"};
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
    spans.append(d);
  }
  return spans;
}

}  // namespace

void register_engine(py::module_& module) {
  register_options(module);
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
      .def("add",
           &Engine::add,
           py::arg("prompt"),
           py::arg("sampling"),
           py::kw_only(),
           py::arg("forced") = std::vector<std::int64_t>{},
           py::arg("decode_prompt_tokens") = 0,
           "Queues a request and returns its id.")
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
          [](const Engine& engine) {
            py::dict tiers;
            for (const TierUsage& usage : engine.memory()) {
              py::dict tier;
              tier["capacity"] = usage.capacity_bytes;
              tier["used"] = usage.used_bytes;
              tiers[py::str(usage.tier)] = tier;
            }
            return tiers;
          },
          "Capacity and use of each tier in bytes.")
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
