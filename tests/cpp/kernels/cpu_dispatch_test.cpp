// SPDX-License-Identifier: Apache-2.0
#include <algorithm>

#include "forced_variable.h"
#include "hybridgen/core/error.h"
#include "kernel_test_support.h"

namespace hybridgen::kernels::test {
namespace {

class ForcedIsa : public ForcedVariable {
 public:
  explicit ForcedIsa(const char* value) : ForcedVariable("HYBRIDGEN_ISA", value) {}
};

std::string error_of(std::string_view name) {
  try {
    resolve_isa(name);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no error";
}

TEST(CpuDispatch, ThePortableKernelsAreAlwaysThereAndWeakest) {
  EXPECT_EQ(supported_isas().front(), Isa::kPortable);
  EXPECT_EQ(resolve_isa("portable"), Isa::kPortable);
}

TEST(CpuDispatch, EverySupportedTableIsCompleteAndNamesItself) {
  for (const Isa isa : supported_isas()) {
    const CpuKernels& table = cpu_kernels(isa);
    EXPECT_EQ(table.isa, isa);
    EXPECT_NE(table.linear, nullptr);
    EXPECT_NE(table.rms_norm, nullptr);
    EXPECT_NE(table.layer_norm, nullptr);
    EXPECT_NE(table.rotate, nullptr);
    EXPECT_NE(table.silu_gate, nullptr);
    EXPECT_NE(table.relu, nullptr);
    EXPECT_NE(table.add, nullptr);
    EXPECT_NE(table.scale_to_float, nullptr);
    EXPECT_NE(table.blocked_logits, nullptr);
    EXPECT_NE(table.chosen_logits, nullptr);
    EXPECT_NE(table.row_logits, nullptr);
    EXPECT_NE(table.shadow_logits, nullptr);
    EXPECT_NE(table.softmax_values, nullptr);
    EXPECT_NE(table.attend, nullptr);
    EXPECT_NE(table.merge_parts, nullptr);
    EXPECT_NE(table.softmax_weights, nullptr);
    EXPECT_NE(table.log_sum_exp, nullptr);
    EXPECT_NE(table.prefill_scratch, nullptr);
    EXPECT_NE(table.prefill_attention, nullptr);
    EXPECT_NE(table.column_sums, nullptr);
    EXPECT_NE(table.stored_key_logits, nullptr);
    EXPECT_NE(table.stored_key_rows, nullptr);
    EXPECT_NE(table.stored_value_rows, nullptr);
    EXPECT_NE(table.stored_value_sums, nullptr);
    EXPECT_NE(table.prepared_linear.rows_bytes, nullptr);
    EXPECT_NE(table.prepared_linear.prepare_rows, nullptr);
    EXPECT_NE(table.prepared_linear.outputs, nullptr);
    EXPECT_NE(table.prepared_linear.scratch_bytes, nullptr);
    EXPECT_NE(table.prepared_linear.multiply, nullptr);
  }
}

TEST(CpuDispatch, AutoTakesTheStrongestUnlessTheEnvironmentForcesOne) {
  {
    const ForcedIsa none(nullptr);
    EXPECT_EQ(resolve_isa("auto"), supported_isas().back());
  }
  const ForcedIsa portable("portable");
  EXPECT_EQ(resolve_isa("auto"), Isa::kPortable);
}

TEST(CpuDispatch, AnExplicitNameWinsOverTheEnvironment) {
  const ForcedIsa unusable("nonsense");
  EXPECT_EQ(resolve_isa("portable"), Isa::kPortable);
}

TEST(CpuDispatch, AnUnknownNameIsRefusedNamingThoseAvailable) {
  const std::string error = error_of("sse9");
  EXPECT_NE(error.find("\"sse9\""), std::string::npos) << error;
  for (const Isa isa : supported_isas()) {
    EXPECT_NE(error.find(std::string(name_of(isa))), std::string::npos) << error;
  }
  const ForcedIsa forced("sse9");
  EXPECT_NE(error_of("auto").find("HYBRIDGEN_ISA"), std::string::npos);
}

class OneIsa : public testing::TestWithParam<Isa> {
 protected:
  bool is_here() const {
    const std::vector<Isa> here = supported_isas();
    return std::find(here.begin(), here.end(), GetParam()) != here.end();
  }
};

TEST_P(OneIsa, IsRefusedNamingThoseAvailableWhereTheCpuLacksIt) {
  if (is_here()) GTEST_SKIP() << "this CPU has it; one without it would run this";
  EXPECT_THROW(cpu_kernels(GetParam()), ConfigError);
  EXPECT_NE(error_of(name_of(GetParam())).find("\"portable\""), std::string::npos);
}

TEST_P(OneIsa, ImpliesAllWeakerOnesAndIsTestedWithThem) {
  if (!is_here()) {
    GTEST_SKIP() << "no kernel of " << name_of(GetParam())
                 << " is tested here; a CPU with it would";
  }
  EXPECT_EQ(resolve_isa(name_of(GetParam())), GetParam());
  EXPECT_GT(supported_isas().size(), static_cast<std::size_t>(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(Every,
                         OneIsa,
                         testing::Values(Isa::kPortable,
                                         Isa::kAvx2,
                                         Isa::kAvx512,
                                         Isa::kAvx512Vnni,
                                         Isa::kAvx512Bf16,
                                         Isa::kAmx),
                         [](const auto& instance) { return std::string(name_of(instance.param)); });

}  // namespace
}  // namespace hybridgen::kernels::test
