#include "runtime/formats/pickle_writer.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/formats/pickle_opcodes.h"

namespace sherd::formats {
namespace {

void Append(uint64_t value, size_t bytes, std::string* out) {
  for (size_t i = 0; i < bytes; ++i) out->push_back(static_cast<char>(value >> (8 * i)));
}

}  // namespace

PickleWriter::PickleWriter() {
  Append(pickle::kProto, 1, &out_);
  Append(2, 1, &out_);
}

void PickleWriter::Bool(bool value) { Append(value ? pickle::kNewTrue : pickle::kNewFalse, 1, &out_); }

void PickleWriter::Int(int64_t value) {
  if (value >= 0 && value <= std::numeric_limits<uint8_t>::max()) {
    Append(pickle::kBinInt1, 1, &out_);
    Append(value, 1, &out_);
  } else if (value >= std::numeric_limits<int32_t>::min() && value <= std::numeric_limits<int32_t>::max()) {
    Append(pickle::kBinInt, 1, &out_);
    Append(value, 4, &out_);
  } else {
    Append(pickle::kLong1, 1, &out_);
    Append(8, 1, &out_);
    Append(value, 8, &out_);
  }
}

void PickleWriter::String(absl::string_view value) {
  Append(pickle::kBinUnicode, 1, &out_);
  Append(value.size(), 4, &out_);
  absl::StrAppend(&out_, value);
}

void PickleWriter::EmptyTuple() { Append(pickle::kEmptyTuple, 1, &out_); }

void PickleWriter::BeginDict() {
  Append(pickle::kEmptyDict, 1, &out_);
  Append(pickle::kMark, 1, &out_);
}
void PickleWriter::EndDict() { Append(pickle::kSetItems, 1, &out_); }
void PickleWriter::BeginList() {
  Append(pickle::kEmptyList, 1, &out_);
  Append(pickle::kMark, 1, &out_);
}
void PickleWriter::EndList() { Append(pickle::kAppends, 1, &out_); }
void PickleWriter::BeginTuple() { Append(pickle::kMark, 1, &out_); }
void PickleWriter::EndTuple() { Append(pickle::kTuple, 1, &out_); }

void PickleWriter::Global(absl::string_view module, absl::string_view name) {
  const std::string text = absl::StrCat(module, "\n", name, "\n");
  const auto [it, is_new] = memo_.emplace(text, memo_.size());
  if (is_new) {
    Append(pickle::kGlobal, 1, &out_);
    out_ += text;
  }
  Append(is_new ? pickle::kLongBinPut : pickle::kLongBinGet, 1, &out_);
  Append(it->second, 4, &out_);
}

void PickleWriter::Call() { Append(pickle::kReduce, 1, &out_); }
void PickleWriter::Persistent() { Append(pickle::kBinPersId, 1, &out_); }

std::string PickleWriter::Finish() && {
  Append(pickle::kStop, 1, &out_);
  return std::move(out_);
}

}  // namespace sherd::formats
