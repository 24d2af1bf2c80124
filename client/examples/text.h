// The text a model is trained on, as bytes: a token is one byte, 256 of them. The last 5 % are held out.
//
//   absl::StatusOr<Text> text = Text::Load(options.text);       // "" is the King James Bible of
//   bible-kjv-text if (absl::Status enough = text->CheckContext(128); !enough.ok()) ... text->train(); //
//   bytes to sample windows from text->HeldOutWindows(128, 32);                             // the same
//   windows in every run
#ifndef SHERD_CLIENT_EXAMPLES_TEXT_H_
#define SHERD_CLIENT_EXAMPLES_TEXT_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace sherd::examples {

inline constexpr int64_t kVocabulary = 256;

// What Load("") reads, and the Debian package it comes from.
inline constexpr char kDefaultTextPath[] = "/usr/lib/bible.data";
inline constexpr char kDefaultTextPackage[] = "bible-kjv-text";

// Immutable after construction, so safe to share between threads.
class Text {
 public:
  // Reads `path` whole; the empty path is the default text. kNotFound, kPermissionDenied ... name the file
  // and say what to do; kInvalidArgument: it is empty or a directory; kDataLoss: the default text is damaged.
  static absl::StatusOr<Text> Load(const std::string& path);

  // A text in hand; `name` is for messages.
  Text(std::string name, std::string bytes);

  const std::string& name() const { return name_; }
  // The first 95 % of the bytes, and the rest. Live as long as this object.
  absl::string_view train() const { return absl::string_view(bytes_).substr(0, train_bytes_); }
  absl::string_view held_out() const { return absl::string_view(bytes_).substr(train_bytes_); }
  // Of all bytes: two runs with equal sums train on the same text.
  uint32_t crc() const { return crc_; }

  // OK if both parts hold a window: `context` tokens and the one to predict after them. kInvalidArgument
  // otherwise, with the bytes there are and the bytes needed.
  absl::Status CheckContext(int64_t context) const;

  // Offsets into held_out() of at most `count` windows of context + 1 bytes, spread evenly; fewer if the text
  // is too short for that many that do not overlap. Depends on nothing but its arguments and the text.
  // REQUIRES: CheckContext(context) is OK, count >= 1.
  std::vector<int64_t> HeldOutWindows(int64_t context, int64_t count) const;

 private:
  std::string name_;
  std::string bytes_;
  int64_t train_bytes_;
  uint32_t crc_;
};

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_TEXT_H_
