// Reads what Python's pickle module wrote, as values. Nothing is ever executed, imported or constructed: a
// class or function in the bytes is a name, a call of one is that name with its arguments, and names that are
// not on the caller's list are refused.
//
//   auto pickle = PickleDocument::Parse(bytes, {"collections.OrderedDict", "torch.FloatStorage"}, {});
//   const PickleDocument::Node& root = (*pickle)->root();
//
// The machine is that of protocols 2 to 4 (CPython's Lib/pickletools.py describes each opcode); of them, what
// pickles of plain values, torch.save's among them, are made of. Protocols 0 and 1, sets, buffers outside the
// bytes and the extension registry are refused.
#ifndef SHERD_RUNTIME_FORMATS_PICKLE_READER_H_
#define SHERD_RUNTIME_FORMATS_PICKLE_READER_H_

#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/types/span.h"

namespace sherd::formats {

// Immutable: thread-safe. Owns its nodes; they refer to one another by index, so that a value which several
// hold is there once, and one that holds itself does no harm: whoever walks down must bound the depth.
class PickleDocument {
 public:
  using Id = uint32_t;
  enum class Kind : uint8_t {
    kNone,
    kBool,        // integer: 0 or 1
    kInt,         // integer
    kFloat,       // real
    kString,      // text: as stored, UTF-8 is not checked
    kBytes,       // text
    kTuple,       // items
    kList,        // items
    kDict,        // items: key, value, key, value, ... as stored; an OrderedDict is one too
    kGlobal,      // text: "module.name"
    kCall,        // items: a kGlobal, the kTuple of arguments, and perhaps the state given to what it made
    kPersistent,  // items: the one value that names something outside the bytes
  };
  struct Node {
    Kind kind = Kind::kNone;
    int64_t integer = 0;
    double real = 0;
    absl::string_view text;
    std::vector<Id> items;
  };
  struct Options {
    // Names that are not on the list become values like the others, for a caller who looks past them.
    bool keep_unknown = false;
    uint64_t max_bytes = uint64_t{64} << 20;
    uint32_t max_nodes = 8 << 20;  // and as many references among them; some 80 bytes of memory each
  };

  // `bytes` is one pickle from its first byte to its last. INVALID_ARGUMENT with the offset of what is wrong,
  // or with the name that is not in `globals`; RESOURCE_EXHAUSTED past a bound of `options`.
  static absl::StatusOr<std::unique_ptr<PickleDocument>> Parse(std::string bytes,
                                                               absl::Span<const absl::string_view> globals,
                                                               const Options& options);
  PickleDocument(const PickleDocument&) = delete;
  PickleDocument& operator=(const PickleDocument&) = delete;

  const Node& root() const { return nodes_[root_]; }
  const Node& at(Id id) const { return nodes_[id]; }
  // The value of a key that is a string, the last if it is there twice; nullptr if `dict` is no kDict or has
  // no such key. Linear.
  const Node* Find(const Node& dict, absl::string_view key) const;
  // The arguments of a call of `global`, e.g. "torch.Size"; nullptr for everything else.
  const std::vector<Id>* ArgumentsOf(const Node& call, absl::string_view global) const;

  // "a list", "a call of torch.Size": for messages.
  std::string Describe(const Node& node) const;

 private:
  friend class PickleMachine;
  explicit PickleDocument(std::string bytes) : bytes_(std::move(bytes)) {}

  const std::string bytes_;
  std::deque<std::string> names_;  // of globals
  std::vector<Node> nodes_;
  Id root_ = 0;
};

}  // namespace sherd::formats

#endif  // SHERD_RUNTIME_FORMATS_PICKLE_READER_H_
