// SPDX-License-Identifier: Apache-2.0
// What a name was probably meant to be.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace hybridgen {

/// The entry of `candidates` with the smallest edit distance to `name` if that is at most
/// max(2, name.size() / 3), else "".
std::string nearest_name(std::string_view name, const std::vector<std::string>& candidates);

}  // namespace hybridgen
