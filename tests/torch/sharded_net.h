// A net of every kind of block that stage 3 has to wrap right: integer inputs, outputs of many kinds, a block
// used twice, one in another, activation checkpointing in two ways.
#ifndef SHERD_TESTS_TORCH_SHARDED_NET_H_
#define SHERD_TESTS_TORCH_SHARDED_NET_H_

#include <ATen/ATen.h>
#include <torch/torch.h>

#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "client/torch/job_declaration.h"
#include "client/torch/sharded.h"
#include "gtest/gtest.h"

namespace sherd::tests {

using torch::Sharded;
using torch::ShardedBlock;
using ::torch::autograd::AutogradContext;
using ::torch::autograd::variable_list;

// Integers in, floats out: no input needs a gradient.
struct EmbeddingImpl : ::torch::nn::Module {
  EmbeddingImpl() : table(register_module("table", ::torch::nn::Embedding(50, 32))) {}
  at::Tensor forward(const at::Tensor& ids) { return table(ids); }
  ::torch::nn::Embedding table{nullptr};
};
using Embedding = ::torch::nn::ModuleHolder<EmbeddingImpl>;

// Outputs of many kinds, one of them not differentiable, one an input.
struct ManyImpl : ::torch::nn::Module {
  ManyImpl()
      : a(register_module("a", ::torch::nn::Linear(32, 64))),
        b(register_module("b", ::torch::nn::Linear(64, 32))),
        norm(register_module("norm", ::torch::nn::LayerNorm(::torch::nn::LayerNormOptions({32})))) {}
  using Result = std::tuple<at::Tensor, std::vector<at::Tensor>, std::optional<at::Tensor>, int>;
  Result forward(const at::Tensor& x, const at::Tensor& y, double s, const std::string& tag) {
    const at::Tensor h = b(::torch::gelu(a(norm(x + y * s))));
    return {x + h, {h * 0.5, h.argmax(-1), h}, h, static_cast<int>(tag.size())};
  }
  ::torch::nn::Linear a{nullptr}, b{nullptr};
  ::torch::nn::LayerNorm norm{nullptr};
};
using Many = ::torch::nn::ModuleHolder<ManyImpl>;

struct LayerImpl : ::torch::nn::Module {
  LayerImpl() : a(register_module("a", ::torch::nn::Linear(32, 32))) {}
  at::Tensor forward(const at::Tensor& x) { return ::torch::relu(a(x)); }
  ::torch::nn::Linear a{nullptr};
};
using Layer = ::torch::nn::ModuleHolder<LayerImpl>;

// A block in a block, which it calls through its own wrapper, and a parameter of its own.
struct OuterImpl : ::torch::nn::Module {
  OuterImpl()
      : inner(register_module("inner", Layer())), scale(register_parameter("scale", at::full({32}, 0.5))) {}
  at::Tensor forward(const at::Tensor& x) { return inner(x * scale) * scale; }
  Sharded<Layer> inner;
  at::Tensor scale;
};
using Outer = ::torch::nn::ModuleHolder<OuterImpl>;

// Activation checkpointing in the two ways that libtorch 1.13 has: backward inside backward, whose gradients
// are accumulated there, or the gradients of inputs and parameters handed on.
using Part = std::function<at::Tensor(at::Tensor)>;
struct Reentrant : ::torch::autograd::Function<Reentrant> {
  static at::Tensor forward(AutogradContext* c, const at::Tensor& x, const Part* part) {
    const at::AutoGradMode off(false);
    c->save_for_backward({x});
    c->saved_data["part"] = reinterpret_cast<int64_t>(part);
    return (*part)(x);
  }
  static variable_list backward(AutogradContext* c, const variable_list& g) {
    const at::AutoGradMode on(true);
    const at::Tensor x = c->get_saved_variables()[0].detach().set_requires_grad(true);
    const at::Tensor y = (*reinterpret_cast<const Part*>(c->saved_data["part"].toInt()))(x);
    ::torch::autograd::backward({y}, {g[0]});
    return {x.grad(), at::Tensor()};
  }
};
struct HandedOn : ::torch::autograd::Function<HandedOn> {
  static at::Tensor forward(AutogradContext* c, const at::Tensor& x, at::TensorList parameters,
                            const Part* part) {
    const at::AutoGradMode off(false);
    variable_list saved = {x};
    saved.insert(saved.end(), parameters.begin(), parameters.end());
    c->save_for_backward(saved);
    c->saved_data["part"] = reinterpret_cast<int64_t>(part);
    return (*part)(x);
  }
  static variable_list backward(AutogradContext* c, const variable_list& g) {
    const at::AutoGradMode on(true);
    variable_list wanted = c->get_saved_variables();
    wanted[0] = wanted[0].detach().set_requires_grad(true);
    const at::Tensor y = (*reinterpret_cast<const Part*>(c->saved_data["part"].toInt()))(wanted[0]);
    variable_list out = ::torch::autograd::grad({y}, wanted, {g[0]});
    out.emplace_back();
    return out;
  }
};

struct Thrower : ::torch::autograd::Function<Thrower> {
  static at::Tensor forward(AutogradContext*, const at::Tensor& x) { return x * 1.0; }
  static variable_list backward(AutogradContext*, const variable_list&) {
    throw std::runtime_error("on purpose");
  }
};

enum class Checkpoint { kNone, kReentrant, kHandedOn, kInside };

struct Net {
  Net() : embed(Embedding()), many(Many()), twice(Layer()), outer(Outer()), last(Layer()) {}
  std::vector<std::shared_ptr<ShardedBlock>> blocks() const {
    return {embed.block(), many.block(), twice.block(), outer.block(), outer.module()->inner.block(),
            last.block()};
  }
  torch::NamedTensors parameters() const {
    torch::NamedTensors all;
    const auto add = [&all](const std::string& name, const ::torch::nn::Module& m) {
      for (const auto& p : m.named_parameters()) all.insert(name + "." + p.key(), p.value());
    };
    add("embed", *embed.module());
    add("many", *many.module());
    add("twice", *twice.module());
    add("outer", *outer.module());
    add("last", *last.module());
    return all;
  }
  at::Tensor Loss(const at::Tensor& ids, Checkpoint checkpoint, bool in_place) {
    const at::Tensor x = embed(ids);
    auto [h, v, o, n] = many(x, x, 0.5, std::string("tag"));
    EXPECT_EQ(n, 3);
    EXPECT_TRUE(v[2].is_same(*o));  // as they were
    if (in_place) h.add_(1.0);
    at::Tensor z = twice(h);
    z = twice(z + v[0] + *o);
    z = outer(z);
    part = [this](const at::Tensor& t) { return last(t); };
    switch (checkpoint) {
      case Checkpoint::kNone:
        z = part(z);
        break;
      case Checkpoint::kReentrant:
        z = Reentrant::apply(z, &part);
        break;
      case Checkpoint::kHandedOn:
        z = HandedOn::apply(z, at::TensorList(last.module()->parameters()), &part);
        break;
      case Checkpoint::kInside:
        inside = [this](const at::Tensor& t) { return last.module()->forward(t); };
        z = last.block()->Call([&] { return Reentrant::apply(z, &inside); });
        break;
    }
    return z.pow(2).mean();
  }

  Sharded<Embedding> embed;
  Sharded<Many> many;
  Sharded<Layer> twice;
  Sharded<Outer> outer;
  Sharded<Layer> last;
  Part part, inside;
};

}  // namespace sherd::tests

#endif  // SHERD_TESTS_TORCH_SHARDED_NET_H_
