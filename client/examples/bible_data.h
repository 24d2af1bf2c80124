// Unpacks /usr/lib/bible.data of Debian's package bible-kjv-text: the King James Bible, about 4.4 MB of plain
// English, one verse a line ("Ge1:1 In the beginning God created ..."). It is the examples' default training
// text because it is small, in the public domain and one apt-get away.
//
//   absl::StatusOr<std::string> text = DecodeBibleData(bytes_of_the_file);
//
// The file is a header, a table of offsets, and windows of 64 KiB of text, each packed by LZW as compress(1)
// does.
#ifndef SHERD_CLIENT_EXAMPLES_BIBLE_DATA_H_
#define SHERD_CLIENT_EXAMPLES_BIBLE_DATA_H_

#include <cstdint>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sherd::examples {

// Unpacks one LZW stream in compress(1)'s block mode, codes of 9 to 16 bits, without its three bytes of
// magic. Never returns more than `max_bytes`. kDataLoss: a code that cannot stand where it stands, or more
// than `max_bytes`.
absl::StatusOr<std::string> DecodeLzw(absl::string_view packed, int64_t max_bytes);

// Returns the whole text. kDataLoss: `file` is not such a file, or is damaged; the message says where.
// Memory: at most 64 KiB per 4 bytes of offset table, each window bounded by the header's window size.
absl::StatusOr<std::string> DecodeBibleData(absl::string_view file);

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_BIBLE_DATA_H_
