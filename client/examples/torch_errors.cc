#include "client/examples/torch_errors.h"

#include <c10/util/Exception.h>

#include <exception>
#include <new>
#include <string>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace sherd::examples {
namespace {

std::string FirstLine(const std::string& text) { return text.substr(0, text.find('\n')); }

}  // namespace

absl::Status StatusOfException() {
  try {
    throw;
  } catch (const c10::Error& error) {
    const std::string what = FirstLine(error.what_without_backtrace());
    // The CPU allocator has no exception type of its own.
    if (absl::StrContains(what, "DefaultCPUAllocator")) return absl::ResourceExhaustedError(what);
    return absl::InternalError(absl::StrCat("libtorch: ", what));
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        "out of memory: choose a smaller --size, --global-batch or --context");
  } catch (const std::exception& error) {
    return absl::InternalError(FirstLine(error.what()));
  } catch (...) {
    return absl::InternalError("an exception of an unknown type");
  }
}

}  // namespace sherd::examples
