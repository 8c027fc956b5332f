// SPDX-License-Identifier: Apache-2.0
#include "hybridgen/core/engine_options.h"

#include "core/option_tables.h"

namespace hybridgen {
namespace {

using E = EngineOptions;
using Row = OptionRow<E>;

constexpr const char* kSize =
    "a number of bytes from 1 to 1 EiB, or text such as '64GiB' or '500MB'";
constexpr Whole kThreads{1, 4096};
constexpr Whole kNodes{0, 1023};  // Linux knows at most 1024

Row bytes(std::string name, std::int64_t E::* member) {
  const Row row = option(std::move(name), member, kBytesType, kSize, read_bytes, std::identity());
  Row size = or_word(row, member, 0, "auto");
  size.info.type = kBytesType;
  return size;
}

Row threads(std::string name, std::int64_t E::* member) {
  return or_word(option(std::move(name), member, kThreads), member, 0, "auto");
}

bool read_window(const OptionValue& value, WindowSetting& window) {
  std::int64_t count = 0;
  double share = 0.0;
  if (value == OptionValue("auto")) {
    window = {};
  } else if (read_whole(value, {}, count)) {
    window = {.count = count, .share = {}};
  } else if (read_fraction(value, kShare, share)) {
    window = {.count = {}, .share = share};
  } else {
    return false;
  }
  return true;
}

OptionValue value_of(const WindowSetting& window) {
  if (window.count) return *window.count;
  return window.share ? OptionValue(*window.share) : OptionValue("auto");
}

Row precision(std::string name, KvPrecision E::* member) {
  return option(
      std::move(name),
      member,
      {{"full", KvPrecision::kFull}, {"int8", KvPrecision::kInt8}, {"int4", KvPrecision::kInt4}});
}

bool read_map(const OptionValue& value, OptionMap& map) {
  const auto* found = value.as<OptionMap>();
  if (found != nullptr) map = *found;
  return found != nullptr;
}

// "auto", "off" or a node: two members.
Row numa() {
  const auto get = [](const E& o) {
    if (o.numa_node != -1) return OptionValue(o.numa_node);
    return OptionValue(o.divides_heads ? "auto" : "off");
  };
  const auto set = [](E& o, const OptionValue& v) {
    std::int64_t node = -1;
    const bool divides = v == OptionValue("auto");
    if (!divides && v != OptionValue("off") && !read_whole(v, kNodes, node)) return false;
    o.numa_node = static_cast<int>(node);
    o.divides_heads = divides;
    return true;
  };
  return {{"numa", "str | int", "'auto', 'off' or " + kNodes.text(), {}, {}}, get, set};
}

// "auto", 0 for none, or a size.
OptionRow<LowerTierOptions> cxl() {
  const auto get = [](const LowerTierOptions& o) {
    return o.cxl_bytes == -1 ? OptionValue("auto") : OptionValue(o.cxl_bytes);
  };
  const auto set = [](LowerTierOptions& o, const OptionValue& v) {
    std::int64_t size = v == OptionValue("auto") ? -1 : 0;
    if (size == 0 && v != OptionValue(0) && !read_bytes(v, size)) return false;
    o.cxl_bytes = size;
    return true;
  };
  return {{"cxl", kBytesType, "'auto', 0 (none) or " + std::string(kSize), {}, {}}, get, set};
}

// Folder and size together, or nothing.
OptionRow<LowerTierOptions> disk() {
  const auto get = [](const LowerTierOptions& o) {
    return o.disk_path.empty() ? OptionValue() : OptionValue(disk_table().values(o));
  };
  const auto set = [](LowerTierOptions& o, const OptionValue& v) {
    LowerTierOptions changed = o;
    changed.disk_path.clear();
    changed.disk_bytes = 0;
    if (!v.is_none()) {
      const auto* given = v.as<OptionMap>();
      if (given == nullptr || given->size() != disk_table().rows().size()) return false;
      disk_table().assign("Disk", changed, *given);
    }
    o = std::move(changed);
    return true;
  };
  return {
      {"disk", "Disk | None", "None or a hybridgen.Disk: a folder and a size", {}, {}}, get, set};
}

std::vector<OptionRow<LowerTierOptions>> lower_tier_rows() {
  using L = LowerTierOptions;
  return {
      cxl().means(
          "Memory for offloaded tokens that is slower than the CPUs' own, at most: of a CXL "
          "expander, or of another socket. \"auto\": what `hybridgen.info()` calls so, if "
          "there is any."),
      or_word(option("cxl_node", &L::cxl_node, kNodes), &L::cxl_node, -1, {})
          .means("The memory node that ``cxl`` lies on, from ``numa_nodes`` in "
                 "``hybridgen.info()``; None: all that are slower."),
      disk().means("Where offloaded tokens go that no memory has room for; on a command line "
                   "``FOLDER:SIZE``."),
      option("placement",
             &L::placement,
             {{"semantic", KvPlacement::kSemantic},
              {"interleave", KvPlacement::kInterleave},
              {"first_touch", KvPlacement::kFirstTouch}})
          .means("What lies in which tier: keys, which the CPU reads, in DRAM, and values below "
                 "as soon as DRAM is full; page by page in both, whatever they hold; or DRAM as "
                 "long as there is any."),
      option("shrink_windows", &L::shrink_windows)
          .means("Whether running requests give up tokens on the device, down to 256, so that a "
                 "waiting one can run. Their text then depends on what runs beside them.")};
}

std::vector<Row> engine_rows() {
  using T = TestSwitches;
  std::vector<Row> rows = {
      option("method", &E::method, "a method's name").means("How old tokens count."),
      option("method_config",
             &E::method_config,
             "Mapping[str, Any]",
             "options by name",
             read_map,
             std::identity())
          .means("Options of that method."),
      option("device_tokens",
             &E::device_tokens,
             "str | int | float",
             "'auto', an int in [0, 2147483647] (tokens), or a float in [0.0, 1.0] (share of the "
             "prompt)",
             read_window,
             [](const WindowSetting& window) { return value_of(window); })
          .means("The newest tokens of a request that stay on the device: a number of tokens, a "
                 "share of its prompt from 0.0 to 1.0, or as many as fit. ``1`` is one token, "
                 "``1.0`` the whole prompt. A share above 0.0 never means fewer than 256 tokens. "
                 "What fits follows from the prompt, the new tokens and the device's whole budget; "
                 "while others hold it, a request waits."),
      precision("keys", &E::key_precision)
          .means("How keys of offloaded tokens lie in host memory: as the model computes them, or "
                 "in 8 or 4 bits, from the moment they leave the device. Scans read these codes. "
                 "Tokens on the device and the first four tokens stay as they are."),
      precision("values", &E::value_precision)
          .means("The same for values, which are widened as they are gathered."),
      bytes("dram", &E::dram_bytes)
          .means("Host memory for offloaded tokens at most: bytes, or text such as ``\"64GiB\"``."),
      bytes("device_bytes", &E::device_bytes)
          .means("Device memory that requests, and on a device of its own the model's operations, "
                 "may take beside the weights."),
      threads("threads", &E::threads).means("Threads that score offloaded tokens."),
      threads("device_threads", &E::device_threads)
          .means("Threads of the device's part when the device is the CPU."),
      numa().means(
          "Where offloaded tokens lie and which CPUs score them. \"auto\" divides key/value heads "
          "over the memory nodes of this machine, if it has several with CPUs that this process "
          "may use: a head's tokens lie on one node, whose CPUs score them first; "
          "`LLM.numa_parts` shows it. \"off\" leaves both to the operating system. A number is "
          "one node, with CPUs, from ``numa_nodes`` in ``hybridgen.info()``, for all of them."),
      option("isa", &E::isa, "'auto' or a name that hybridgen.info() lists under isas")
          .means("Instruction set."),
      option("math",
             &E::math,
             {{"auto", Math::kAuto}, {"kernels", Math::kKernels}, {"aten", Math::kAten}})
          .means("Whose dense operations."),
      or_word(option("max_model_len", &E::max_model_len, Whole{1}), &E::max_model_len, 0, {})
          .means("Prompt and new tokens of a request at most; None: the model's own limit."),
      option("max_num_batched_tokens", &E::prefill_chunk, Whole{1})
          .means("Prompt tokens that pass through the model together at most."),
      option("micro_batch", &E::micro_batch, Whole{1})
          .means("Decode rows that pass through a layer together."),
      option("max_num_seqs", &E::max_batch, Whole{1})
          .means("Requests that run at the same time at most; others wait."),
      lifted(option("synchronous", &T::synchronous), &E::test).means("Test: wait for host jobs."),
      lifted(option("random_delay_us", &T::random_delay_us, Whole{}), &E::test)
          .means("Test: sleep up to this long at seams."),
      lifted(option("oracle_proxy", &T::oracle_proxy), &E::test).means("Test: guess right."),
      lifted(option("invented_nodes", &T::invented_nodes, Whole{}), &E::test)
          .means("Test: as if workers had this many memory nodes."),
      lifted(or_word(option("invented_cxl_node", &T::invented_cxl_node, kNodes),
                     &T::invented_cxl_node,
                     -1,
                     {}),
             &E::test)
          .means("Test: as if this memory node were slower than the CPUs' own."),
      lifted(
          option("cxl_bytes_per_second", &T::cxl_bytes_per_second, Whole{0, std::int64_t{1} << 50}),
          &E::test)
          .means("Test: reads of the cxl tier take at least the time of this rate.")};
  for (const auto& row : lower_tier_rows()) rows.push_back(lifted(row, &E::tiers));
  for (const auto& row : hybridgen_table().rows()) rows.push_back(lifted(row, &E::hybridgen));
  return rows;
}

OptionClass class_of(std::string name,
                     std::string summary,
                     const std::vector<std::string>& options) {
  std::vector<OptionInfo> infos;
  infos.reserve(options.size());
  for (const std::string& option : options) infos.push_back(engine_table().find(option)->info);
  const auto checked = [name, infos](const OptionMap& given) {
    check_together(name, engine_table().read(name, given));
    return as_written(infos, given);
  };
  return {std::move(name), "", std::move(summary), infos, checked};
}

// Checked by itself, so that a Disk says what is wrong where it is made.
OptionClass disk_class() {
  const auto checked = [](const OptionMap& given) {
    static_cast<void>(disk_table().read("Disk", given));
    return as_written(disk_table().described(), given);
  };
  return {"Disk", "", "A folder for offloaded tokens.", disk_table().described(), checked};
}

}  // namespace

const OptionTable<LowerTierOptions>& disk_table() {
  static const OptionTable<LowerTierOptions> table(
      {option("path", &LowerTierOptions::disk_path, "the path of a folder")
           .means("A folder that files may be made in."),
       option("size", &LowerTierOptions::disk_bytes, kBytesType, kSize, read_bytes, std::identity())
           .means("Bytes of it at most.")});
  return table;
}

const OptionTable<EngineOptions>& engine_table() {
  static const OptionTable<EngineOptions> table(engine_rows());
  return table;
}

void check_together(std::string_view operation, const EngineOptions& options) {
  if (options.tiers.cxl_node >= 0 && options.tiers.cxl_bytes == 0) {
    engine_table().refuse(
        operation, options, "cxl_node", "cxl=0 uses no such node; leave one of the two out");
  }
  check_together(operation, options.hybridgen);
}

void EngineOptions::validate() const {
  engine_table().check("engine options", *this);
  check_together("engine options", *this);
}

OptionMap as_written(const std::vector<OptionInfo>& options, const OptionMap& given) {
  OptionMap written = given;
  for (const OptionInfo& option : options) {
    const auto found = written.find(option.name);
    if (found == written.end()) continue;
    std::int64_t bytes = 0;
    if (option.type == kBytesType && read_bytes(found->second, bytes)) found->second = bytes;
    const auto* whole = found->second.as<std::int64_t>();
    if (whole == nullptr || option.type.find("int") != std::string::npos) continue;
    found->second = static_cast<double>(*whole);
  }
  return written;
}

std::vector<OptionClass> core_option_classes() {
  return {class_of("KVConfig",
                   "Where the keys and values of past tokens are kept.",
                   {"device_tokens",
                    "dram",
                    "cxl",
                    "cxl_node",
                    "disk",
                    "placement",
                    "shrink_windows",
                    "keys",
                    "values",
                    "scoring",
                    "candidates_per_k"}),
          scheduler_class(),
          query_class(),
          weight_class(),
          class_of("CpuConfig",
                   "Threads, memory node and instruction set of the host's part.",
                   {"threads", "device_threads", "numa", "isa"}),
          disk_class(),
          class_of("LLM",
                   "Limits of an engine.",
                   {"max_model_len", "max_num_seqs", "max_num_batched_tokens", "micro_batch"})};
}

}  // namespace hybridgen
