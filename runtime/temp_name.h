// Names of files that are not finished yet. A name carries its creator, so that what a killed creator left
// can be told from work in progress and swept.
//
//   SweepStaleTemps(dir_fd, "params-0");                       // leftovers of the dead
//   std::string temp = TempName("params-0");                   // ".tmp.params-0.1234@5678.9"
//   ... openat(dir_fd, temp, O_CREAT | O_EXCL), write, then rename or link to "params-0"
//
// The leading dot keeps them out of the names that segments and keys may have. Thread-safe.
#ifndef SHERD_RUNTIME_TEMP_NAME_H_
#define SHERD_RUNTIME_TEMP_NAME_H_

#include <string>

#include "absl/strings/string_view.h"

namespace sherd::runtime {

// A name no other call, in this or another process of the host, returns.
std::string TempName(absl::string_view final_name);

// Unlinks from directory `dir_fd` the temporary files for `final_name` (for all names when it is empty) whose
// creators are dead. Best effort: what cannot be listed or unlinked stays.
void SweepStaleTemps(int dir_fd, absl::string_view final_name);

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_TEMP_NAME_H_
