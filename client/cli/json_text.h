// One JSON document as commands print it.
#ifndef SHERD_CLIENT_CLI_JSON_TEXT_H_
#define SHERD_CLIENT_CLI_JSON_TEXT_H_

#include <string>

#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace sherd::cli {

// With a line's end. Names from peers and paths may hold any bytes: what is not UTF-8 is replaced.
inline std::string Dump(const nlohmann::ordered_json& json) {
  return absl::StrCat(json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace), "\n");
}

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_JSON_TEXT_H_
