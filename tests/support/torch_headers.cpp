// SPDX-License-Identifier: Apache-2.0
// Only for the headers that are compiled before it (tests/cpp/CMakeLists.txt).
