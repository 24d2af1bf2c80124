#include "tests/sim/job.h"

#include <algorithm>
#include <limits>

#include "core/epoch_doc.h"
#include "tests/sim/scheduler.h"

namespace sherd::sim {

Job Job::FromSeed(uint64_t seed) {
  Random random(Random::Mix(seed ^ 0x5EED));
  Job job;
  job.seed = seed;
  job.world_size = 1 + random.Below(4);
  job.servers = 1 + random.Below(kMaxSlots);
  job.steps = 3 + random.Below(3);
  job.ring = random.Chance(60);
  job.norms = Random::Mix(seed ^ 0x2078) % 2 == 0;
  const uint64_t hosts = Random::Mix(seed ^ 0x405);
  job.hosts = 1 + static_cast<int>(hosts % 4 % 3);
  // Groups that hold all of it each, of one host or of two.
  const uint64_t sharing = Random::Mix(seed ^ 0x6121) % 6;
  if (job.hosts == 3 && sharing >= 4) job.hosts = 4;
  job.shard_hosts = job.hosts == 4 ? 2 : job.hosts > 1 && sharing < 2 ? 1 : 0;
  job.world_size = std::max(job.world_size, job.hosts);
  job.servers = std::max(job.servers, job.hosts);
  const int groups =
      job.hosts > 1 ? job.hosts : 1 + static_cast<int>(hosts / 4 % 3 == 1 && job.world_size > 1);
  if (groups > 1) {
    job.groups.assign(groups, 1);
    for (int r = groups; r < job.world_size; ++r) ++job.groups[(hosts >> (8 + r)) % groups];
  }
  if (job.Grid().groups() > 1) job.losses = static_cast<int>(Random::Mix(seed ^ 0x1055) % 3);
  if (job.losses > 0) job.norms = false;
  job.places = job.hosts == 1 && job.groups.empty() ? 5 : job.world_size;
  const int units = 1 + random.Below(3);
  for (int u = 0; u < units; ++u) {
    UnitShape unit;
    unit.blocks.begin = job.blocks;
    for (int tensors = random.Below(3); tensors >= 0; --tensors) {
      const int size = 1 + random.Below(tensors == 0 ? 5 : 2);
      job.tensors.push_back({u, {job.blocks, job.blocks + size}});
      job.blocks += size;
    }
    unit.blocks.end = job.blocks;
    job.units.push_back(unit);
  }
  return job;
}

int Job::HostOfSlot(int slot) const {
  EpochDoc doc;
  for (int h = 0; h < hosts && hosts > 1; ++h) doc.hosts.push_back({"", "", 0, ServersAtFirst(h)});
  return sherd::HostOfSlot(doc, slot);
}

int Job::UnitOf(int block) const { return tensors[TensorOf(block)].unit; }

int Job::TensorOf(int block) const {
  for (size_t t = 0; t < tensors.size(); ++t) {
    if (block < tensors[t].blocks.end) return static_cast<int>(t);
  }
  return -1;
}

uint64_t Job::Hash(uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e) const {
  uint64_t h = seed;
  for (uint64_t x : {a, b, c, d, e}) h = Random::Mix(h * 31 + x + 1);
  return h;
}

bool Job::HasGrad(Rank rank, Step step, int tensor) const {
  if (world_size > 1 && Hash(1, rank.value(), step.value()) % 8 == 0) return false;  // no samples
  return Hash(2, step.value(), tensor) % 7 != 0 && Hash(3, rank.value(), step.value(), tensor) % 5 != 0;
}

std::vector<Job::Part> Job::Parts(Rank rank, StepId id) const {
  const uint64_t r = rank.value(), step = id.step.value();
  std::vector<int> parts(units.size());
  int most = 0;
  for (size_t u = 0; u < units.size(); ++u) {
    const uint64_t h = Hash(4, r, step, u);
    bool any = false;
    for (size_t t = 0; t < tensors.size(); ++t) {
      any |= tensors[t].unit == static_cast<int>(u) && HasGrad(rank, id.step, static_cast<int>(t));
    }
    // Without a gradient: not delivered, or as empty.
    parts[u] = any ? 1 + static_cast<int>(h % (ring ? 3 : 8) == 1) + static_cast<int>(h % 13 == 5)
                   : static_cast<int>(h % 2);
    most = std::max(most, parts[u]);
  }
  // Part k of any unit comes after part k - 1 of every unit, if only as empty: else two ranks that wait for
  // each other's units to be consumed would wait for ever.
  for (int& n : parts) n = std::max(n, most - 1);
  std::vector<Part> out;
  for (int p = 0; p < most; ++p) {
    std::vector<int> order;
    for (size_t u = 0; u < units.size(); ++u) {
      if (parts[u] > p) order.push_back(static_cast<int>(u));
    }
    std::sort(order.begin(), order.end(), [&](int a, int b) {
      return Hash(5, r, step, id.attempt * 8 + p, a) < Hash(5, r, step, id.attempt * 8 + p, b);
    });
    for (int u : order) {
      bool any = false;
      for (size_t t = 0; t < tensors.size(); ++t) {
        any |= tensors[t].unit == u && HasGrad(rank, id.step, static_cast<int>(t));
      }
      const uint64_t h = Hash(6, r, step, u, p);
      // Any part but the first may happen to have nothing for this unit.
      out.push_back({u, !any || (p > 0 && h % 4 == 0), static_cast<double>(1 + h / 4 % 2)});
    }
  }
  return out;
}

TrainerStep Job::Record(Rank rank, StepId id) const {
  TrainerStep s;
  s.id = id;
  const std::vector<Part> all = Parts(rank, id);
  s.parts.assign(units.size(), 0);
  for (const Part& p : all) ++s.parts[p.unit];
  s.has_grad.assign(1, 0);
  bool any = false;
  for (size_t t = 0; t < tensors.size(); ++t) {
    if (!HasGrad(rank, id.step, static_cast<int>(t))) continue;
    SetBit(s.has_grad, static_cast<int>(t));
    any = true;
  }
  // Rank 0 always has a sample: a step that nobody computes is another matter.
  s.samples = any || rank.value() == 0 ? 1 + Hash(7, rank.value(), id.step.value()) % 3 : 0;
  s.weight = static_cast<double>(s.samples);
  s.loss = static_cast<double>(Hash(8, rank.value(), id.step.value()) % 16);
  s.max_grad_norm = Hash(9, id.step.value()) % 2 == 0 ? 0 : 4;
  s.groups.resize(1);
  s.groups[0][kEps] = 1e-8;
  s.groups[0][kLr] = static_cast<double>(1 + Hash(10, id.step.value()) % 2);
  const bool disagree = id.attempt < 2 && Hash(11, id.step.value(), id.attempt) % 4 == 0;
  if (disagree && world_size > 1 && rank.value() == world_size - 1) s.groups[0][kLr] = 7;
  if (Hash(12, rank.value(), id.step.value()) % 6 == 0) {
    s.imports.push_back(1000 + id.step.value() * 16 + rank.value());
  }
  return s;
}

double Job::Gradient(Rank rank, Step step, int unit, int part, int block, int element) const {
  if (!HasGrad(rank, step, TensorOf(block))) return 0;
  const uint64_t h = Hash(13, rank.value() * 64 + unit * 8 + part, step.value(), block, element);
  if (part == 0 && element == 1 && Hash(14, step.value(), rank.value()) % 30 == 0) {
    return std::numeric_limits<double>::quiet_NaN();
  }
  return static_cast<double>(h % 7) - 3;
}

uint64_t Job::Blob(Rank rank, StepId id) const { return Hash(15, rank.value(), id.step.value(), id.attempt); }

std::optional<Values> Job::Import(uint64_t import, int block) const {
  if (Hash(16, import, block) % 3 == 0) return std::nullopt;
  Values v;
  for (int e = 0; e < kElements; ++e) v[e] = static_cast<double>(Hash(17, import, block, e) % 1000);
  return v;
}

double Job::Norm(const Planes& planes, const Values& grad) {
  double sum = 0;
  for (int e = 0; e < kElements; ++e) sum += planes.param[e] + planes.momentum[e] + grad[e];
  return sum;
}

double Job::Trust(double sum) { return 1 + std::fabs(std::fmod(sum, 3)); }

}  // namespace sherd::sim
