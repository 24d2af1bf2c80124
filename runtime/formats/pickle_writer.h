// Writes pickles of plain values, protocol 2, as torch.load(weights_only=True) reads them.
//
//   PickleWriter p;
//   p.BeginDict();
//   p.String("step"); p.Int(17);       // key, value, key, value, ...
//   p.EndDict();
//   std::string bytes = std::move(p).Finish();
//
// A value is one call, or what stands between Begin and End. Thread-compatible. Opcodes: pickle_opcodes.h.
#ifndef SHERD_RUNTIME_FORMATS_PICKLE_WRITER_H_
#define SHERD_RUNTIME_FORMATS_PICKLE_WRITER_H_

#include <cstdint>
#include <map>
#include <string>

#include "absl/strings/string_view.h"

namespace sherd::formats {

class PickleWriter {
 public:
  PickleWriter();

  void Bool(bool value);
  void Int(int64_t value);
  // REQUIRES UTF-8 of at most 2^32 - 1 bytes.
  void String(absl::string_view value);
  void EmptyTuple();

  // Keys and values in turn until EndDict; values until EndList and EndTuple. None of a list's or tuple's
  // values may be left out of its Begin and End.
  void BeginDict();
  void EndDict();
  void BeginList();
  void EndList();
  void BeginTuple();
  void EndTuple();

  // The name of a class or function; written in full once, then remembered.
  void Global(absl::string_view module, absl::string_view name);
  // Makes a call of the two values before: a Global and a tuple of arguments.
  void Call();
  // Makes the value before one that names something outside of the pickle.
  void Persistent();

  // The bytes. REQUIRES that one value was written.
  std::string Finish() &&;

 private:
  std::string out_;
  std::map<std::string, uint32_t, std::less<>> memo_;  // of globals
};

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_PICKLE_WRITER_H_
