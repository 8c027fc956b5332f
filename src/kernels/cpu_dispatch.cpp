// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <stdexcept>
#include <string>

#include "hybridgen/core/error.h"
#include "kernels/cpu_features.h"
#include "kernels/cpu_kernels.h"
#include "kernels/cpu_tables.h"

namespace hybridgen::kernels {

namespace {

#if defined(__x86_64__)
CpuKernels with_vnni(CpuKernels table) {
  table.isa = Isa::kAvx512Vnni;
  table.shadow_logits = avx512_vnni::shadow_logits;
  return table;
}

CpuKernels with_bf16(CpuKernels table) {
  table.isa = Isa::kAvx512Bf16;
  table.linear = avx512_bf16::bf16_linear;
  table.blocked_logits = avx512_bf16::blocked_logits;
  table.chosen_logits = avx512_bf16::chosen_logits;
  table.prefill_scratch = avx512_bf16::prefill_scratch;
  table.prefill_attention = avx512_bf16::prefill_attention;
  table.column_sums = avx512_bf16::column_sums;
  return table;
}

CpuKernels with_amx(CpuKernels table) {
  table.isa = Isa::kAmx;
  table.prepared_linear = {.rows_bytes = amx::prepared_rows_bytes,
                           .prepare_rows = amx::prepare_rows,
                           .outputs = amx::prepared_linear_outputs,
                           .scratch_bytes = amx::prepared_linear_scratch,
                           .multiply = amx::prepared_linear};
  table.blocked_logits = amx::blocked_logits;
  table.chosen_logits = amx::chosen_logits;
  table.prefill_scratch = amx::prefill_scratch;
  table.prefill_attention = amx::prefill_attention;
  table.column_sums = amx::column_sums;
  return table;
}
#endif

std::string supported_names() {
  std::string names;
  for (const Isa isa : supported_isas()) {
    if (!names.empty()) names += ", ";
    names += message('"', name_of(isa), '"');
  }
  return names;
}

}  // namespace

std::string_view name_of(Isa isa) {
  switch (isa) {
    case Isa::kPortable:
      return "portable";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx512Vnni:
      return "avx512_vnni";
    case Isa::kAvx512Bf16:
      return "avx512_bf16";
    case Isa::kAmx:
      return "amx";
  }
  throw std::logic_error("internal check failed: not an enumerator of Isa");
}

std::vector<Isa> supported_isas() {
  std::vector<Isa> isas;
  for (const Isa isa :
       {Isa::kPortable, Isa::kAvx2, Isa::kAvx512, Isa::kAvx512Vnni, Isa::kAvx512Bf16, Isa::kAmx}) {
    if (cpu_has(isa)) isas.push_back(isa);
  }
  return isas;
}

bool has_float16_arithmetic() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512fp16");
#else
  return false;
#endif
}

const CpuKernels& cpu_kernels(Isa isa) {
  if (!cpu_has(isa)) {
    throw ConfigError(message("[cpu_kernels] instruction set is \"",
                              name_of(isa),
                              "\", which this CPU or its operating system lacks; allowed here: ",
                              supported_names(),
                              "; choose one of these or \"auto\""));
  }
#if defined(__x86_64__)
  if (isa == Isa::kAmx) {
    static const CpuKernels table = with_amx(cpu_kernels(Isa::kAvx512Bf16));
    return table;
  }
  if (isa == Isa::kAvx512Bf16) {
    static const CpuKernels table = with_bf16(cpu_kernels(Isa::kAvx512Vnni));
    return table;
  }
  if (isa == Isa::kAvx512Vnni) {
    static const CpuKernels table = with_vnni(avx512::kTable);
    return table;
  }
  if (isa == Isa::kAvx512) return avx512::kTable;
  if (isa == Isa::kAvx2) return avx2::kTable;
#endif
  return portable::kTable;
}

Isa resolve_isa(std::string_view name) {
  std::string_view wanted = name;
  std::string_view origin = "the option";
  if (name == "auto") {
    const char* forced = std::getenv("HYBRIDGEN_ISA");
    if (forced == nullptr || *forced == '\0' || std::string_view(forced) == "auto") {
      return supported_isas().back();
    }
    wanted = forced;
    origin = "the environment's HYBRIDGEN_ISA";
  }
  for (const Isa isa : supported_isas()) {
    if (wanted == name_of(isa)) return isa;
  }
  throw ConfigError(message("[resolve_isa] instruction set is \"",
                            wanted,
                            "\" (from ",
                            origin,
                            "); allowed here: \"auto\", ",
                            supported_names(),
                            "; choose one of these"));
}

}  // namespace hybridgen::kernels
