#include "runtime/formats/pickle_reader.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "runtime/formats/pickle_opcodes.h"
#include "runtime/formats/strict_json.h"

namespace sherd::formats {

using Kind = PickleDocument::Kind;
using Node = PickleDocument::Node;
using Id = PickleDocument::Id;

namespace {

constexpr absl::string_view kOrderedDict = "collections.OrderedDict";
constexpr int kLeastProtocol = 2, kMostProtocol = 4;

// By Kind, for messages.
constexpr absl::string_view kKinds[] = {"None",     "a bool",   "an int",    "a float",
                                        "a string", "bytes",    "a tuple",   "a list",
                                        "a dict",   "the name", "a call of", "a reference to outside"};

}  // namespace

// The stack machine. Every step either moves on or is the end, so it takes time and memory in proportion to
// the bytes, within the bounds of Options.
class PickleMachine {
 public:
  PickleMachine(PickleDocument* document, absl::Span<const absl::string_view> globals,
                const PickleDocument::Options& options)
      : document_(*document), globals_(globals), options_(options), left_(document->bytes_) {}

  absl::Status Run() {
    while (!stopped_) {
      at_ = document_.bytes_.size() - left_.size();
      unsigned char opcode = 0;
      absl::Status status = Take(&opcode);
      if (status.ok() && at_ == 0 && opcode != pickle::kProto) {
        return Bad("no pickle of protocol 2 to 4");
      }
      if (status.ok()) status = Step(opcode);
      if (!status.ok()) return status;
      if (document_.nodes_.size() > options_.max_nodes || items_ > options_.max_nodes) {
        return absl::ResourceExhaustedError(
            absl::StrCat("a pickle of more than ", options_.max_nodes, " values"));
      }
    }
    if (!left_.empty()) return Bad("something stands behind the end");
    return absl::OkStatus();
  }

 private:
  absl::Status Bad(absl::string_view why) const {
    return absl::InvalidArgumentError(absl::StrCat("pickle, byte ", at_, ": ", why));
  }

  // The bytes.
  absl::Status TakeBytes(uint64_t count, absl::string_view* out) {
    if (count > left_.size()) return Bad("cut short");
    *out = left_.substr(0, count);
    left_.remove_prefix(count);
    return absl::OkStatus();
  }
  template <typename T>
  absl::Status Take(T* out) {
    absl::string_view bytes;
    if (absl::Status s = TakeBytes(sizeof(T), &bytes); !s.ok()) return s;
    std::memcpy(out, bytes.data(), sizeof(T));
    return absl::OkStatus();
  }
  absl::Status TakeLine(absl::string_view* out) {
    const size_t end = left_.find('\n');
    if (end == absl::string_view::npos) return Bad("cut short");
    *out = left_.substr(0, end);
    left_.remove_prefix(end + 1);
    return absl::OkStatus();
  }

  // The stack.
  absl::Status Push(Node node) {
    stack_.push_back(static_cast<Id>(document_.nodes_.size()));
    document_.nodes_.push_back(std::move(node));
    return absl::OkStatus();
  }
  absl::Status PushInt(Kind kind, int64_t value) {
    Node node;
    node.kind = kind;
    node.integer = value;
    return Push(std::move(node));
  }
  absl::Status PushItems(Kind kind, std::vector<Id> items) {
    Node node;
    node.kind = kind;
    node.items = std::move(items);
    items_ += node.items.size();
    return Push(std::move(node));
  }
  // What an opcode may take: down to the last mark.
  size_t Available() const { return stack_.size() - (marks_.empty() ? 0 : marks_.back()); }
  absl::Status Pop(size_t count, std::vector<Id>* out) {
    if (Available() < count) return Bad("an opcode takes more than there is on the stack");
    out->assign(stack_.end() - count, stack_.end());
    stack_.resize(stack_.size() - count);
    return absl::OkStatus();
  }
  absl::Status PopToMark(std::vector<Id>* out) {
    if (marks_.empty()) return Bad("an opcode misses its mark");
    if (absl::Status s = Pop(Available(), out); !s.ok()) return s;
    marks_.pop_back();
    return absl::OkStatus();
  }

  absl::Status Step(unsigned char opcode);
  absl::Status StepStructure(unsigned char opcode);
  absl::Status Proto();
  absl::Status Long1();
  template <typename Size>
  absl::Status Text(Kind kind);
  absl::Status Float();
  absl::Status Tuple(size_t count);
  absl::Status Add(Kind kind, std::vector<Id> values);
  absl::Status Put(uint32_t key);
  absl::Status GetMemo(uint32_t key);
  absl::Status Global(absl::string_view module, absl::string_view name);
  absl::Status StackGlobal();
  absl::Status Call();
  absl::Status Build();

