#include "client/torch/meta_init.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <sys/mman.h>
#include <torch/library.h>

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "client/torch/stray_write.h"

namespace sherd::torch {
namespace {

// libtorch's key for modes of programs: above all others, and off unless a thread turns it on.
constexpr c10::DispatchKey kMode = c10::DispatchKey::TESTING_ONLY_GenericMode;
using Plain = c10::impl::ExcludeDispatchKeyGuard;

// What the storage of such a tensor owns: addresses without memory, and the note.
struct Reserved {
  void* map = nullptr;
  size_t bytes = 0;
  NotedValues noted;
};
void Free(void* context) {
  auto* r = static_cast<Reserved*>(context);
  ::munmap(r->map, r->bytes);
  delete r;
}

struct Scope {
  uint64_t seed = 0;
  std::vector<GuardedRange> made;
};
thread_local std::unique_ptr<Scope> t_scope;

Reserved* ReservedOf(const at::Tensor& t) {
  if (!t.defined() || !t.has_storage()) return nullptr;
  const at::DataPtr& data = t.storage().data_ptr();
  return data.get_deleter() == &Free ? static_cast<Reserved*>(data.get_context()) : nullptr;
}

at::Tensor Empty(c10::SymIntArrayRef size, c10::optional<at::ScalarType> dtype,
                 c10::optional<at::Layout> layout, c10::optional<at::Device> device,
                 c10::optional<bool> pinned, c10::optional<at::MemoryFormat> format) {
  const Plain plain(kMode);
  const at::IntArrayRef sizes = c10::asIntArrayRefSlow(size);
  const at::ScalarType type = dtype.value_or(c10::get_default_dtype_as_scalartype());
  const bool ours = at::isFloatingType(type) && layout.value_or(at::kStrided) == at::kStrided &&
                    device.value_or(at::kCPU).is_cpu() && !pinned.value_or(false) &&
                    format.value_or(at::MemoryFormat::Contiguous) == at::MemoryFormat::Contiguous;
  const int64_t numel = c10::multiply_integers(sizes);
  const auto options = at::TensorOptions().dtype(type).layout(layout).device(device).pinned_memory(pinned);
  if (!ours || numel <= 0 || t_scope == nullptr) return at::empty(sizes, options, format);
  auto reserved = std::make_unique<Reserved>();
  reserved->bytes = static_cast<size_t>(numel) * c10::elementSize(type);
  reserved->noted.seed = t_scope->seed;
  reserved->map =
      ::mmap(nullptr, reserved->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  TORCH_CHECK(reserved->map != MAP_FAILED, "no addresses for ", reserved->bytes, " bytes of a parameter");
  static const auto* const kNever = new std::atomic<int>(0);
  t_scope->made.push_back({reserved->map,
                           static_cast<int64_t>(reserved->bytes),
                           c10::str(sizes, " (of a MetaInit)"),
                           {std::shared_ptr<void>(), kNever}});
  Reserved* const r = reserved.release();
  const at::Storage storage(at::Storage::use_byte_size_t(), r->bytes, at::DataPtr(r->map, r, &Free, at::kCPU),
                            /*allocator=*/nullptr, /*resizable=*/false);
  return at::empty({0}, at::TensorOptions().dtype(type)).set_(storage, 0, sizes);
}

// Notes it for a tensor of ours, else does it.
template <typename Do>
at::Tensor& NoteOr(at::Tensor& self, const Initialiser& how, const Do& act) {
  const Plain plain(kMode);
  Reserved* const r = ReservedOf(self);
  if (r == nullptr) {
    act();
    return self;
  }
  TORCH_CHECK(self.is_contiguous() && self.nbytes() == r->bytes,
              "under MetaInit a part of a parameter can not be initialised by itself: shape ", self.sizes());
  r->noted.how = how;
  return self;
}

at::Tensor& Uniform(at::Tensor& self, double low, double high, c10::optional<at::Generator> generator) {
  return NoteOr(self, {Initialiser::Kind::kUniform, low, high},
                [&] { self.uniform_(low, high, std::move(generator)); });
}
at::Tensor& Normal(at::Tensor& self, double mean, double deviation, c10::optional<at::Generator> generator) {
  return NoteOr(self, {Initialiser::Kind::kNormal, mean, deviation},
                [&] { self.normal_(mean, deviation, std::move(generator)); });
}
at::Tensor& Zero(at::Tensor& self) {
  return NoteOr(self, {Initialiser::Kind::kConstant, 0, 0}, [&] { self.zero_(); });
}
at::Tensor& Fill(at::Tensor& self, const at::Scalar& value) {
  if (ReservedOf(self) == nullptr) return NoteOr(self, {}, [&] { self.fill_(value); });
  return NoteOr(self, {Initialiser::Kind::kConstant, value.to<double>(), 0}, [] {});
}
at::Tensor& Multiply(at::Tensor& self, const at::Scalar& factor) {
  Reserved* const r = ReservedOf(self);
  if (r == nullptr) return NoteOr(self, {}, [&] { self.mul_(factor); });
  TORCH_CHECK(r->noted.how.has_value(),
              "under MetaInit a parameter can only be multiplied after it was initialised");
  return NoteOr(self, r->noted.how->Times(factor.to<double>()), [] {});
}

// Any other operation: views are harmless, values are not there.
void Other(const c10::OperatorHandle& op, ::torch::jit::Stack* stack) {
  const Plain plain(kMode);
  const c10::FunctionSchema& schema = op.schema();
  const size_t count = schema.arguments().size();
  for (size_t i = 0; i < count; ++i) {
    const c10::IValue& value = (*stack)[stack->size() - count + i];
    const c10::AliasInfo* alias = schema.arguments()[i].alias_info();
    if (alias != nullptr && !alias->isWrite()) continue;
    std::vector<at::Tensor> tensors;
    if (value.isTensor()) tensors.push_back(value.toTensor());
    if (value.isTensorList()) tensors = value.toTensorVector();
    for (const at::Tensor& t : tensors) {
      TORCH_CHECK(ReservedOf(t) == nullptr, schema.operator_name(),
                  " needs the values of a parameter of shape ", t.sizes(),
                  " that MetaInit made: they come about in the job's shared memory");
    }
  }
  op.callBoxed(stack);
}

}  // namespace

MetaInit::MetaInit(uint64_t seed) : on_(kMode) {
  TORCH_CHECK(t_scope == nullptr, "a MetaInit inside another");
  t_scope = std::make_unique<Scope>();
  t_scope->seed = seed;
}

MetaInit::~MetaInit() {
  GuardAgainstStrayWrites(std::move(t_scope->made));
  t_scope.reset();
}

std::optional<NotedValues> NotedOf(const at::Tensor& t) {
  const Reserved* const r = ReservedOf(t);
  return r == nullptr ? std::nullopt : std::optional<NotedValues>(r->noted);
}

void Materialise(const std::string& name, at::Tensor* t) {
  const std::optional<NotedValues> noted = NotedOf(*t);
  if (!noted.has_value()) return;
  TORCH_CHECK(noted->how.has_value(), name, " was made under MetaInit and never initialised");
  const at::NoGradGuard no_grad;
  const at::Tensor values = at::empty(t->sizes(), at::kFloat);
  FillInitial(*noted->how, noted->seed, name, 0,
              absl::MakeSpan(values.data_ptr<float>(), static_cast<size_t>(values.numel())));
  t->set_data(values.to(t->scalar_type()));
}

}  // namespace sherd::torch

// Outside of our namespace: the macros mean libtorch's `torch`.
TORCH_LIBRARY_IMPL(_, TESTING_ONLY_GenericMode, m) {
  m.fallback(::torch::CppFunction::makeFromBoxedFunction<&sherd::torch::Other>());
}
TORCH_LIBRARY_IMPL(aten, TESTING_ONLY_GenericMode, m) {
  m.impl("empty.memory_format", &sherd::torch::Empty);
  m.impl("uniform_", &sherd::torch::Uniform);
  m.impl("normal_", &sherd::torch::Normal);
  m.impl("zero_", &sherd::torch::Zero);
  m.impl("fill_.Scalar", &sherd::torch::Fill);
  m.impl("mul_.Scalar", &sherd::torch::Multiply);
}
