// The shared memory of one job, mapped: planes, gradients, stamps, staging, and the records of every member.
//
//   auto memory = JobMemory::Create(dir, spec);                    // coordinator, once: reserves everything
//   auto memory = JobMemory::Open(dir, spec, JobMemory::Role::kOwner);     // a server
//   auto memory = JobMemory::Open(dir, spec, JobMemory::Role::kTrainer);   // a trainer: parameters and
//   owners' pages read-only float* p = memory->plane(0);
//
// One object per process. Pointers live as long as it does. Pages of owners and staging chunks appear as the
// job grows: OpenOwner and StagingChunk map them at first use (thread-safe); everything else is mapped at
// creation.
#ifndef SHERD_RUNTIME_JOB_MEMORY_H_
#define SHERD_RUNTIME_JOB_MEMORY_H_

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/statusor.h"
#include "absl/types/span.h"
#include "core/job_sizes.h"
#include "runtime/control_page.h"
#include "runtime/gather_page.h"
#include "runtime/host_place.h"
#include "runtime/job_dir.h"
#include "runtime/mutex.h"
#include "runtime/records.h"
#include "runtime/segment.h"

namespace sherd::runtime {

class JobMemory {
 public:
  enum class Role { kOwner, kTrainer, kReader };

  // Makes every segment of the job; `control` last, so that a job whose control page can be opened is whole.
  // What a dead coordinator left of an unfinished creation is replaced.
  //   RESOURCE_EXHAUSTED  /dev/shm has not enough room: says how much is needed; nothing is left behind
  // On a host of several, what other hosts own is not reserved, but of the parameters.
  static absl::StatusOr<std::unique_ptr<JobMemory>> Create(const JobDir* dir, JobSpec spec,
                                                           HostPlace place = {});
  // NOT_FOUND before Create has finished; FAILED_PRECONDITION if the job is of another layout or size than
  // `spec`.
  static absl::StatusOr<std::unique_ptr<JobMemory>> Open(const JobDir* dir, JobSpec spec, Role role);

  // Bytes that Create reserves (staging of trainers not counted).
  static int64_t BytesFor(const JobSpec& spec);

  const JobSpec& spec() const { return spec_; }
  const Layout& layout() const { return spec_.layout; }
  const JobDir& dir() const { return *dir_; }
  const HostPlace& place() const { return place_; }
  HostGrid grid() const { return grid_; }
  // Whether `host` holds another part of what this one's group holds.
  bool InGroup(int host) const { return grid().GroupOf(host) == grid().GroupOf(place_.index); }
  // In a job of several hosts each host's ranks are a group of the reduction tree.
  int HostOf(Rank rank) const {
    return place_.several() ? spec_.reduction.GroupOf(rank, spec_.world_size) : place_.index;
  }
  bool IsHere(Rank rank) const { return HostOf(rank) == place_.index; }
  // REQUIRES: slot < hosts.servers().
  bool IsHere(Slot slot, const HostMap& hosts) const {
    return !place_.several() || hosts.HostOf(slot) == place_.index;
  }
  ControlPage& control() const { return *control_.as<ControlPage>(); }
  MemberEntry& trainer(Rank rank) const;

  // Elements that planes other than param and grad reach: frozen units stand at the end and have none.
  int64_t trainable_blocks() const { return sizes_.trainable_blocks(); }
  // Plane 0 is param; 1 + i the optimizer's plane i.
  int planes() const { return static_cast<int>(plane_names_.size()); }
  const std::string& plane_name(int plane) const { return plane_names_[plane]; }
  float* plane(int plane) const { return planes_[plane].as<float>(); }
  int64_t plane_blocks(int plane) const { return sizes_.plane_blocks(plane); }
  // The parameters in JobSpec::compute when that has 16 bits, block by block as plane 0; else null. Equal to
  // plane 0 rounded, except while an owner mutates a block. What trainers map as tensor storage.
  uint16_t* compute() const { return compute_.as<uint16_t>(); }
  static constexpr const char* kComputeName = "plane.compute";
  const JobSizes& sizes() const { return sizes_; }
  const Segment& plane_segment(int plane) const { return planes_[plane]; }
  Segment& param_segment() { return planes_[0]; }
  // First touch of what an owner of `blocks` writes, so that its first steps do not wait for the kernel to
  // clear pages. Takes about a second a gigabyte; may run while the job does. CANCELLED soon after `*cancel`
  // becomes true.
  absl::Status PopulateBlocks(BlockRange blocks, const std::atomic<bool>* cancel) const;

