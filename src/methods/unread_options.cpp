// SPDX-License-Identifier: Apache-2.0
// Which options of the engine a method reads, and the refusal of those that it does not.
#include <algorithm>
#include <iterator>

#include "core/option_tables.h"
#include "hybridgen/core/error.h"
#include "hybridgen/methods/method.h"

namespace hybridgen {
namespace {

/// What a user set to something else than its default.
struct Said {
  std::string name;
  OptionValue value;
  OptionValue allowed;  ///< the default
};

template <typename Options>
void collect(const OptionTable<Options>& table, const Options& options, std::vector<Said>& said) {
  const Options defaults;
  for (const OptionRow<Options>& row : table.rows()) {
    const OptionValue value = row.get(options);
    if (is_same(value, row.get(defaults))) continue;
    said.push_back({row.info.name, value, row.info.default_value});
  }
}

// Those of the engine's own options that not every method reads.
std::vector<std::string> engines_own() { return {"device_tokens", "keys", "values"}; }

// Limits (bytes, threads, lengths) are not here: every method keeps them.
std::vector<Said> what_is_said(const EngineOptions& options) {
  std::vector<Said> said;
  HybridGenOptions others = hybridgen_options(options);
  collect(query_table(), std::exchange(others.query, {}), said);
  for (Said& each : said) each.name = each.name == "mode" ? "query" : "query." + each.name;
  collect(hybridgen_table(), others, said);
  for (const std::string& name : engines_own()) {
    const OptionRow<EngineOptions>& row = *engine_table().find(name);
    const OptionValue value = row.get(options);
    if (is_same(value, row.info.default_value)) continue;
    said.push_back({name, value, row.info.default_value});
  }
  return said;
}

// Of the method's own options, all but hybridgen's, which what_is_said has.
std::vector<Said> what_is_said_to(const MethodInfo& info, const EngineOptions& options) {
  std::vector<Said> said;
  for (const OptionInfo& own : info.tunables) {
    const auto given = options.method_config.find(own.name);
    if (info.name == "hybridgen" || given == options.method_config.end()) continue;
    if (is_same(given->second, own.default_value)) continue;
    said.push_back({own.name, given->second, own.default_value});
  }
  return said;
}

std::string joined(const std::vector<std::string>& names) {
  std::string list;
  for (const std::string& name : names) list += (list.empty() ? "" : ", ") + name;
  return list;
}

bool reads(const std::vector<std::string>& names, const std::string& said) {
  return std::ranges::find(names, said.substr(0, said.find('.'))) != names.end();
}

std::string who_reads(const std::string& option) {
  std::vector<std::string> readers;
  for (const MethodInfo& info : list_methods()) {
    if (reads(info.reads, option)) readers.push_back(info.name);
  }
  return joined(readers);
}

}  // namespace

std::vector<std::string> selective_options() {
  std::vector<std::string> names;
  for (const OptionInfo& option : hybridgen_table().described()) names.push_back(option.name);
  std::ranges::copy(engines_own(), std::back_inserter(names));
  return names;
}

std::vector<std::string> options_read_by(const Method& composition) {
  std::vector<std::string> names;
  const auto reads_k = [](const HostWork& work) {
    return std::holds_alternative<BySelectors>(choice_of(work));
  };
  if (reads_k(composition.work) || reads_k(composition.early_work)) {
    names.emplace_back("k");
  }
  if (steering_of(composition, SchedulerOptions{})) {
    names.emplace_back("scheduler");
  }
  if (composition.residency == Residency::kWindow) {
    names.emplace_back("device_tokens");
  }
  if (composition.offloads()) {
    names.insert(names.end(), {"keys", "values"});
  }
  return names;
}

void refuse_unread(const Method& method, const EngineOptions& options) {
  const std::vector<MethodInfo> infos = list_methods();
  const auto info = std::ranges::find(infos, method.name, &MethodInfo::name);
  const bool is_ours = info != infos.end();
  const std::vector<std::string> known = is_ours ? info->reads : options_read_by(method);
  std::string refusal;
  std::vector<std::string> others;
  const auto refuse = [&](const Said& said, const std::string& why) {
    if (!refusal.empty()) return others.push_back(said.name);
    const std::string start = message("[method ", method.name, "] ", said.name, " is ");
    refusal =
        message(start, text_of(said.value), "; allowed: ", text_of(said.allowed), ", as ", why);
  };
  for (const Said& said : what_is_said(options)) {
    // Naming the strategy that a method has anyway asks for nothing else.
    if (said.name == "strategy" && options.hybridgen.strategy == method.strategy) continue;
    const auto why = method.unread.find(said.name);
    if (!reads(known, said.name)) {
      const std::string way_out = "leave it out, or use a method that reads it: ";
      refuse(said, message(method.name, " does not read it; ", way_out, who_reads(said.name)));
    } else if (why != method.unread.end()) {
      refuse(said, why->second);
    }
  }
  for (const Said& said : is_ours ? what_is_said_to(*info, options) : std::vector<Said>{}) {
    const auto why = method.unread.find(said.name);
    if (why != method.unread.end()) refuse(said, why->second);
  }
  if (refusal.empty()) return;
  throw ConfigError(
      message(refusal, others.empty() ? "" : "; the same holds for " + joined(others)));
}

}  // namespace hybridgen
