# SPDX-License-Identifier: Apache-2.0
# SIMDe, for tests alone: HYBRIDGEN_HAS_SIMDE, and why_no_simde where that is OFF. The pip package
# simde-py brings it; Debian 12's lacks operations that our kernels use.
set(HYBRIDGEN_HAS_SIMDE OFF)
set(why_no_simde "")
if(NOT CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
  set(why_no_simde "SIMDe emulates x86 instructions here, and this CPU is ${CMAKE_SYSTEM_PROCESSOR}")
  return()
endif()
find_package(Python COMPONENTS Interpreter)
set(simde_hints "")
if(Python_Interpreter_FOUND)
  execute_process(COMMAND "${Python_EXECUTABLE}" -c "import simde_py; print(simde_py.get_include())"
                  OUTPUT_VARIABLE simde_hints OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
endif()
find_path(HYBRIDGEN_SIMDE_INCLUDE_DIR NAMES simde/x86/avx512/cvtus.h HINTS "${simde_hints}")
mark_as_advanced(HYBRIDGEN_SIMDE_INCLUDE_DIR)
if(HYBRIDGEN_SIMDE_INCLUDE_DIR)
  set(HYBRIDGEN_HAS_SIMDE ON)
else()
  set(why_no_simde "SIMDe 0.8 is not here, so AVX-512 and AMX are not emulated; run 'pip install \
simde-py==0.8.2.post1' or set HYBRIDGEN_SIMDE_INCLUDE_DIR, then configure again")
  message(STATUS "${why_no_simde}")
endif()
