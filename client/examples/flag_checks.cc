#include "client/examples/flag_checks.h"

#include <cmath>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"

namespace sherd::examples {

std::string NotNegative(const std::string& value) {
  double number = 0;
  if (absl::SimpleAtod(value, &number) && std::isfinite(number) && number >= 0) return "";
  return absl::StrCat("\"", value, "\" is not a number from 0 up");
}

}  // namespace sherd::examples
