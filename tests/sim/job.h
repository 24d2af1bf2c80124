// What is fixed about one simulated job: its layout and what its trainers will compute. A block holds four
// small integers, so that sums are exact in any order.
#ifndef SHERD_TESTS_SIM_JOB_H_
#define SHERD_TESTS_SIM_JOB_H_

#include <array>
#include <cmath>
#include <cstdint>
#include <optional>
#include <vector>

#include "core/host_map.h"
#include "core/step_records.h"

namespace sherd::sim {

inline constexpr int kElements = 4;
inline constexpr int kMaxSlots = 4;
using Values = std::array<double, kElements>;

struct Planes {
  Values param{}, momentum{};
  double updates = 0;  // stands for the tensor's update count; in the block, so that the journal covers it
  friend bool operator==(const Planes& a, const Planes& b) {
    return a.param == b.param && a.momentum == b.momentum && a.updates == b.updates;
  }
};

struct UnitShape {
  BlockRange blocks;
};
struct TensorShape {
  int unit = 0;
  BlockRange blocks;
};

// What a job is, from its seed.
struct Job {
  uint64_t seed = 0;
  int world_size = 1, servers = 1, steps = 4;  // at first
  int places = 1;                              // ranks that there may be: on one host trainers come and go
  bool ring = false;                           // stage 2
  bool norms = false;                          // the optimizer updates whole tensors by their norms
  // On how many machines, and the ranks of each; or one, which adds up as so many would (ReductionTree).
  int hosts = 1;
  int shard_hosts = 0;          // HostGrid::group; 0: all of them
  int losses = 0;               // of hosts, which others follow
  std::vector<int32_t> groups;  // consecutive ranks; empty: all are one
  int ring_units = 2;           // of the first ring
  std::vector<UnitShape> units;
  std::vector<TensorShape> tensors;
  int blocks = 0;
  // It moves every few steps. Gradients are what they are; only the verdict divides.
  LossScaleSpec loss_scale{/*dynamic=*/true, /*initial=*/4, /*window=*/1, /*hysteresis=*/2, /*min=*/1};

  static Job FromSeed(uint64_t seed);
  bool elastic() const { return places > world_size; }
  int HostOfRank(Rank rank) const { return hosts > 1 ? Ranks().HostOf(rank) : 0; }
  RankMap Ranks() const { return RankMap(hosts > 1 ? groups : std::vector<int32_t>(), world_size); }
  // Servers come as s0, s1, ...: on which host each, and how many of the first ones a host begins with.
  int HostOfServer(int k) const { return k % hosts; }
  int ServersAtFirst(int host) const { return (servers + hosts - 1 - host) / hosts; }
  int HostOfSlot(int slot) const;
  HostGrid Grid() const { return {hosts, shard_hosts > 0 ? shard_hosts : hosts}; }
  bool SameGroup(int a, int b) const { return Grid().GroupOf(a) == Grid().GroupOf(b); }
  // The host that holds a block, of the group of `near`.
  int HolderOf(int block, int near) const {
    const int first = OwnerOf(units[UnitOf(block)].blocks, block, Grid().group).value();
    return Grid().Counterpart(first, near);
  }
  bool Holds(int host, int block) const { return HolderOf(block, host) == host; }
  int UnitOf(int block) const;
  int TensorOf(int block) const;

  // What rank r computes in a step, whoever computes it: the same after every restart.
  struct Part {
    int unit = 0;
    bool empty = false;
    double scale = 1;
  };
  TrainerStep Record(Rank rank, StepId id) const;
  std::vector<Part> Parts(Rank rank, StepId id) const;  // in the order in which they are delivered
  bool HasGrad(Rank rank, Step step, int tensor) const;
  double Gradient(Rank rank, Step step, int unit, int part, int block, int element) const;
  uint64_t Blob(Rank rank, StepId id) const;
  // What an import stores in a block: nothing, or one value for each element.
  std::optional<Values> Import(uint64_t import, int block) const;
  // What a block contributes to its tensor's norm, and the factor that a tensor's sum makes of the update.
  static double Norm(const Planes& planes, const Values& grad);
  static double Trust(double sum);
  // Of a group's partial sum, where there are several: to a multiple of two, so that another tree gives
  // another sum.
  double Rounded(double partial) const { return groups.empty() ? partial : 2 * std::nearbyint(partial / 2); }

 private:
  uint64_t Hash(uint64_t a, uint64_t b, uint64_t c = 0, uint64_t d = 0, uint64_t e = 0) const;
};

}  // namespace sherd::sim

#endif  // SHERD_TESTS_SIM_JOB_H_
