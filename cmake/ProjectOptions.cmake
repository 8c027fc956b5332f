# SPDX-License-Identifier: Apache-2.0
# What every target of ours compiles with. Per target, so that nothing leaks into other projects.

add_library(hybridgen_options INTERFACE)
target_compile_features(hybridgen_options INTERFACE cxx_std_20)
target_compile_options(
  hybridgen_options
  INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-Wall;-Wextra;-Wsign-conversion;-Wshadow>
    $<$<AND:$<COMPILE_LANGUAGE:CXX>,$<BOOL:${HYBRIDGEN_WERROR}>>:-Werror>)

set(HYBRIDGEN_SANITIZE_CHOICES "" "address,undefined" "thread")
if(NOT HYBRIDGEN_SANITIZE IN_LIST HYBRIDGEN_SANITIZE_CHOICES)
  message(FATAL_ERROR "HYBRIDGEN_SANITIZE is '${HYBRIDGEN_SANITIZE}'; "
                      "allowed: empty, 'address,undefined', 'thread'")
endif()
if(HYBRIDGEN_SANITIZE)
  target_compile_options(hybridgen_options INTERFACE -fsanitize=${HYBRIDGEN_SANITIZE}
                                                     -fno-omit-frame-pointer)
  target_link_options(hybridgen_options INTERFACE -fsanitize=${HYBRIDGEN_SANITIZE})
endif()
if(HYBRIDGEN_SANITIZE MATCHES "undefined")
  target_compile_options(hybridgen_options INTERFACE -fno-sanitize-recover=undefined)
endif()

# Adds a static library of ours: position independent (it ends up in the Python module) and with
# hidden symbols, so that it never meets another copy in the same process.
function(hybridgen_add_library name)
  add_library(${name} STATIC)
  set_target_properties(
    ${name}
    PROPERTIES POSITION_INDEPENDENT_CODE ON
               CXX_VISIBILITY_PRESET hidden
               VISIBILITY_INLINES_HIDDEN ON
               CXX_EXTENSIONS OFF)
  target_link_libraries(${name} PRIVATE hybridgen_options)
  target_compile_features(${name} PUBLIC cxx_std_20)  # the headers need it, too
  target_include_directories(
    ${name}
    PUBLIC "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>"
           "$<INSTALL_INTERFACE:include>"
    PRIVATE "${PROJECT_SOURCE_DIR}/src")
endfunction()
