// SPDX-License-Identifier: Apache-2.0
// The table of coded products of one instruction set.
#pragma once

#include "kernels/coded_multiply-inl.h"
#include "kernels/coded_prepare-inl.h"
#include "kernels/coded_tables.h"

namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE {

constinit const CodedKernels kCodedTable = {
    .rows_bytes = prepared_bytes,
    .prepare_rows = prepare_rows,
    .multiply = multiply_coded,
    .restore_rows = restore_rows,
};

}  // namespace hybridgen::kernels::HYBRIDGEN_ISA_NAMESPACE
