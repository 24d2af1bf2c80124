// Checks of command-line values that CLI11 lets through: "-1" for an unsigned number, "nan" in a range.
#ifndef SHERD_CLIENT_EXAMPLES_FLAG_CHECKS_H_
#define SHERD_CLIENT_EXAMPLES_FLAG_CHECKS_H_

#include <string>

namespace sherd::examples {

// For CLI::Option::check: empty if `value` is a finite number and not negative, else what is wrong with it.
std::string NotNegative(const std::string& value);

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_FLAG_CHECKS_H_