  PickleDocument& document_;
  const absl::Span<const absl::string_view> globals_;
  const PickleDocument::Options& options_;
  absl::string_view left_;
  size_t at_ = 0;  // of the opcode in hand
  bool stopped_ = false;
  uint64_t items_ = 0;  // of all nodes: a few bytes may say that a large list is copied
  std::vector<Id> stack_;
  std::vector<size_t> marks_;  // heights of the stack
  absl::flat_hash_map<uint32_t, Id> memo_;
};

absl::Status PickleMachine::Proto() {
  uint8_t version = 0;
  if (absl::Status s = Take(&version); !s.ok()) return s;
  if (at_ != 0) return Bad("the protocol is stated in the middle");
  if (version < kLeastProtocol || version > kMostProtocol) {
    return Bad(absl::StrCat("protocol ", version, "; ", kLeastProtocol, " to ", kMostProtocol, " are read"));
  }
  return absl::OkStatus();
}

// A little-endian integer in two's complement, of any length.
absl::Status PickleMachine::Long1() {
  uint8_t size = 0;
  absl::string_view bytes;
  if (absl::Status s = Take(&size); !s.ok()) return s;
  if (absl::Status s = TakeBytes(size, &bytes); !s.ok()) return s;
  if (size > 8) return Bad("an integer of more than 64 bits");
  uint64_t value = !bytes.empty() && (bytes.back() & 0x80) ? ~uint64_t{0} : 0;
  for (size_t i = bytes.size(); i-- > 0;) value = value << 8 | static_cast<unsigned char>(bytes[i]);
  return PushInt(Kind::kInt, static_cast<int64_t>(value));
}

template <typename Size>
absl::Status PickleMachine::Text(Kind kind) {
  Size size = 0;
  if (absl::Status s = Take(&size); !s.ok()) return s;
  Node node;
  node.kind = kind;
  if (absl::Status s = TakeBytes(size, &node.text); !s.ok()) return s;
  return Push(std::move(node));
}

// Big-endian, unlike everything else.
absl::Status PickleMachine::Float() {
  uint64_t bits = 0;
  if (absl::Status s = Take(&bits); !s.ok()) return s;
  bits = __builtin_bswap64(bits);
  Node node;
  node.kind = Kind::kFloat;
  std::memcpy(&node.real, &bits, sizeof bits);
  return Push(std::move(node));
}

absl::Status PickleMachine::Tuple(size_t count) {
  std::vector<Id> items;
  if (absl::Status s = Pop(count, &items); !s.ok()) return s;
  return PushItems(Kind::kTuple, std::move(items));
}

// Puts values into the list or dict below them.
absl::Status PickleMachine::Add(Kind kind, std::vector<Id> values) {
  if (Available() == 0) return Bad("values without a list or dict below them");
  Node& into = document_.nodes_[stack_.back()];
  if (into.kind == Kind::kCall && options_.keep_unknown) return absl::OkStatus();
  if (into.kind != kind) return Bad(absl::StrCat("values are put into ", document_.Describe(into)));
  if (kind == Kind::kDict && values.size() % 2 != 0) return Bad("a key without a value");
  into.items.insert(into.items.end(), values.begin(), values.end());
  items_ += values.size();
  return absl::OkStatus();
}

absl::Status PickleMachine::Put(uint32_t key) {
  if (Available() == 0) return Bad("there is nothing to remember");
  memo_[key] = stack_.back();
  return absl::OkStatus();
}

absl::Status PickleMachine::GetMemo(uint32_t key) {
  const auto it = memo_.find(key);
  if (it == memo_.end()) return Bad(absl::StrCat("nothing is remembered as ", key));
  stack_.push_back(it->second);
  return absl::OkStatus();
}

absl::Status PickleMachine::Global(absl::string_view module, absl::string_view name) {
  std::string whole = absl::StrCat(module, ".", name);
  const bool known = std::find(globals_.begin(), globals_.end(), whole) != globals_.end();
  if (!known && !options_.keep_unknown) {
    return Bad(absl::StrCat("refused: it wants ", Quoted(whole),
                            ", which is none of the classes and functions that a file of tensors needs"));
  }
  document_.names_.push_back(std::move(whole));
  Node node;
  node.kind = Kind::kGlobal;
  node.text = document_.names_.back();
  return Push(std::move(node));
}

absl::Status PickleMachine::StackGlobal() {
  std::vector<Id> parts;
  if (absl::Status s = Pop(2, &parts); !s.ok()) return s;
  const Node& module = document_.at(parts[0]);
  const Node& name = document_.at(parts[1]);
  if (module.kind != Kind::kString || name.kind != Kind::kString) return Bad("a name that is no string");
  return Global(module.text, name.text);
}

// A call is kept as its parts. Only an OrderedDict becomes what it means.
absl::Status PickleMachine::Call() {
  std::vector<Id> parts;
  if (absl::Status s = Pop(2, &parts); !s.ok()) return s;
  const Node& callee = document_.at(parts[0]);
  const Node& arguments = document_.at(parts[1]);
  if (callee.kind != Kind::kGlobal || arguments.kind != Kind::kTuple) {
    return Bad(absl::StrCat("calls ", document_.Describe(callee), " with ", document_.Describe(arguments)));
  }
  if (callee.text != kOrderedDict) return PushItems(Kind::kCall, std::move(parts));
  std::vector<Id> items;
  if (arguments.items.size() > 1) return Bad("an OrderedDict of several arguments");
  if (!arguments.items.empty()) {
    for (const Id id : document_.at(arguments.items[0]).items) {
      const Node& pair = document_.at(id);
      if ((pair.kind != Kind::kTuple && pair.kind != Kind::kList) || pair.items.size() != 2) {
        return Bad("an OrderedDict of something else than pairs");
      }
      items.insert(items.end(), pair.items.begin(), pair.items.end());
    }
  }
  return PushItems(Kind::kDict, std::move(items));
}

absl::Status PickleMachine::Build() {
  std::vector<Id> state;
  if (absl::Status s = Pop(1, &state); !s.ok()) return s;
  if (Available() == 0) return Bad("state without an object below it");
  Node& object = document_.nodes_[stack_.back()];
  // What it does to a dict is to give it attributes, such as a state dict's _metadata.
  if (object.kind == Kind::kDict) return absl::OkStatus();
  if (object.kind != Kind::kCall) return Bad(absl::StrCat("gives state to ", document_.Describe(object)));
  object.items.push_back(state[0]);
  return absl::OkStatus();
}

absl::Status PickleMachine::StepStructure(unsigned char opcode) {
  std::vector<Id> values;
  absl::string_view module, name;
  absl::Status status;
  switch (opcode) {
    case pickle::kTuple:
    case pickle::kAppends:
    case pickle::kSetItems:
    case pickle::kPopMark:
      status = PopToMark(&values);
      if (!status.ok() || opcode == pickle::kPopMark) return status;
      if (opcode == pickle::kTuple) return PushItems(Kind::kTuple, std::move(values));
      return Add(opcode == pickle::kAppends ? Kind::kList : Kind::kDict, std::move(values));
    case pickle::kAppend:
    case pickle::kSetItem:
      status = Pop(opcode == pickle::kAppend ? 1 : 2, &values);
      if (!status.ok()) return status;
      return Add(opcode == pickle::kAppend ? Kind::kList : Kind::kDict, std::move(values));
    case pickle::kTuple1:
      return Tuple(1);
    case pickle::kTuple2:
      return Tuple(2);
    case pickle::kTuple3:
      return Tuple(3);
    case pickle::kPop:
      return Pop(1, &values);
    case pickle::kDuplicate:
      if (Available() == 0) return Bad("there is nothing to repeat");
      stack_.push_back(stack_.back());
      return absl::OkStatus();
    case pickle::kGlobal:
      if (status = TakeLine(&module); !status.ok()) return status;
      if (status = TakeLine(&name); !status.ok()) return status;
      return Global(module, name);
    case pickle::kStackGlobal:
      return StackGlobal();
    case pickle::kReduce:
    case pickle::kNewObj:
      return Call();
    case pickle::kBuild:
      return Build();
    case pickle::kBinPersId:
      if (status = Pop(1, &values); !status.ok()) return status;
      return PushItems(Kind::kPersistent, std::move(values));
    case pickle::kStop:
      if (stack_.size() != 1 || !marks_.empty()) return Bad("ends with other than one value");
      document_.root_ = stack_[0];
      stopped_ = true;
      return absl::OkStatus();
    default:
      return Bad(absl::StrCat("opcode ", absl::Hex(opcode, absl::kZeroPad2), " is not read"));
  }
}

absl::Status PickleMachine::Step(unsigned char opcode) {
  absl::string_view skipped;
  uint8_t one = 0;
  uint16_t two = 0;
  uint32_t four = 0;
  absl::Status status;
  switch (opcode) {
    case pickle::kProto:
      return Proto();
    case pickle::kFrame:
      return TakeBytes(8, &skipped);
    case pickle::kMark:
      marks_.push_back(stack_.size());
      return absl::OkStatus();
    case pickle::kNone:
      return Push(Node());
    case pickle::kNewTrue:
      return PushInt(Kind::kBool, 1);
    case pickle::kNewFalse:
      return PushInt(Kind::kBool, 0);
    case pickle::kBinInt:
      status = Take(&four);
      return status.ok() ? PushInt(Kind::kInt, static_cast<int32_t>(four)) : status;
    case pickle::kBinInt1:
      status = Take(&one);
      return status.ok() ? PushInt(Kind::kInt, one) : status;
    case pickle::kBinInt2:
      status = Take(&two);
      return status.ok() ? PushInt(Kind::kInt, two) : status;
    case pickle::kLong1:
      return Long1();
    case pickle::kBinFloat:
      return Float();
    case pickle::kShortBinUnicode:
    case pickle::kShortBinString:
      return Text<uint8_t>(Kind::kString);
    case pickle::kBinUnicode:
    case pickle::kBinString:
      return Text<uint32_t>(Kind::kString);
    case pickle::kBinUnicode8:
      return Text<uint64_t>(Kind::kString);
    case pickle::kShortBinBytes:
      return Text<uint8_t>(Kind::kBytes);
    case pickle::kBinBytes:
      return Text<uint32_t>(Kind::kBytes);
    case pickle::kBinBytes8:
      return Text<uint64_t>(Kind::kBytes);
    case pickle::kEmptyTuple:
      return PushItems(Kind::kTuple, {});
    case pickle::kEmptyList:
      return PushItems(Kind::kList, {});
    case pickle::kEmptyDict:
      return PushItems(Kind::kDict, {});
    case pickle::kBinPut:
      status = Take(&one);
      return status.ok() ? Put(one) : status;
    case pickle::kLongBinPut:
      status = Take(&four);
      return status.ok() ? Put(four) : status;
    case pickle::kMemoize:
      return Put(static_cast<uint32_t>(memo_.size()));
    case pickle::kBinGet:
      status = Take(&one);
      return status.ok() ? GetMemo(one) : status;
    case pickle::kLongBinGet:
      status = Take(&four);
      return status.ok() ? GetMemo(four) : status;
    default:
      return StepStructure(opcode);
  }
}

absl::StatusOr<std::unique_ptr<PickleDocument>> PickleDocument::Parse(
    std::string bytes, absl::Span<const absl::string_view> globals, const Options& options) {
  if (bytes.size() > options.max_bytes) {
    return absl::ResourceExhaustedError(absl::StrCat("a pickle of ", bytes.size(), " bytes; ",
                                                     options.max_bytes, " are the most that are read"));
  }
  std::unique_ptr<PickleDocument> document(new PickleDocument(std::move(bytes)));
  absl::Status status = PickleMachine(document.get(), globals, options).Run();
  if (!status.ok()) return status;
  return document;
}

const Node* PickleDocument::Find(const Node& dict, absl::string_view key) const {
  if (dict.kind != Kind::kDict) return nullptr;
  for (size_t i = dict.items.size(); i >= 2; i -= 2) {
    const Node& name = at(dict.items[i - 2]);
    if (name.kind == Kind::kString && name.text == key) return &at(dict.items[i - 1]);
  }
  return nullptr;
}

const std::vector<Id>* PickleDocument::ArgumentsOf(const Node& call, absl::string_view global) const {
  if (call.kind != Kind::kCall || at(call.items[0]).text != global) return nullptr;
  return &at(call.items[1]).items;
}

std::string PickleDocument::Describe(const Node& node) const {
  const absl::string_view what = kKinds[static_cast<size_t>(node.kind)];
  if (node.kind == Kind::kGlobal) return absl::StrCat(what, " ", Quoted(node.text));
  if (node.kind == Kind::kCall) return absl::StrCat(what, " ", Quoted(at(node.items[0]).text));
  return std::string(what);
}

}  // namespace sherd::formats
