// SPDX-License-Identifier: Apache-2.0
// The tables of the structs in core. Methods have their own beside them.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "core/option_table.h"
#include "hybridgen/core/engine_options.h"
#include "hybridgen/core/model_config.h"
#include "hybridgen/core/weight_options.h"

namespace hybridgen {

const OptionTable<SchedulerOptions>& scheduler_table();
const OptionTable<QueryOptions>& query_table();
const OptionTable<HybridGenOptions>& hybridgen_table();
/// With the rows of hybridgen_table, which set EngineOptions::hybridgen.
const OptionTable<EngineOptions>& engine_table();
const OptionTable<ModelConfig>& model_table();
const OptionTable<WeightOptions>& weight_table();
/// Folder and size of LowerTierOptions, which one option has together.
const OptionTable<LowerTierOptions>& disk_table();

/// Options that users give together: a class of the Python package.
struct OptionClass {
  std::string name;
  std::string method;  ///< whose own options they are; empty: no method's
  std::string summary;
  std::vector<OptionInfo> options;
  /// ConfigError unless the values are allowed, by themselves and together; the values as the
  /// table writes them: bytes as a number, numbers as the option's kind.
  std::function<OptionMap(const OptionMap&)> checked;
};

/// `given`, with numbers as the options' own kind and sizes in bytes.
OptionMap as_written(const std::vector<OptionInfo>& options, const OptionMap& given);

/// ConfigError for options that are not allowed together: of hybridgen, or of an engine.
void check_together(std::string_view operation, const HybridGenOptions& options);
void check_together(std::string_view operation, const EngineOptions& options);

OptionClass scheduler_class();
OptionClass query_class();
OptionClass weight_class();
/// KVConfig, SchedulerConfig, QueryConfig, WeightConfig, CpuConfig, Disk and LLM.
std::vector<OptionClass> core_option_classes();

}  // namespace hybridgen
