#include "client/torch/sharded.h"

#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>

namespace sherd::torch {
namespace {

using ::torch::autograd::edge_list;
using ::torch::autograd::Node;
using ::torch::autograd::variable_list;

bool Contains(const std::vector<at::Tensor>& tensors, const at::Tensor& t) {
  return std::any_of(tensors.begin(), tensors.end(), [&](const at::Tensor& x) { return x.is_same(t); });
}

// One backward through a call of a block: gathered from its making until Close, or its end.
class OpenBackward {
 public:
  explicit OpenBackward(std::shared_ptr<ShardedBlock> block) : block_(std::move(block)) { block_->Enter(); }
  ~OpenBackward() { Close(); }
  void Close() {
    if (std::exchange(open_, false)) block_->Leave();
  }

 private:
  const std::shared_ptr<ShardedBlock> block_;
  bool open_ = true;
};

// The sentinel. Made before the nodes of the block, so its sequence number is the lowest, and autograd, which
// takes the highest among nodes that are ready, comes to it when nothing of the block is left.
struct BlockEnd : Node {
  BlockEnd() { add_input_metadata(Node::undefined_input{}); }
  variable_list apply(variable_list&&) override {
    if (const std::shared_ptr<OpenBackward> open = open_backward.lock()) open->Close();
    return {};
  }
  std::string name() const override { return "sherd::BlockEnd"; }
  std::weak_ptr<OpenBackward> open_backward;
};

// Between the block's outputs and their users: the first that backward comes to. Gradients pass.
struct BlockBegin : Node {
  BlockBegin(std::shared_ptr<ShardedBlock> block, std::shared_ptr<BlockEnd> end)
      : block(std::move(block)), end(std::move(end)) {}
  variable_list apply(variable_list&& gradients) override {
    const auto open = std::make_shared<OpenBackward>(block);
    end->open_backward = open;
    // A backward that does not need the block's inputs or parameters never comes to its end, nor does one
    // that throws. The callback runs when backward is over, and goes with it in any case.
    ::torch::autograd::Engine::get_default_engine().queue_callback([open] { open->Close(); });
    variable_list out;
    out.reserve(gradients.size() + 1);
    out.emplace_back();  // for `end`
    for (at::Tensor& g : gradients) out.push_back(std::move(g));
    return out;
  }
  std::string name() const override { return "sherd::BlockBegin"; }
  const std::shared_ptr<ShardedBlock> block;
  const std::shared_ptr<BlockEnd> end;
};

// A tensor with the memory and the version counter of `t` and a history of its own. In-place changes are seen
// through both; where others than the block's own may look at that memory, autograd is told to refuse them.
at::Tensor Alias(const at::Tensor& t, uint64_t before) {
  at::Tensor alias(t.unsafeGetTensorImpl()->shallow_copy_and_detach(
      t.unsafeGetTensorImpl()->version_counter(), /*allow_tensor_metadata_change=*/true));
  const auto* view = ::torch::autograd::impl::get_view_autograd_meta(t);
  const at::Tensor base = view != nullptr && view->has_bw_view() ? view->get_backward_view().base_ : t;
  const bool own = base.grad_fn() != nullptr && base.grad_fn()->sequence_nr() > before;
  if (own) return alias;
  return ::torch::autograd::make_variable_differentiable_view(
      alias, ::torch::autograd::ViewInfo(base, nullptr), c10::nullopt, /*shared_view_info=*/false,
      ::torch::autograd::CreationMeta::IN_CUSTOM_FUNCTION);
}

}  // namespace

ShardedBlock::ShardedBlock(const ::torch::nn::Module& module)
    : module_(&module), parameters_(module.parameters()) {
  for (const auto& m : module.modules(/*include_self=*/false)) inside_.insert(m.get());
}

ShardedBlock& ShardedBlock::AlsoUses(std::vector<at::Tensor> parameters) {
  also_.insert(also_.end(), parameters.begin(), parameters.end());
  return *this;
}

std::vector<at::Tensor> ShardedBlock::Own(const std::vector<std::shared_ptr<ShardedBlock>>& all) const {
  std::vector<at::Tensor> own = also_;
  for (const at::Tensor& p : parameters_) {
    const bool inner = std::any_of(all.begin(), all.end(), [&](const std::shared_ptr<ShardedBlock>& b) {
      return inside_.count(b->module_) != 0 && Contains(b->parameters_, p);
    });
    if (!inner && !Contains(own, p)) own.push_back(p);
  }
  return own;
}

void ShardedBlock::Open(std::shared_ptr<client::ParameterWindow> window, std::vector<int> units) {
  window_ = std::move(window);
  units_ = std::move(units);
}

void ShardedBlock::Enter() {
  for (size_t i = 0; i < units_.size(); ++i) {
    const absl::Status there = window_->Gather(units_[i]);
    if (there.ok()) continue;
    for (size_t k = 0; k < i; ++k) window_->Release(units_[k]);
    TORCH_CHECK(false, "parameters could not be gathered: ", there.ToString());
  }
}

void ShardedBlock::Leave() {
  for (const int u : units_) window_->Release(u);
}

ShardedBlock::Scope::Scope(ShardedBlock* block) : block_(block) {
  block_->Enter();
  if (at::GradMode::is_enabled()) end_ = std::make_shared<BlockEnd>();
}

ShardedBlock::Scope::~Scope() { block_->Leave(); }

void ShardedBlock::Scope::Return(const std::vector<at::Tensor*>& tensors) {
  if (end_ == nullptr) return;
  const auto end = std::static_pointer_cast<BlockEnd>(end_);
  edge_list edges = {{end, 0}};
  std::vector<at::Tensor> inner;  // each once: outputs may repeat
  for (const at::Tensor* t : tensors) {
    if (!t->defined() || !t->requires_grad() || Contains(inner, *t)) continue;
    inner.push_back(*t);
    edges.push_back(::torch::autograd::impl::gradient_edge(*t));
  }
  if (inner.empty()) return;
  const auto begin = std::make_shared<BlockBegin>(block_->shared_from_this(), end);
  begin->set_next_edges(std::move(edges));
  std::vector<at::Tensor> outer;
  for (const at::Tensor& t : inner) {
    outer.push_back(Alias(t, end->sequence_nr()));
    ::torch::autograd::set_history(outer.back(), begin);
  }
  for (at::Tensor* t : tensors) {
    for (size_t i = 0; i < inner.size(); ++i) {
      if (t->defined() && t->is_same(inner[i])) {
        *t = outer[i];
        break;
      }
    }
  }
}

}  // namespace sherd::torch
