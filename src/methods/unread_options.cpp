// SPDX-License-Identifier: Apache-2.0
// Which options of the engine a method reads, and the refusal of those that it does not.
#include <algorithm>
#include <array>

#include "hybridgen/core/error.h"
#include "hybridgen/methods/method.h"
#include "methods/method_config.h"

namespace hybridgen {
namespace {

std::string quoted(std::string_view text) { return message("'", text, "'"); }

std::string text_of(const WindowSetting& window) {
  if (window.count) {
    return std::to_string(*window.count);
  }
  return window.share ? message(*window.share) : "'auto'";
}

struct Option {
  const char* name;     ///< in EngineOptions
  const char* written;  ///< by users of the Python package
  bool (*is_default)(const EngineOptions&);
  std::string (*value)(const EngineOptions&);
};

template <auto Member>
bool is_default(const EngineOptions& options) {
  return options.*Member == EngineOptions{}.*Member;
}

bool is_unsteered(const EngineOptions& options) { return !options.scheduler; }

// Limits (bytes, threads, lengths) are not here: every method keeps them.
const std::array kOptions = {
    Option{"query",
           "query",
           is_default<&EngineOptions::query>,
           [](const EngineOptions& o) { return quoted(name_of(o.query)); }},
    Option{"spec_first_layer",
           "QueryConfig(first_layer=)",
           is_default<&EngineOptions::spec_first_layer>,
           [](const EngineOptions& o) { return std::to_string(o.spec_first_layer); }},
    Option{"guess_norm",
           "QueryConfig(norm=)",
           is_default<&EngineOptions::guess_norm>,
           [](const EngineOptions& o) { return quoted(o.guess_norm); }},
    Option{"guess_source",
           "QueryConfig(source=)",
           is_default<&EngineOptions::guess_source>,
           [](const EngineOptions& o) { return quoted(o.guess_source); }},
    Option{"selector",
           "selector",
           is_default<&EngineOptions::selector>,
           [](const EngineOptions& o) { return quoted(o.selector); }},
    Option{"pre_selector",
           "pre_selector",
           is_default<&EngineOptions::pre_selector>,
           [](const EngineOptions& o) { return quoted(o.pre_selector); }},
    Option{"strategy",
           "SchedulerConfig(strategy=)",
           is_default<&EngineOptions::strategy>,
           [](const EngineOptions& o) { return quoted(name_of(o.strategy)); }},
    Option{"k",
           "SchedulerConfig(k=)",
           is_default<&EngineOptions::k>,
           [](const EngineOptions& o) { return o.k.text(); }},
    Option{
        "scheduler",
        "SchedulerConfig(k=None)",
        is_unsteered,
        [](const EngineOptions& o) { return std::string(o.scheduler ? "steering K" : "not set"); }},
    Option{"scoring",
           "KVConfig(scoring=)",
           is_default<&EngineOptions::scoring>,
           [](const EngineOptions& o) { return quoted(o.scoring); }},
    Option{"candidates_per_k",
           "KVConfig(candidates_per_k=)",
           is_default<&EngineOptions::candidates_per_k>,
           [](const EngineOptions& o) {
             return o.candidates_per_k == 0.0 ? "None" : message(o.candidates_per_k);
           }},
    Option{"device_tokens",
           "KVConfig(device_tokens=)",
           is_default<&EngineOptions::device_tokens>,
           [](const EngineOptions& o) { return text_of(o.device_tokens); }}};

std::string joined(const std::vector<std::string>& names) {
  std::string list;
  for (const std::string& name : names) {
    list += (list.empty() ? "" : ", ") + name;
  }
  return list;
}

std::string way_out(const Option& option) {
  std::vector<std::string> readers;
  for (const MethodInfo& info : list_methods()) {
    if (std::ranges::find(info.reads, option.name) != info.reads.end()) {
      readers.push_back(info.name);
    }
  }
  return message(
      "leave ", option.written, " out, or use a method that reads it: ", joined(readers));
}

}  // namespace

std::vector<std::string> selective_options() {
  std::vector<std::string> names;
  names.reserve(kOptions.size());
  for (const Option& option : kOptions) {
    names.emplace_back(option.name);
  }
  return names;
}

std::vector<std::string> options_read_by(const Method& composition) {
  std::vector<std::string> names;
  if (composition.rule.choice == HostChoice::kSelector ||
      composition.early_rule.choice == HostChoice::kSelector) {
    names.emplace_back("k");
  }
  if (steering_of(composition, SchedulerOptions{})) {
    names.emplace_back("scheduler");
  }
  if (composition.residency == Residency::kWindow) {
    names.emplace_back("device_tokens");
  }
  return names;
}

void refuse_unread(const Method& method, const EngineOptions& options) {
  const std::vector<MethodInfo> infos = list_methods();
  const auto info = std::ranges::find(infos, method.name, &MethodInfo::name);
  const std::vector<std::string> reads =
      info == infos.end() ? options_read_by(method) : info->reads;
  const EngineOptions defaults;
  std::string refusal;
  std::vector<std::string> others;
  const auto refuse = [&](const std::string& name,
                          const std::string& value,
                          const std::string& allowed,
                          const std::string& why) {
    if (!refusal.empty()) {
      others.push_back(name);
      return;
    }
    refusal = message(
        "[method ", method.name, "] ", name, " is ", value, "; allowed: ", allowed, ", as ", why);
  };
  for (const Option& option : kOptions) {
    const std::string name = option.name;
    const std::string value = option.value(options);
    // Naming the strategy that a method has anyway asks for nothing else.
    if (option.is_default(options) || (name == "strategy" && options.strategy == method.strategy)) {
      continue;
    }
    std::string why;
    if (std::ranges::find(reads, name) == reads.end()) {
      why = message(method.name, " does not read it; ", way_out(option));
    } else if (const auto found = method.unread.find(name); found != method.unread.end()) {
      why = found->second;
    } else if (name == "k" && options.scheduler) {
      why = "the scheduler steers K; set k_min and k_max instead";
    } else {
      continue;
    }
    refuse(name, value, option.value(defaults), why);
  }
  for (const Tunable& own : info == infos.end() ? std::vector<Tunable>{} : info->tunables) {
    const auto given = options.method_config.find(own.name);
    const auto why = method.unread.find(own.name);
    if (given != options.method_config.end() && why != method.unread.end() &&
        !is_same(given->second, own.default_value)) {
      refuse(own.name, text_of(given->second), text_of(own.default_value), why->second);
    }
  }
  if (!refusal.empty()) {
    throw ConfigError(
        message(refusal, others.empty() ? "" : "; the same holds for " + joined(others)));
  }
}

}  // namespace hybridgen
