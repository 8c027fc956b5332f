// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/methods/method.h"

#include <array>

#include "hybridgen/core/error.h"
#include "hybridgen/selection/token_selector.h"
#include "methods.h"

namespace hybridgen {
namespace {

using Builder = Method (*)(const EngineOptions&);
constexpr std::array<Builder, 2> kBuilders = {full_method, hybridgen_method};

}  // namespace

Method make_method(const EngineOptions& options) {
  std::vector<std::string> names;
  for (const Builder builder : kBuilders) {
    Method method = builder(options);
    if (method.name == options.method) {
      return method;
    }
    names.push_back(std::move(method.name));
  }
  std::string allowed;
  for (const std::string& name : names) {
    allowed += (allowed.empty() ? "" : ", ") + name;
  }
  const std::string nearest = nearest_name(options.method, names);
  throw ConfigError(message("[method] '",
                            options.method,
                            "' is not known; allowed: ",
                            allowed,
                            nearest.empty() ? "" : "; did you mean '" + nearest + "'?"));
}

std::vector<std::pair<std::string, std::string>> list_methods() {
  std::vector<std::pair<std::string, std::string>> methods;
  for (const Builder builder : kBuilders) {
    const Method method = builder(EngineOptions{});
    methods.emplace_back(method.name, method.summary);
  }
  return methods;
}

}  // namespace hybridgen
