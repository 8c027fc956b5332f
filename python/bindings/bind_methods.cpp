// SPDX-License-Identifier: Apache-2.0
// Presets of the scheduler, compositions of a user's own, and selectors written in Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "bindings.h"
#include "hybridgen/core/error.h"
#include "hybridgen/methods/method.h"
#include "parts/parts.h"
#include "scheduling/feedback_scheduler.h"

namespace py = pybind11;

namespace hybridgen::bindings {
namespace {

template <typename Enum, std::size_t N>
Enum parse(const char* option,
           const std::string& name,
           const std::array<std::pair<const char*, Enum>, N>& names) {
  std::string allowed;
  for (const auto& [text, value] : names) {
    if (name == text) {
      return value;
    }
    allowed += (allowed.empty() ? "" : ", ") + std::string(text);
  }
  throw ConfigError(message("[composition] ", option, " is '", name, "'; allowed: ", allowed));
}

constexpr std::array kResidencies = {std::pair{"all", Residency::kAll},
                                     std::pair{"window", Residency::kWindow},
                                     std::pair{"none", Residency::kNone}};
using Rule = std::tuple<std::string, std::string, std::string>;

HostWork parse_rule(const Rule& rule) {
  return parse_host_work(std::get<0>(rule), std::get<1>(rule), std::get<2>(rule));
}

// A selector whose decisions a Python object makes. Workers take the GIL for every call, so it is
// for trying ideas out, not for speed.
class PythonSelector final : public TokenSelector {
 public:
  PythonSelector(std::string name, SelectionStrategy strategy, py::object object)
      : name_(std::move(name)), strategy_(strategy), object_(std::move(object)) {}

  ~PythonSelector() override {
    const py::gil_scoped_acquire gil;
    object_ = py::object();
  }
  PythonSelector(const PythonSelector&) = delete;
  PythonSelector& operator=(const PythonSelector&) = delete;

  std::string_view name() const override { return name_; }
  SelectionStrategy strategy() const override { return strategy_; }

  std::span<const std::int32_t> plan(const PlanContext& context,
                                     std::vector<std::int32_t>& scratch) const override {
    const py::gil_scoped_acquire gil;
    const py::array_t<float> queries(static_cast<py::ssize_t>(context.queries.size()),
                                     context.queries.data());
    take(object_.attr("plan")(
             context.layer, context.kv_head, queries, context.num_offloaded, context.k),
         context.num_offloaded,
         scratch);
    return scratch;
  }

  void select(std::int64_t layer,
              std::int64_t query_head,
              std::span<const float> logits,
              std::span<std::int32_t> positions,
              std::span<float> values,
              std::vector<float>& /*scratch*/) const override {
    const py::gil_scoped_acquire gil;
    const py::array_t<float> array(static_cast<py::ssize_t>(logits.size()), logits.data());
    std::vector<std::int32_t> chosen;
    take(object_.attr("select")(layer, query_head, array, positions.size()),
         static_cast<std::int64_t>(logits.size()),
         chosen);
    if (chosen.size() != positions.size()) {
      throw ConfigError(message("[selector ",
                                name_,
                                "] select returned ",
                                chosen.size(),
                                " positions; allowed: exactly ",
                                positions.size()));
    }
    for (std::size_t i = 0; i < chosen.size(); ++i) {
      positions[i] = chosen[i];
      values[i] = logits[static_cast<std::size_t>(chosen[i])];
    }
  }

 private:
  // Positions out of [0, num_offloaded) are refused here, before they lose their upper half; their
  // order and number by the caller.
  void take(const py::object& returned,
            std::int64_t num_offloaded,
            std::vector<std::int32_t>& out) const {
    std::vector<std::int64_t> wide;
    try {
      wide = returned.cast<std::vector<std::int64_t>>();
    } catch (const py::cast_error&) {
      throw ConfigError(message("[selector ",
                                name_,
                                "] returned ",
                                std::string(py::str(py::type::of(returned))),
                                "; allowed: a sequence of integers"));
    }
    out.clear();
    for (const std::int64_t position : wide) {
      if (position < 0 || position >= num_offloaded) {
        throw ConfigError(message("[selector ",
                                  name_,
                                  "] position ",
                                  position,
                                  " was chosen; allowed: from 0 to ",
                                  num_offloaded - 1));
      }
      out.push_back(static_cast<std::int32_t>(position));
    }
  }

