# SPDX-License-Identifier: Apache-2.0
# CUDA, oneDNN, libnuma and Google Benchmark: used where they are found, demanded with ON, ignored
# with OFF. Sets HYBRIDGEN_HAS_CUDA, _ONEDNN, _NUMA and _BENCHMARK to ON or OFF.

foreach(option HYBRIDGEN_CUDA HYBRIDGEN_WITH_ONEDNN HYBRIDGEN_WITH_NUMA HYBRIDGEN_BENCHMARKS)
  if(NOT "${${option}}" MATCHES "^(AUTO|ON|OFF)$")
    message(FATAL_ERROR "${option} is '${${option}}'; allowed: AUTO, ON, OFF")
  endif()
endforeach()

# ---- CUDA: our kernels include no Torch header, so they compile beside a CPU-only Torch too -------
set(HYBRIDGEN_HAS_CUDA OFF)
if(NOT HYBRIDGEN_CUDA STREQUAL "OFF")
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(CMAKE_CUDA_ARCHITECTURES 80)  # only for CMake's own compiler check
  endif()
  include(CheckLanguage)
  check_language(CUDA)
  if(CMAKE_CUDA_COMPILER)
    enable_language(CUDA)
    find_package(CUDAToolkit)
  endif()
  if(CMAKE_CUDA_COMPILER AND TARGET CUDA::cudart_static)
    set(HYBRIDGEN_HAS_CUDA ON)
  elseif(HYBRIDGEN_CUDA STREQUAL "ON")
    message(FATAL_ERROR "HYBRIDGEN_CUDA=ON needs nvcc and cudart_static; put nvcc on PATH, set "
                        "CUDACXX, or build with HYBRIDGEN_CUDA=OFF")
  endif()
endif()
if(HYBRIDGEN_HAS_CUDA AND NOT HYBRIDGEN_CUDA_ARCHITECTURES)
  set(HYBRIDGEN_CUDA_ARCHITECTURES 80 90)
  if(CMAKE_CUDA_COMPILER_VERSION VERSION_GREATER_EQUAL 12.8)
    list(APPEND HYBRIDGEN_CUDA_ARCHITECTURES 120)
  endif()
endif()

# ---- oneDNN -----------------------------------------------------------------------------------------
set(HYBRIDGEN_HAS_ONEDNN OFF)
if(NOT HYBRIDGEN_WITH_ONEDNN STREQUAL "OFF")
  include(OneDnnLibrary)
  if(TARGET DNNL::dnnl)
    set(HYBRIDGEN_HAS_ONEDNN ON)
  elseif(HYBRIDGEN_WITH_ONEDNN STREQUAL "ON")
    message(FATAL_ERROR "HYBRIDGEN_WITH_ONEDNN=ON, but CMake finds no oneDNN; run 'pip install "
                        "onednn-devel-cpu-gomp==2023.2.0' or set dnnl_DIR")
  endif()
endif()

# ---- libnuma ----------------------------------------------------------------------------------------
set(HYBRIDGEN_HAS_NUMA OFF)
if(NOT HYBRIDGEN_WITH_NUMA STREQUAL "OFF")
  include(NumaLibrary)
  if(TARGET hybridgen_numa)
    set(HYBRIDGEN_HAS_NUMA ON)
  elseif(HYBRIDGEN_WITH_NUMA STREQUAL "ON")
    message(FATAL_ERROR "HYBRIDGEN_WITH_NUMA=ON, but CMake finds no libnuma; install libnuma-dev or "
                        "set HYBRIDGEN_NUMA_INCLUDE_DIR and HYBRIDGEN_NUMA_LIBRARY")
  endif()
endif()

# ---- Google Benchmark: for benchmarks/cpp only -------------------------------------------------------
set(HYBRIDGEN_HAS_BENCHMARK OFF)
if(NOT HYBRIDGEN_BENCHMARKS STREQUAL "OFF")
  find_package(benchmark QUIET)
  if(TARGET benchmark::benchmark_main)
    set(HYBRIDGEN_HAS_BENCHMARK ON)
  elseif(HYBRIDGEN_BENCHMARKS STREQUAL "ON")
    message(FATAL_ERROR "HYBRIDGEN_BENCHMARKS=ON, but CMake finds no Google Benchmark; install "
                        "libbenchmark-dev or set benchmark_DIR")
  endif()
endif()
