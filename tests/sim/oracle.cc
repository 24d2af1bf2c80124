#include "tests/sim/oracle.h"

#include <cmath>

#include "absl/strings/str_cat.h"

namespace sherd::sim {
namespace {

[[noreturn]] void Fail(const std::string& what) { throw Failure{what}; }

bool Same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

std::string Text(const Proposals& p) {
  return absl::StrCat("{ranges ", p.ranges, ", snapshot ", p.snapshot, ", import ", p.import, "}");
}

}  // namespace

Oracle::Oracle(const Job& job) : job_(job) {
  now_.planes.resize(job.blocks);
  now_.stamps.assign(job.blocks, 0);
  for (int b = 0; b < job.blocks; ++b) {
    for (int e = 0; e < kElements; ++e) now_.planes[b].param[e] = b * kElements + e;
  }
  now_.decided.ranges = 1;
  now_.loss_scale = FirstLossScale(job.loss_scale);
  now_.after.push_back(now_.planes);
}

const std::vector<Planes>* Oracle::SnapshotOf(uint64_t id) const {
  const auto it = now_.snapshots.find(id);
  return it == now_.snapshots.end() ? nullptr : &it->second;
}

// Part by part, and in each group by group, as the owners do.
void Oracle::AddUp(StepId id, std::vector<Values>* sums) const {
  struct Sum {
    Values values{};
    bool any = false;
  };
  std::map<std::pair<int, int>, std::vector<Sum>> partial;  // by part and group, per block
  const int world_size = world_of(now_.decided.ranges);
  const std::vector<int32_t> groups = job_.groups.empty() ? std::vector<int32_t>{world_size} : job_.groups;
  const RankMap of(groups, world_size);
  for (int r = 0; r < world_size; ++r) {
    std::vector<int> parts(job_.units.size(), 0);
    for (const Job::Part& p : job_.Parts(Rank(r), id)) {
      const int part = parts[p.unit]++;
      std::vector<Sum>& sum = partial[{part, of.HostOf(Rank(r))}];
      sum.resize(job_.blocks);
      const BlockRange blocks = job_.units[p.unit].blocks;
      for (int64_t b = blocks.begin; b < blocks.end && !p.empty; ++b) {
        sum[b].any = true;
        for (int e = 0; e < kElements; ++e) {
          sum[b].values[e] += p.scale * job_.Gradient(Rank(r), id.step, p.unit, part, static_cast<int>(b), e);
        }
      }
    }
  }
  sums->assign(job_.blocks, {});
  for (const auto& [key, sum] : partial) {
    for (int b = 0; b < job_.blocks; ++b) {
      for (int e = 0; e < kElements && sum[b].any; ++e) (*sums)[b][e] += job_.Rounded(sum[b].values[e]);
    }
  }
}

Verdict Oracle::Expected(StepId id, std::vector<Values>* sums) const {
  Verdict v;
  v.id = id;
  v.has_grad.assign(1, 0);
  v.loss_scale = now_.loss_scale;
  double weight = 0, loss = 0;
  for (int r = 0; r < world_of(now_.decided.ranges); ++r) {
    const TrainerStep s = job_.Record(Rank(r), id);
    weight += s.weight;
    v.samples += s.samples;
    loss += s.loss * static_cast<double>(s.samples);
    v.has_grad[0] |= s.has_grad[0];
    v.imports.insert(v.imports.end(), s.imports.begin(), s.imports.end());
    v.groups = job_.Record(Rank(0), id).groups;
    if (s.groups != v.groups) v.kind = VerdictKind::kReject;
  }
  AddUp(id, sums);
  v.loss = loss / static_cast<double>(v.samples);
  double squares = 0;
  for (int b = 0; b < job_.blocks; ++b) {
    if (!TestBit(v.has_grad, job_.TensorOf(b))) continue;
    for (double x : (*sums)[b]) squares += x * x;
  }
  if (v.kind == VerdictKind::kReject) return v;
  const double max = job_.Record(Rank(0), id).max_grad_norm;
  const double mean = 1 / (weight * now_.loss_scale.scale);
  v.grad_norm = std::sqrt(squares) * mean;
  v.loss_scale = NextLossScale(job_.loss_scale, now_.loss_scale, std::isnan(squares));
  if (std::isnan(squares)) {
    v.kind = VerdictKind::kSkip;
    return v;
  }
  if (max > 0) v.clip = std::min(1.0, max / (v.grad_norm + 1e-6));
  v.grad_scale = mean * v.clip;
  return v;
}

void Oracle::Take(const Proposals& decision) {
  if (decision.ranges < now_.decided.ranges || decision.snapshot < now_.decided.snapshot ||
      decision.import < now_.decided.import) {
    Fail(absl::StrCat("decided ", Text(decision), " after ", Text(now_.decided)));
  }
  for (uint64_t id = now_.decided.snapshot + 1; id <= decision.snapshot; ++id)
    now_.snapshots[id] = now_.planes;
  now_.decided = decision;
}

void Oracle::Store(uint64_t import) {
  for (int b = 0; b < job_.blocks; ++b) {
    if (const std::optional<Values> v = job_.Import(import, b); v.has_value()) now_.planes[b].param = *v;
  }
}

void Oracle::Note(int host, const std::pair<uint64_t, bool>& what, bool first) {
  if (first) {
    before_ = now_;
    last_ = what;
    last_by_.clear();
  }
  if (what == last_) last_by_.insert(host);
}

void Oracle::Forget(int host) {
  if (last_by_ != std::set<int>{host}) return;
  now_ = before_;
  last_by_.clear();
}

void Oracle::OnVerdict(int host, const Verdict& v, const Proposals& decided) {
  Note(host, {Mark::Of(v.id).word(), false}, now_.verdicts.count(Mark::Of(v.id).word()) == 0);
  const auto [it, first] = now_.verdicts.try_emplace(Mark::Of(v.id).word(), v, decided);
  if (!first) {
    const Verdict& w = it->second.first;
    if (w.kind != v.kind || !Same(w.grad_norm, v.grad_norm) || !(w.proposals == v.proposals)) {
      Fail(absl::StrCat("owners decided step ", v.id.ToString(), " differently: ", Text(v.proposals), " and ",
                        Text(w.proposals)));
    }
    if (!IsRepeated(v.kind) && !(it->second.second == decided)) {
      Fail(absl::StrCat("before step ", v.id.ToString(), " one owner had decided ", Text(decided),
                        ", another ", Text(it->second.second)));
    }
    return;
  }
  if (v.id != now_.next)
    Fail(absl::StrCat("step ", v.id.ToString(), " decided, expected ", now_.next.ToString()));
  if (v.kind == VerdictKind::kGivenUp) {
    now_.next = v.id.NextAttempt();
    return;
  }
  std::vector<Values> sums;
  const Verdict w = Expected(v.id, &sums);
  if (w.kind != v.kind) {
    Fail(absl::StrCat("verdict ", static_cast<int>(v.kind), " on step ", v.id.ToString(), ", expected ",
                      static_cast<int>(w.kind)));
  }
  if (v.kind == VerdictKind::kReject) {
    now_.next = v.id.NextAttempt();
    return;
  }
  if (!Same(w.grad_norm, v.grad_norm) || !Same(w.loss, v.loss) || w.samples != v.samples ||
      w.has_grad != v.has_grad || w.imports != v.imports || w.groups != v.groups ||
      !Same(w.grad_scale, v.grad_scale) || w.loss_scale != v.loss_scale) {
    Fail(absl::StrCat("wrong verdict on step ", v.id.ToString(), ": norm ", v.grad_norm, ", expected ",
                      w.grad_norm));
  }
  if (!(decided == now_.decided)) {
    Fail(absl::StrCat("before step ", v.id.ToString(), " an owner had decided ", Text(decided), ", in truth ",
                      Text(now_.decided)));
  }
  std::vector<uint64_t> imports = v.imports;
  for (uint64_t id = now_.decided.import + 1; id <= v.proposals.import; ++id) imports.push_back(id);
  std::vector<double> trust(job_.tensors.size(), 1);
  for (size_t t = 0; t < trust.size() && job_.norms; ++t) {
    double sum = 0;
    for (int64_t b = job_.tensors[t].blocks.begin; b < job_.tensors[t].blocks.end; ++b) {
      sum += Job::Norm(now_.planes[b], sums[b]);
    }
    trust[t] = Job::Trust(sum);
  }
  for (int b = 0; b < job_.blocks; ++b) {
    bool touched = v.kind == VerdictKind::kCommit && TestBit(v.has_grad, job_.TensorOf(b));
    for (int e = 0; e < kElements && touched; ++e) {
      now_.planes[b].momentum[e] += sums[b][e];
      now_.planes[b].param[e] -= v.groups[0][kLr] * trust[job_.TensorOf(b)] * now_.planes[b].momentum[e];
    }
    for (uint64_t id : imports) touched |= job_.Import(id, b).has_value();
    now_.planes[b].updates += touched;
    if (touched) now_.stamps[b] = Mark::Of(v.id).word();
  }
  for (uint64_t id : imports) Store(id);
  Proposals decision = now_.decided;
  decision.MergeMax(v.proposals);
  Take(decision);
  now_.done = v.id;
  now_.next = v.id.NextStep();
  now_.loss_scale = v.loss_scale;
  now_.committed.push_back(v.id);
  now_.after.push_back(now_.planes);
}

void Oracle::OnBoundary(int host, StepId before, uint32_t n, const Proposals& decision,
                        const Proposals& decided) {
  Note(host, {Mark::Of(before, n).word(), true}, now_.boundaries.count(Mark::Of(before, n).word()) == 0);
  const auto [it, first] = now_.boundaries.try_emplace(Mark::Of(before, n).word(), decision, decided);
  if (!first) {
    if (it->second.first == decision && it->second.second == decided) return;
    Fail(absl::StrCat("owners decided a boundary before step ", before.ToString(),
                      " differently: ", Text(decision), " after ", Text(decided), ", and ",
                      Text(it->second.first), " after ", Text(it->second.second)));
  }
  if (before != now_.next) {
    Fail(absl::StrCat("boundary before step ", before.ToString(), ", expected ", now_.next.ToString()));
  }
  if (!(decided == now_.decided)) {
    Fail(absl::StrCat("at a boundary before step ", before.ToString(), " an owner had decided ",
                      Text(decided), ", in truth ", Text(now_.decided)));
  }
  const uint64_t imports = now_.decided.import;
  if (world_of(decision.ranges) != world_of(now_.decided.ranges))
    now_.next = now_.next.NextAttempt();  // is given up
  Take(decision);
  for (uint64_t id = imports + 1; id <= decision.import; ++id) Store(id);
  now_.after.back() = now_.planes;
}

}  // namespace sherd::sim
