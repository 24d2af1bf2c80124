#include "core/layout.h"

#include <utility>

#include "absl/base/internal/raw_logging.h"
#include "absl/status/status.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/utf8.h"

namespace sherd {
namespace {

constexpr int64_t kMaxLayoutBlocks = kMaxLayoutElements / kBlockElements;

// How a tensor is named in an error: printable and bounded, whatever a peer sent.
std::string Label(int64_t index, absl::string_view name) {
  constexpr size_t kShown = 80;
  return absl::StrCat("tensor ", index, " \"", absl::CHexEscape(name.substr(0, kShown)),
                      name.size() > kShown ? "...\"" : "\"");
}

std::string Show(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

absl::Status Check(const TensorSpec& spec, int64_t index) {
  const auto refuse = [&](auto... why) {
    return absl::InvalidArgumentError(absl::StrCat(Label(index, spec.name), ": ", why...));
  };
  if (spec.name.empty()) return refuse("the name is empty; every tensor needs one");
  if (spec.name.size() > kMaxTensorNameBytes) {
    return refuse("the name has ", spec.name.size(), " bytes; at most ", kMaxTensorNameBytes, " are allowed");
  }
  if (!IsValidUtf8(spec.name)) return refuse("the name is not valid UTF-8");
  if (spec.shape.size() > kMaxTensorRank) {
    return refuse("the shape has ", spec.shape.size(), " dimensions; at most ", kMaxTensorRank,
                  " are allowed");
  }
  for (int64_t dim : spec.shape) {
    if (dim < 0) return refuse("the shape ", Show(spec.shape), " has the negative dimension ", dim);
  }
  if (!CountElements(spec.shape).has_value()) {
    return refuse("the shape ", Show(spec.shape), " has more than ", kMaxLayoutElements, " elements");
  }
  if (spec.group < 0 || spec.group > kMaxGroup) {
    return refuse("parameter group ", spec.group, " is not in 0..", kMaxGroup);
  }
  switch (spec.dtype) {
    case DType::kFloat32:
    case DType::kBFloat16:
    case DType::kFloat16:
      return absl::OkStatus();
  }
  return refuse("dtype ", static_cast<int>(spec.dtype), " is unknown; use fp32, bf16 or fp16");
}

// FNV-1a over the canonical bytes that Layout::hash() documents.
class Hasher {
 public:
  void Add(uint64_t value) {
    for (int i = 0; i < 8; ++i) AddByte(static_cast<uint8_t>(value >> (8 * i)));
  }
  void Add(absl::string_view text) {
    Add(static_cast<uint64_t>(text.size()));
    for (char c : text) AddByte(static_cast<uint8_t>(c));
  }
  uint64_t value() const { return hash_; }

 private:
  void AddByte(uint8_t byte) { hash_ = (hash_ ^ byte) * 0x100000001b3u; }

  uint64_t hash_ = 0xcbf29ce484222325u;
};

uint64_t HashOf(const std::vector<UnitInfo>& units, const std::vector<TensorInfo>& tensors) {
  Hasher hasher;
  hasher.Add(absl::string_view("sherd.layout.1"));
  hasher.Add(static_cast<uint64_t>(kBlockElements));
  hasher.Add(static_cast<uint64_t>(units.size()));
  for (const UnitInfo& unit : units) {
    hasher.Add(static_cast<uint64_t>(unit.end_tensor - unit.first_tensor));
    for (int t = unit.first_tensor; t < unit.end_tensor; ++t) {
      const TensorSpec& spec = tensors[t].spec;
      hasher.Add(absl::string_view(spec.name));
      hasher.Add(static_cast<uint64_t>(spec.shape.size()));
      for (int64_t dim : spec.shape) hasher.Add(static_cast<uint64_t>(dim));
      hasher.Add(static_cast<uint64_t>(spec.dtype));
      hasher.Add(static_cast<uint64_t>(spec.group));
      hasher.Add(static_cast<uint64_t>(spec.trainable ? 1 : 0));
    }
  }
  return hasher.value();
}

}  // namespace

absl::optional<int64_t> CountElements(const std::vector<int64_t>& shape) {
  bool empty = false;
  for (int64_t dim : shape) {
    if (dim < 0) return absl::nullopt;
    if (dim == 0) empty = true;
  }
  if (empty) return 0;
  int64_t count = 1;
  for (int64_t dim : shape) {
    if (count > kMaxLayoutElements / dim) return absl::nullopt;
    count *= dim;
  }
  return count;
}

absl::Status Layout::AddTensor(TensorSpec spec, int unit, Rep& rep) {
  const int index = static_cast<int>(rep.tensors.size());
  if (absl::Status status = Check(spec, index); !status.ok()) return status;
  TensorInfo info;
  info.index = index;
  info.unit = unit;
  info.numel = *CountElements(spec.shape);
  info.blocks = {rep.total_blocks, rep.total_blocks + BlocksFor(info.numel)};
  if (info.blocks.end > kMaxLayoutBlocks) {
    return absl::InvalidArgumentError(absl::StrCat(Label(index, spec.name), ": with its ", info.numel,
                                                   " elements the layout has more than ",
                                                   kMaxLayoutElements));
  }
  rep.total_blocks = info.blocks.end;
  rep.total_elements += info.numel;
  info.spec = std::move(spec);
  rep.tensors.push_back(std::move(info));
  return absl::OkStatus();
}

absl::Status Layout::IndexNames(Rep& rep) {
  const std::vector<TensorInfo>& tensors = rep.tensors;
  rep.by_name.resize(tensors.size());
  for (size_t t = 0; t < tensors.size(); ++t) rep.by_name[t] = static_cast<int>(t);
  std::sort(rep.by_name.begin(), rep.by_name.end(), [&](int a, int b) {
    const int order = tensors[a].spec.name.compare(tensors[b].spec.name);
    return order != 0 ? order < 0 : a < b;
  });
  for (size_t i = 1; i < rep.by_name.size(); ++i) {
    const int first = rep.by_name[i - 1];
    const int second = rep.by_name[i];
    if (tensors[first].spec.name == tensors[second].spec.name) {
      return absl::InvalidArgumentError(
          absl::StrCat(Label(second, tensors[second].spec.name), ": tensor ", first,
                       " already has this name; store a tied tensor once and rename others"));
    }
  }
  return absl::OkStatus();
}

absl::StatusOr<Layout> Layout::Create(std::vector<std::vector<TensorSpec>> units) {
  // Counted before anything is stored, so that what a peer sends bounds what is allocated for it.
  int64_t count = 0;
  for (const auto& unit : units) count += static_cast<int64_t>(unit.size());
  if (count > kMaxTensors || static_cast<int64_t>(units.size()) > kMaxTensors) {
    return absl::InvalidArgumentError(absl::StrCat("the layout has ", count, " tensors in ", units.size(),
                                                   " units; at most ", kMaxTensors, " of each are allowed"));
  }
  auto rep = std::make_shared<Rep>();
  rep->tensors.reserve(count);
  rep->units.reserve(units.size());
  for (std::vector<TensorSpec>& unit : units) {
    UnitInfo info;
    info.blocks.begin = rep->total_blocks;
    info.first_tensor = static_cast<int>(rep->tensors.size());
    for (TensorSpec& spec : unit) {
      absl::Status status = AddTensor(std::move(spec), static_cast<int>(rep->units.size()), *rep);
      if (!status.ok()) return status;
    }
    info.blocks.end = rep->total_blocks;
    info.end_tensor = static_cast<int>(rep->tensors.size());
    rep->units.push_back(info);
  }
  if (absl::Status status = IndexNames(*rep); !status.ok()) return status;
  rep->hash = HashOf(rep->units, rep->tensors);
  return Layout(std::move(rep));
}

const TensorInfo* Layout::Find(absl::string_view name) const {
  const auto it = std::lower_bound(
      rep_->by_name.begin(), rep_->by_name.end(), name,
      [this](int t, absl::string_view wanted) { return rep_->tensors[t].spec.name < wanted; });
  if (it == rep_->by_name.end() || rep_->tensors[*it].spec.name != name) return nullptr;
  return &rep_->tensors[*it];
}

int Layout::TensorAt(int64_t block) const {
  ABSL_RAW_CHECK(block >= 0 && block < rep_->total_blocks, "block outside the layout");
  // The last tensor that starts at or before `block`: an empty tensor shares its start with its successor and
  // so is never the last.
  const auto it = std::upper_bound(rep_->tensors.begin(), rep_->tensors.end(), block,
                                   [](int64_t b, const TensorInfo& t) { return b < t.blocks.begin; });
  return std::prev(it)->index;
}

bool operator==(const Layout& a, const Layout& b) {
  if (a.rep_ == b.rep_) return true;
  const auto same_unit = [](const UnitInfo& x, const UnitInfo& y) {
    return x.first_tensor == y.first_tensor && x.end_tensor == y.end_tensor;
  };
  const auto same_tensor = [](const TensorInfo& x, const TensorInfo& y) { return x.spec == y.spec; };
  return a.hash() == b.hash() &&
         std::equal(a.units().begin(), a.units().end(), b.units().begin(), b.units().end(), same_unit) &&
         std::equal(a.tensors().begin(), a.tensors().end(), b.tensors().begin(), b.tensors().end(),
                    same_tensor);
}

std::vector<std::vector<TensorSpec>> PackUnits(std::vector<TensorSpec> in_gradient_order,
                                               int64_t bucket_elements) {
  std::vector<std::vector<TensorSpec>> units;
  for (const bool trainable : {true, false}) {
    int64_t room = 0;  // elements still free in the last unit; none is open at first
    for (TensorSpec& spec : in_gradient_order) {
      if (spec.trainable != trainable) continue;
      const absl::optional<int64_t> numel = CountElements(spec.shape);
      const int64_t padded = numel.has_value() ? BlocksFor(*numel) * kBlockElements : kMaxLayoutElements;
      const bool alone = padded > bucket_elements;
      const bool unit_open = room >= 0 && !units.empty() && units.back().front().trainable == trainable;
      if (alone || !unit_open || padded > room) {
        units.emplace_back();
        room = alone ? -1 : bucket_elements;
      }
      if (!alone) room -= padded;
      units.back().push_back(std::move(spec));
    }
  }
  return units;
}

}  // namespace sherd
