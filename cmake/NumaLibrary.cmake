# SPDX-License-Identifier: Apache-2.0
# libnuma as the target hybridgen_numa, if it is found. The shared library only: its licence (LGPL)
# asks that it can be replaced.
find_path(HYBRIDGEN_NUMA_INCLUDE_DIR NAMES numaif.h)
find_library(HYBRIDGEN_NUMA_LIBRARY NAMES libnuma.so)
mark_as_advanced(HYBRIDGEN_NUMA_INCLUDE_DIR HYBRIDGEN_NUMA_LIBRARY)
if(HYBRIDGEN_NUMA_INCLUDE_DIR AND HYBRIDGEN_NUMA_LIBRARY AND NOT TARGET hybridgen_numa)
  add_library(hybridgen_numa SHARED IMPORTED GLOBAL)
  set_target_properties(
    hybridgen_numa PROPERTIES IMPORTED_LOCATION "${HYBRIDGEN_NUMA_LIBRARY}"
                              INTERFACE_INCLUDE_DIRECTORIES "${HYBRIDGEN_NUMA_INCLUDE_DIR}")
endif()
