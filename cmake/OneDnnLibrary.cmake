# SPDX-License-Identifier: Apache-2.0
# oneDNN as the target DNNL::dnnl, if it is found: a pip package puts it under the environment's
# prefix.
find_package(Python COMPONENTS Interpreter)
set(hybridgen_onednn_hints "")
if(Python_Interpreter_FOUND)
  execute_process(COMMAND "${Python_EXECUTABLE}" -c "import sys; print(sys.prefix)"
                  OUTPUT_VARIABLE hybridgen_onednn_hints OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
# The package's config file asks for CMake 2.6 policies, which CMake 4 no longer has.
set(CMAKE_POLICY_VERSION_MINIMUM 3.10)
find_package(dnnl CONFIG QUIET HINTS "${hybridgen_onednn_hints}")
unset(CMAKE_POLICY_VERSION_MINIMUM)
