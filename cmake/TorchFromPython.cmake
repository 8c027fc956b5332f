# SPDX-License-Identifier: Apache-2.0
# LibTorch as the installed Python package `torch` ships it: the targets hybridgen_torch and
# hybridgen_torch_python, and HYBRIDGEN_TORCH_VERSION.
#
# Not find_package(Torch): beside a CUDA build of torch that demands a CUDA toolkit, although the
# engine includes no CUDA header, overwrites CMAKE_CUDA_ARCHITECTURES, and leaves libtorch_python
# out. https://github.com/pytorch/pytorch/issues/115937

set(HYBRIDGEN_TORCH_ROOT "" CACHE PATH "Folder of the torch package (empty: ask Python)")
set(torch_root "${HYBRIDGEN_TORCH_ROOT}")
if(NOT torch_root)
  find_package(Python 3.11 REQUIRED COMPONENTS Interpreter)
  execute_process(
    COMMAND
      "${Python_EXECUTABLE}" -c
      "import importlib.util, os; s = importlib.util.find_spec('torch'); print(os.path.dirname(s.origin) if s else '')"
    OUTPUT_VARIABLE torch_root
    OUTPUT_STRIP_TRAILING_WHITESPACE)
endif()
if(NOT EXISTS "${torch_root}/include/torch/csrc/api/include/torch/torch.h")
  message(FATAL_ERROR "${Python_EXECUTABLE} has no torch package with headers; install torch>=2.10 "
                      "there, point Python_EXECUTABLE elsewhere, or set HYBRIDGEN_TORCH_ROOT")
endif()

file(STRINGS "${torch_root}/version.py" torch_version_line REGEX "^__version__ = ")
string(REGEX MATCH "[0-9][^']*" HYBRIDGEN_TORCH_VERSION "${torch_version_line}")
if(HYBRIDGEN_TORCH_VERSION VERSION_LESS 2.10)
  message(FATAL_ERROR "torch ${HYBRIDGEN_TORCH_VERSION} in ${torch_root} is too old; allowed: "
                      "torch>=2.10; upgrade it in that environment")
endif()

# Headers are SYSTEM: warnings in them are not ours to fix.
add_library(hybridgen_torch INTERFACE IMPORTED GLOBAL)
target_include_directories(
  hybridgen_torch SYSTEM INTERFACE "${torch_root}/include"
                                   "${torch_root}/include/torch/csrc/api/include")
# LibTorch's headers then include each operator's own header, not the one that declares all of them.
target_compile_definitions(hybridgen_torch INTERFACE AT_PER_OPERATOR_HEADERS)
foreach(name c10 torch_cpu torch)
  target_link_libraries(hybridgen_torch INTERFACE "${torch_root}/lib/lib${name}.so")
endforeach()
set(HYBRIDGEN_TORCH_HAS_CUDA OFF)
if(EXISTS "${torch_root}/lib/libtorch_cuda.so")
  set(HYBRIDGEN_TORCH_HAS_CUDA ON)
  # It registers the CUDA device when loaded; no symbol of ours refers to it.
  target_link_libraries(hybridgen_torch INTERFACE "-Wl,--no-as-needed"
                                                  "${torch_root}/lib/libc10_cuda.so"
                                                  "${torch_root}/lib/libtorch_cuda.so")
endif()

add_library(hybridgen_torch_python INTERFACE)
target_link_libraries(hybridgen_torch_python INTERFACE "${torch_root}/lib/libtorch_python.so"
                                                       hybridgen_torch)
