// Blocks of a model whose parameters are there only while the block computes: ZeRO stage 3.
//
//   struct NetImpl : torch::nn::Module {
//     NetImpl() {
//       for (int i = 0; i < 12; ++i) layers.emplace_back(register_module(std::to_string(i), Layer(width)));
//     }
//     at::Tensor forward(at::Tensor x) {
//       for (auto& layer : layers) x = layer(x);     // gathers, calls layer->forward(x), releases
//       return x;
//     }
//     std::vector<sherd::torch::Sharded<Layer>> layers;
//   };
//   ZeroOptimizer::Create(session, net->named_parameters(), AdamWOptions(), ZeroOptions().stage(3), buffers,
//                         sherd::torch::BlocksOf(net->layers));
//
// Until a block is given to a ZeroOptimizer of stage 3, a call through it is the plain call.
//
// Around a call the block's parameters are gathered; backward gathers them again before its first operation
// of the block and releases them after the last. Both hold whether or not inputs need gradients, for a block
// used twice, nested or shared ones, and under activation checkpointing around the block or inside it.
// `autograd::grad` to inputs alone, and a backward or forward that throws, leave nothing gathered when they
// return. Ranks may call blocks in different orders or not at all: nobody waits for anybody.
//
// Of nested blocks each gathers what is not the inner one's. A parameter that a block uses besides those of
// its module (a tied weight) is named by AlsoUses. Parameters that belong to no block are always gathered.
//
// What a block returns must carry all that goes on from it: a tensor with a graph that leaves by another way
// (a member, a captured reference) would have its backward run with the block's parameters released. That,
// and any other use of a released parameter, ends the process with a line that names it (stray_write.h). So
// does second-order differentiation through a block (create_graph).
// An output that is an input, or a view of one, may not be changed in place: autograd says so.
#ifndef SHERD_CLIENT_TORCH_SHARDED_H_
#define SHERD_CLIENT_TORCH_SHARDED_H_

#include <ATen/core/Tensor.h>
#include <torch/nn/module.h>

#include <array>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "client/parameter_window.h"

namespace sherd::torch {

// The tensors in what a block returns: in tensors, optionals, pairs, tuples, arrays, vectors and maps, nested
// at will; other types pass. For a type of your own, overload it in that type's namespace.
inline void CollectTensors(at::Tensor& t, std::vector<at::Tensor*>* out) { out->push_back(&t); }
template <typename T>
void CollectTensors(T&, std::vector<at::Tensor*>*) {}
template <typename T>
void CollectTensors(std::optional<T>& v, std::vector<at::Tensor*>* out);
template <typename T>
void CollectTensors(std::vector<T>& v, std::vector<at::Tensor*>* out);
template <typename T, size_t N>
void CollectTensors(std::array<T, N>& v, std::vector<at::Tensor*>* out);
template <typename K, typename T>
void CollectTensors(std::map<K, T>& v, std::vector<at::Tensor*>* out);
template <typename A, typename B>
void CollectTensors(std::pair<A, B>& v, std::vector<at::Tensor*>* out);
template <typename... T>
void CollectTensors(std::tuple<T...>& v, std::vector<at::Tensor*>* out);

// What is gathered and released together. Thread-compatible, with the window and all its blocks.
class ShardedBlock : public std::enable_shared_from_this<ShardedBlock> {
 public:
  // The parameters of `module`, which must outlive the ZeroOptimizer's creation, and of modules in it.
  explicit ShardedBlock(const ::torch::nn::Module& module);
  // Besides: gathered with the block, also when they are another's.
  ShardedBlock& AlsoUses(std::vector<at::Tensor> parameters);

  // fn() with the parameters gathered; its result, whose tensors gather them again in backward.
  //   c10::Error  they could not be gathered: says why; and whatever fn throws
  template <typename Fn>
  auto Call(Fn&& fn);

  // For ZeroOptimizer: which of `parameters` the block gathers itself, given all blocks.
  std::vector<at::Tensor> Own(const std::vector<std::shared_ptr<ShardedBlock>>& all) const;
  // From now on calls gather `units` of `window`; null: no more.
  void Open(std::shared_ptr<client::ParameterWindow> window, std::vector<int> units);

  void Enter();  // gathers; c10::Error
  void Leave();

 private:
  // One call: parameters are gathered while it lives.
  class Scope {
   public:
    explicit Scope(ShardedBlock* block);
    ~Scope();
    // Puts what gathers in backward between the tensors and those who use them.
    void Return(const std::vector<at::Tensor*>& tensors);

   private:
    ShardedBlock* const block_;
    std::shared_ptr<::torch::autograd::Node> end_;  // where gradients are recorded
  };

  const ::torch::nn::Module* const module_;
  std::set<const ::torch::nn::Module*> inside_;
  std::vector<at::Tensor> parameters_, also_;
  std::shared_ptr<client::ParameterWindow> window_;
  std::vector<int> units_;
};

// A module whose calls go through a ShardedBlock. M: a shared_ptr to a module, or a ModuleHolder. Copies
// share both.
template <typename M>
class Sharded {
 public:
  explicit Sharded(M module) : module_(std::move(module)), block_(std::make_shared<ShardedBlock>(*module_)) {}

  template <typename... A>
  auto operator()(A&&... args) const {
    return block_->Call([&] { return module_->forward(std::forward<A>(args)...); });
  }
  const M& module() const { return module_; }
  M& module() { return module_; }
  const std::shared_ptr<ShardedBlock>& block() const { return block_; }

 private:
  mutable M module_;
  std::shared_ptr<ShardedBlock> block_;
};

template <typename Container>
std::vector<std::shared_ptr<ShardedBlock>> BlocksOf(const Container& sharded) {
  std::vector<std::shared_ptr<ShardedBlock>> blocks;
  for (const auto& s : sharded) blocks.push_back(s.block());
  return blocks;
}

// ---------------------------------------------------------------- templates

template <typename T>
void CollectTensors(std::optional<T>& v, std::vector<at::Tensor*>* out) {
  if (v.has_value()) CollectTensors(*v, out);
}
template <typename T>
void CollectTensors(std::vector<T>& v, std::vector<at::Tensor*>* out) {
  if constexpr (!std::is_same_v<T, bool>) {
    for (T& item : v) CollectTensors(item, out);
  }
}
template <typename T, size_t N>
void CollectTensors(std::array<T, N>& v, std::vector<at::Tensor*>* out) {
  for (T& item : v) CollectTensors(item, out);
}
template <typename K, typename T>
void CollectTensors(std::map<K, T>& v, std::vector<at::Tensor*>* out) {
  for (auto& [key, item] : v) CollectTensors(item, out);
}
template <typename A, typename B>
void CollectTensors(std::pair<A, B>& v, std::vector<at::Tensor*>* out) {
  CollectTensors(v.first, out);
  CollectTensors(v.second, out);
}
template <typename... T>
void CollectTensors(std::tuple<T...>& v, std::vector<at::Tensor*>* out) {
  std::apply([out](auto&... item) { (CollectTensors(item, out), ...); }, v);
}

template <typename Fn>
auto ShardedBlock::Call(Fn&& fn) {
  using Result = std::decay_t<std::invoke_result_t<Fn>>;
  if (window_ == nullptr) return static_cast<Result>(fn());
  Scope scope(this);
  if constexpr (std::is_void_v<Result>) {
    fn();
  } else {
    Result result = fn();
    std::vector<at::Tensor*> tensors;
    CollectTensors(result, &tensors);
    scope.Return(tensors);
    return result;
  }
}

}  // namespace sherd::torch

#endif  // SHERD_CLIENT_TORCH_SHARDED_H_
