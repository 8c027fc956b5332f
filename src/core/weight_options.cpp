// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/weight_options.h"

#include "core/option_tables.h"

namespace hybridgen {
namespace {

using W = WeightOptions;

OptionRow<W> format(std::string name, WeightFormat W::* member) {
  return option(std::move(name),
                member,
                {{"auto", WeightFormat::kAuto},
                 {"int8", WeightFormat::kInt8},
                 {"int4", WeightFormat::kInt4}});
}

OptionRow<W> group() {
  const auto read = [](const OptionValue& value, std::int64_t& group) {
    std::int64_t found = 0;
    if (!read_whole(value, {32, 128}, found)) return false;
    if (found != 32 && found != 64 && found != 128) return false;
    return group = found, true;
  };
  return option("group", &W::group, "int", "32, 64 or 128", read, std::identity());
}

}  // namespace

const OptionTable<WeightOptions>& weight_table() {
  static const OptionTable<WeightOptions> table(
      {format("format", &W::format)
           .means("How the matrices of the layers are held: as the checkpoint has them, in 8 bits "
                  "with a scale per output channel, or in 4 bits with one per group."),
       group().means("Inputs that share a scale, in 4 bits."),
       option("min_max", &W::min_max)
           .means("In 4 bits, steps from a group's smallest weight to its largest (FlexGen's); "
                  "else symmetric ones."),
       format("head", &W::head)
           .means("How the output head is held. Where it is the token table too, embeddings has "
                  "to say the same."),
       format("embeddings", &W::embeddings).means("How the token table is held.")});
  return table;
}

void WeightOptions::validate() const { weight_table().check("WeightConfig", *this); }

OptionClass weight_class() {
  const auto checked = [](const OptionMap& given) {
    static_cast<void>(weight_table().read("WeightConfig", given));
    return as_written(weight_table().described(), given);
  };
  return {"WeightConfig",
          "",
          "How weights are held: norms, biases and learned positions always keep their dtype.",
          weight_table().described(),
          checked};
}

}  // namespace hybridgen