  // Reduced gradient of the step in hand (before division), trainable blocks, which with block_norms becomes
  // the direction of the update (kernels::TwoPasses); sum of squares per block.
  // Owners only.
  float* grad() const { return grad_.as<float>(); }
  double* block_sumsq() const { return reinterpret_cast<double*>(stamps_.data() + sizes_.sumsq_at()); }
  // For optimizers with kernels::OptimizerInfo::norms: two sums of squares per trainable block of the step in
  // hand, of values and of the direction of their update. Stable from its owner's PHASED to the next step's.
  double* block_norms() const { return reinterpret_cast<double*>(stamps_.data() + sizes_.norms_at()); }
  // For optimizers with kernels::OptimizerInfo::directions: directions of the step in hand, trainable blocks.
  // Of a matrix, stable from PHASED of the owner of its first block to the next step's.
  float* directions() const { return directions_.as<float>(); }
  std::atomic<uint64_t>* reduce_stamps() const;
  std::atomic<uint64_t>* apply_stamps() const;
  // Updates so far of each tensor after `step`: two arrays by parity. All owners write the same values.
  std::atomic<uint64_t>* tensor_steps(Step step) const;
  // Updates that the whole job has made after `step`, by the same parity: what schedules go by. A step that
  // was skipped made none. Written by owners before they are DONE; trainers read it between steps.
  std::atomic<uint64_t>& updates(Step step) const { return tensor_steps(step)[layout().tensors().size()]; }

  // ---- Several hosts (DESIGN.md). Partial sums are of the dtype spec().reduction.wire.
  // Sums of this host's ranks for the blocks that other hosts own; whole layout of trainable blocks.
  char* outbox() const { return outbox_.as<char>(); }
  // Of the ranks of `host`, for the blocks that this host owns; whole layout of trainable blocks. Null for
  // this host. RECEIVED: parts of a unit that stand in it, all of what this host owns of it.
  char* inbox(int host) const;
  std::atomic<uint64_t>& Received(int host, int unit) const;
  // The mark of the last part of this unit to which no rank of `host` contributed. Written before Received.
  std::atomic<uint64_t>& ReceivedNothing(int host, int unit) const;
  int64_t wire_block_bytes() const { return kBlockElements * SizeOf(spec_.reduction.wire); }
  // Stage 3. Of a unit that is gathered this host has its own share, and the rest, in its place in the plane,
  // while it is; null in any other job. Reserve and Free are the agent's, of a unit that nobody reads.
  GatherPage* gather() const { return gather_.as<GatherPage>(); }
  bool IsGathered(int unit) const { return gather_.data() != nullptr && spec_.IsGathered(unit); }
  absl::Status ReserveGathered(int unit);
  absl::Status FreeGathered(int unit);
  // That Reserve takes.
  int64_t GatheredBytes(int unit) const;
  // Gives back what of the parameters is not for this host to keep. The agent, once, before anything is
  // gathered.
  absl::Status GiveBackInitial();
  int64_t ParameterBlockBytes(bool masters) const {
    return kBlockElements * (masters ? 4 : SizeOf(spec_.compute));
  }
  char* parameters(bool masters) const { return (masters ? planes_[0] : compute_).as<char>(); }

  // After whatever another host has to learn was published. Does nothing in a job of one host.
  void RingAgent() const {
    if (place_.several()) control().link_bell.Ring();
  }

  // REQUIRES: rank < spec().world_size, or MapRanks was called since the rank has a page.
  RankRecords& rank(Rank rank) const { return ranks_[rank.value()]->records; }
  // Ranks that have pages: with resizes more than took part in the first step, or than do in this one.
  int places() const { return control().places.load(std::memory_order_acquire); }
  // Maps the pages of all of them. To be called when an assignment is taken up; cheap when there are no new
  // ones. Thread-safe.
  absl::Status MapRanks();
  // Makes pages for ranks that are to join, so that there are `places`. Coordinator.
  //   RESOURCE_EXHAUSTED  no room for them
  absl::Status AddRanks(int places);
  // Maps (owners: creates if absent) the page of a slot. REQUIRES: slot < kMaxSlots.
  absl::StatusOr<OwnerRecords*> owner(Slot slot);

