// Tells whether bytes are well-formed UTF-8. Names of tensors end up as keys of JSON and protobuf strings,
// both of which must be, so they are checked where they enter.
//
//   IsValidUtf8("wte.weight")  -> true
//   IsValidUtf8("\xc0\x80")    -> false (overlong)
#ifndef SHERD_CORE_UTF8_H_
#define SHERD_CORE_UTF8_H_

#include "absl/strings/string_view.h"

namespace sherd {

// True if `text` is well-formed UTF-8 (RFC 3629: no overlong forms, no surrogates, nothing past U+10FFFF).
// The empty string is. Thread-safe.
bool IsValidUtf8(absl::string_view text);

}  // namespace sherd

#endif  // SHERD_CORE_UTF8_H_
