# SPDX-License-Identifier: Apache-2.0
# What C++ programs use: the headers in include/, the static libraries, and a package for
# find_package(hybridgen). The component "cpp"; the Python wheel is the component "python".
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/hybridgen")
set(installed_targets hybridgen_options hybridgen_core)
if(HYBRIDGEN_ENGINE)
  list(APPEND installed_targets hybridgen_engine)
endif()
if(HYBRIDGEN_HAS_CUDA)
  list(APPEND installed_targets hybridgen_cuda)
endif()
foreach(target ${installed_targets})
  string(REPLACE "hybridgen_" "" exported_name ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${exported_name})
endforeach()

install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
        COMPONENT cpp)
install(
  TARGETS ${installed_targets}
  EXPORT hybridgenTargets
  ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT cpp)
install(
  EXPORT hybridgenTargets
  NAMESPACE hybridgen::
  DESTINATION "${package_dir}"
  COMPONENT cpp)
configure_package_config_file(
  "${PROJECT_SOURCE_DIR}/cmake/hybridgenConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/hybridgenConfig.cmake" INSTALL_DESTINATION "${package_dir}")
# Below 1.0 a minor version may change what programs compile against.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/hybridgenConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(
  FILES "${PROJECT_BINARY_DIR}/hybridgenConfig.cmake"
        "${PROJECT_BINARY_DIR}/hybridgenConfigVersion.cmake"
        "${PROJECT_SOURCE_DIR}/cmake/TorchFromPython.cmake"
        "${PROJECT_SOURCE_DIR}/cmake/NumaLibrary.cmake"
        "${PROJECT_SOURCE_DIR}/cmake/OneDnnLibrary.cmake"
  DESTINATION "${package_dir}"
  COMPONENT cpp)
