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

constexpr const char* kAmounts =
    "None, 'auto', a share from 0.0 to 1.0, a number of bytes, or text such as '4GiB'";

bool read_amount(const OptionValue& value, PlaceAmount& amount) {
  using Kind = PlaceAmount::Kind;
  PlaceAmount found;
  std::int64_t whole = 0;
  if (value == OptionValue("auto")) {
    found.kind = Kind::kFitting;
  } else if (read_whole(value, {0, 1}, whole)) {  // nobody means a single byte
    found = PlaceAmount::of(static_cast<double>(whole));
  } else if (read_fraction(value, kShare, found.share)) {
    found.kind = Kind::kPart;
  } else if (read_bytes(value, found.bytes)) {
    found.kind = Kind::kBytes;
  } else if (!value.is_none()) {
    return false;
  }
  return amount = found, true;
}

OptionValue value_of_amount(const PlaceAmount& amount) {
  switch (amount.kind) {
    case PlaceAmount::Kind::kFitting:
      return OptionValue("auto");
    case PlaceAmount::Kind::kPart:
      return amount.share;
    case PlaceAmount::Kind::kBytes:
      return amount.bytes;
    case PlaceAmount::Kind::kUnsaid:
      break;
  }
  return {};
}

OptionRow<W> amount(std::string name, PlaceAmount W::* member) {
  return option(
      std::move(name), member, "int | float | str | None", kAmounts, read_amount, value_of_amount);
}

OptionRow<W> direct() {
  const auto get = [](const W& o) { return o.direct ? OptionValue(*o.direct) : OptionValue(); };
  const auto set = [](W& o, const OptionValue& v) {
    const auto* found = v.as<bool>();
    if (found == nullptr && !v.is_none()) return false;
    o.direct = found == nullptr ? std::nullopt : std::optional<bool>(*found);
    return true;
  };
  return {{"direct", "bool | None", "None, True or False", {}, {}}, get, set};
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
       format("embeddings", &W::embeddings).means("How the token table is held."),
       amount("device", &W::device)
           .means("How much of the layers' matrices is always on the device: a share of their "
                  "bytes, bytes, or what fits. None: all, or nothing if host is said. What lies "
                  "elsewhere comes to the device whenever its layer is used."),
       amount("host", &W::host)
           .means("How much lies in host memory, which on a CPU device is the device; the rest "
                  "lies on disk. None: what fits."),
       or_word(option("folder", &W::folder, "the path of a folder"), &W::folder, {}, {})
           .means("Where weights are packed that are to lie on disk and that no file has as they "
                  "are used; None: in the system's folder for temporary files."),
       direct().means("Whether the disk is read past the page cache; None: if host memory cannot "
                      "hold what lies there."),
       option("shared", &W::shared)
           .means("On a CPU device, all matrices, the token table and the head too, stay where "
                  "the checkpoint's files have them in the page cache: processes of one machine "
                  "hold them once. Files are to have them as they are used.")});
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
          "How weights are held and where they lie: norms, biases and learned positions always "
          "keep their dtype.",
          weight_table().described(),
          checked};
}

}  // namespace hybridgen
