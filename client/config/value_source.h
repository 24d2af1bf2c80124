// Looks values up by the rule that DeepSpeedConfig states: the file, a flag that must not contradict it, what
// the program has, the default of the key's table.
//
//   ValueSource from(name, root);
//   double clip = from.Number("gradient_clipping", program.max_grad_norm).value_or(0);
//   if (!from.status().ok()) return from.status();        // the first contradiction
#ifndef SHERD_CLIENT_CONFIG_VALUE_SOURCE_H_
#define SHERD_CLIENT_CONFIG_VALUE_SOURCE_H_

#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/types/optional.h"
#include "client/config/json_value.h"
#include "client/config/program_values.h"

namespace sherd::config {

class ValueSource {
 public:
  // Both must outlive this.
  ValueSource(const std::string& name, const JsonValue& root) : name_(name), root_(root) {}

  // The first thing that was wrong; later look-ups are harmless.
  const absl::Status& status() const { return status_; }
  void Fail(absl::string_view what);

  // What stands there, also "auto" and null; nullptr: nothing.
  const JsonValue* At(absl::string_view path) const;
  // Something stands there that is neither null nor "auto".
  bool IsSet(absl::string_view path) const;

  // nullopt: nobody says, and the table has no default.
  absl::optional<bool> Bool(absl::string_view path) { return Take<bool>(path, ProgramValue<bool>()); }
  absl::optional<double> Number(absl::string_view path, const ProgramValue<double>& program = {}) {
    return Take<double>(path, program);
  }
  absl::optional<int64_t> Integer(absl::string_view path, const ProgramValue<int64_t>& program = {}) {
    return Take<int64_t>(path, program);
  }
  absl::optional<std::string> Text(absl::string_view path) {  // as written; the default likewise
    return Take<std::string>(path, ProgramValue<std::string>());
  }
  // A list of exactly two.
  absl::optional<std::pair<double, double>> Pair(absl::string_view path,
                                                 const ProgramValue<std::pair<double, double>>& program);
  // The file's value alone.
  absl::optional<int64_t> Stated(absl::string_view path) {
    return IsSet(path) ? Integer(path) : absl::optional<int64_t>();
  }

 private:
  template <typename T>
  absl::optional<T> Take(absl::string_view path, const ProgramValue<T>& program);

  const std::string& name_;
  const JsonValue& root_;
  absl::Status status_;
};

}  // namespace sherd::config

#endif  // SHERD_CLIENT_CONFIG_VALUE_SOURCE_H_