  // Staging of a rank, chunk 0, 1, ...: the trainer makes them, owners map them. Payload of the chunk.
  absl::StatusOr<absl::Span<char>> CreateStaging(Rank rank, uint32_t chunk, int64_t bytes);
  // For a trainer that came back: its chunk as it was left. For owners: NOT_FOUND if the trainer never made
  // it.
  absl::StatusOr<absl::Span<char>> Staging(Rank rank, uint32_t chunk);
  // First touch of a chunk that was made or mapped before. As PopulateBlocks.
  absl::Status PopulateStaging(Rank rank, uint32_t chunk, const std::atomic<bool>* cancel);

  // Puts the first assignment in force: the owners of `hosts` from the step after `done` on (of a job that
  // begins from a checkpoint; else 0). Coordinator, before any engine starts. Repeatable.
  absl::Status BeginFirstAssignment(uint64_t epoch, const HostMap& hosts, Step done = Step(0));

  // As the last verdict left it: what the step in hand uses, and how many were skipped. For status and
  // restarts.
  LossScale CurrentLossScale();

  // Step done by all owners of the assignment in force; what trainers wait for and a replacement starts from.
  absl::StatusOr<StepId> DoneByAll();

 private:
  absl::StatusOr<StepId> LeastDone(const Assignment& a);
  JobMemory(const JobDir* dir, JobSpec spec, Role role);
  absl::Status MapAll(bool create);
  void SetPlace(HostPlace place);
  // `reserve`, where it is made: of the payload; null: all of it.
  absl::StatusOr<Segment> Get(const std::string& name, SegmentKind kind, int64_t bytes, bool create,
                              bool writable, const std::vector<Segment::Range>* reserve = nullptr);
  absl::Status MapExchange(bool create);
  // Where an inbox's sums begin: two marks for each unit stand before them.
  int64_t InboxMarkBytes() const {
    return (static_cast<int64_t>(layout().units().size()) * 16 + 63) / 64 * 64;
  }
  // Bytes of the blocks that this host owns, or (`others`) that others own, of trainable units alone if
  // `trainable`; block_bytes each, from byte `at` on.
  std::vector<Segment::Range> Shares(int64_t block_bytes, bool others, bool trainable, int64_t at = 0) const;
  // Bytes of the masters, or of the rounded copy, that this host has for good: what it owns, what trainers of
  // any host read without gathering it, and the pages at the edges of what is gathered.
  std::vector<Segment::Range> KeptParameters(bool masters) const;
  // What others own of a unit, whole pages.
  struct GatheredPart {
    const Segment* segment;
    Segment::Range range;
  };
  std::vector<GatheredPart> GatheredParts(int unit) const;
  absl::Status MapRanksUpTo(int count, bool replace, bool add);
  static std::string OwnerName(Slot slot);
  static std::string StagingName(Rank rank, uint32_t chunk);

  const JobDir* const dir_;
  const JobSpec spec_;
  const Role role_;
  const std::vector<std::string> plane_names_;
  const JobSizes sizes_;
  HostPlace place_;
  HostGrid grid_;
  Segment outbox_;
  std::vector<Segment> inboxes_;  // by host; without data for this one
  Segment control_, grad_, directions_, stamps_, members_, gather_;
  std::vector<Segment> planes_;
  Segment compute_;  // without data in an fp32 job
  struct RankPageMapping {
    Segment segment;
    RankRecords records;
  };
  // kMaxWorldSize of them, null where not mapped; an entry is set once, under mu_.
  const std::unique_ptr<std::unique_ptr<RankPageMapping>[]> ranks_;

  Mutex mu_;
  int mapped_ranks_ ABSL_GUARDED_BY(mu_) = 0;
  struct OwnerPageMapping {
    Segment segment;
    OwnerRecords records;
  };
  std::map<int, std::unique_ptr<OwnerPageMapping>> owners_ ABSL_GUARDED_BY(mu_);
  std::map<std::pair<int, uint32_t>, Segment> staging_ ABSL_GUARDED_BY(mu_);
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_JOB_MEMORY_H_