  std::string name_;
  SelectionStrategy strategy_;
  py::object object_;
};

SelectionStrategy parse_strategy(const std::string& name) {
  return parse("strategy",
               name,
               std::array{std::pair{"post", SelectionStrategy::kPostQkt},
                          std::pair{"pre", SelectionStrategy::kPreQkt}});
}

// The part that chooses by a strategy; none without a name.
void add_selector(Method& method, const std::string& name, SelectionStrategy strategy) {
  if (name.empty()) {
    return;
  }
  if (strategy == SelectionStrategy::kPreQkt && name == kPartialKeysSelector) {
    method.parts.push_back(partial_keys_part({}));
    return;
  }
  if (strategy_of_selector(name) != strategy) {
    throw ConfigError(
        message("[composition] selector '", name, "' does not select ", name_of(strategy), "-QKT"));
  }
  method.parts.push_back(named_selector_part(strategy, name));
}

// Work that asks the device's planner has one.
void add_planner(Method& method) {
  const auto asks = [](const HostWork& work) {
    return std::holds_alternative<ByPlanner>(choice_of(work));
  };
  if ((asks(method.work) || asks(method.early_work)) && !method.has(PartRole::kPlanner)) {
    method.parts.push_back(partial_keys_part({}));
  }
}

void register_scheduler(py::module_& module) {
  module.def("scheduler_preset_names",
             &scheduler_preset_names,
             "Names of the six schedules of the paper's ablation (§5.4).");
  module.def(
      "scheduler_preset",
      [](const std::string& name) {
        const SchedulerOptions options = scheduler_preset(name);
        py::dict d;
        d["adapt_k"] = options.adapt_k;
        d["adapt_strategy"] = options.adapt_strategy;
        d["strategy"] = std::string(name_of(options.initial_strategy));
        return d;
      },
      py::arg("name"),
      "What a preset sets.");
}

}  // namespace

// As long as the interface: one statement for each function and class.
void register_methods(py::module_& module) {
  register_scheduler(module);
  py::class_<Method>(
      module, "Composition", "A method of the user's own, made of the parts of ours.")
      .def(py::init([](const std::string& name,
                       const std::string& residency,
                       const Rule& rule,
                       const std::optional<Rule>& early_rule,
                       std::int64_t first_layer,
                       const std::string& strategy,
                       const std::string& selector,
                       const std::string& pre_selector,
                       const std::optional<std::int64_t>& window) {
             Method method;
             method.name = name;
             method.residency = parse("residency", residency, kResidencies);
             method.work = parse_rule(rule);
             method.early_work = early_rule ? parse_rule(*early_rule) : method.work;
             method.first_layer = first_layer;
             method.strategy = parse_strategy(strategy);
             add_selector(method, selector, SelectionStrategy::kPostQkt);
             add_selector(method, pre_selector, SelectionStrategy::kPreQkt);
             add_planner(method);
             if (window && *window < 0) {
               throw ConfigError(
                   message("[composition] window is ", *window, "; allowed: >= 0 tokens, or None"));
             }
             if (window) {
               method.window.tokens = [tokens = *window](const RequestShape&) { return tokens; };
               method.unread.emplace("device_tokens",
                                     message("the composition has a window of ",
                                             *window,
                                             " tokens; leave its window out to set it here"));
             }
             method.key_layout = natural_key_layout(method);
             check_composition(method);
             return method;
           }),
           py::kw_only(),
           py::arg("name"),
           py::arg("residency"),
           py::arg("rule"),
           py::arg("early_rule") = py::none(),
           py::arg("first_layer") = 0,
           py::arg("strategy") = "post",
           py::arg("selector") = "",
           py::arg("pre_selector") = "",
           py::arg("window") = py::none())
      .def_readonly("name", &Method::name)
      .def_property_readonly("reads", &options_read_by);
  module.def(
      "register_selector",
      [](const std::string& name, const std::string& strategy, py::object make) {
        const SelectionStrategy parsed = parse_strategy(strategy);
        // The factory outlives the interpreter's own order of destruction: never released.
        auto* factory = new py::object(std::move(make));  // NOLINT(cppcoreguidelines-owning-memory)
        register_selector(name, parsed, [name, parsed, factory](const SelectorShape& shape) {
          const py::gil_scoped_acquire gil;
          py::object object =
              (*factory)(py::arg("num_layers") = shape.num_layers,
                         py::arg("num_kv_heads") = shape.num_kv_heads,
                         py::arg("num_heads") = shape.num_kv_heads * shape.query_heads_per_kv_head,
                         py::arg("head_dim") = shape.head_dim,
                         py::arg("max_offloaded") = shape.max_offloaded);
          return std::make_unique<PythonSelector>(name, parsed, std::move(object));
        });
      },
      py::arg("name"),
      py::arg("strategy"),
      py::arg("make"),
      "Adds a selector; `make(**shape)` is called once per request.");
}

}  // namespace hybridgen::bindings
