// A trainer's attachment to a job: control over RPC, the hot path through shared memory. Torch-free.
//
//   auto session = sherd::Session::Connect(sherd::SessionOptions::FromEnvironment());
//   (*session)->Attach(spec);                                  // the first rank fixes what the job is, the
//   others must agree if ((*session)->must_initialise()) { write *InitialValues(); CommitInitial(); } else
//   WaitInitialized(); client::StepWriter writer(&(*session)->memory(), ...);
//   ...
//   (*session)->Detach(/*finished=*/true);
//
// Errors are one line that says what to do. Thread-compatible. Calls block, within SessionOptions::timeout.
#ifndef SHERD_CLIENT_SESSION_H_
#define SHERD_CLIENT_SESSION_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "absl/types/span.h"
#include "client/pending_save.h"
#include "client/rpc/job_client.h"
#include "core/job_spec.h"
#include "core/types.h"
#include "proto/sherd/v1/shard.pb.h"
#include "runtime/access_files.h"
#include "runtime/clock.h"
#include "runtime/job_dir.h"
#include "runtime/job_memory.h"

namespace sherd {

// Where a job's values begin instead of with rank 0's. Every rank gives the same, replacements too.
struct RestoreOptions {
  // What Save wrote; or weights that another program did: a folder with model.safetensors or an index of
  // several, a .safetensors file, torch's. They are weights only, and each server reads a part of them.
  // Empty: nowhere.
  std::string directory;
  std::string tag;            // empty: the newest that is whole
  bool weights_only = false;  // step 0 and a fresh optimizer
  bool partial = false;       // tensors are matched by name and shape, others begin with rank 0's values
};

struct SessionOptions {
  std::string endpoints;  // "unix:PATH" or "HOST:PORT", several by comma: any server of the job
  std::string job;        // empty: whichever the server serves
  int rank = 0;
  int world_size = 1;
  // For attaching (servers may still be starting, a predecessor may still be dying) and for every other call.
  absl::Duration timeout = absl::Minutes(2);

  // In which groups of ranks gradients are added up, "2,2" (core/reduction_tree.h); what travels between
  // groups is of the dtype that gradients are delivered as, where it names none. Empty: all ranks are one
  // group.
  std::string reduce_groups;

  // On several hosts: further copies of the state, so that as many hosts may be lost (JobSpec::shard_ranks
  // follows from it, unless that is given).
  int replicas = 0;

  // SHERD_ENDPOINT, SHERD_JOB, SHERD_REDUCE_GROUPS, SHERD_REPLICAS, RANK, WORLD_SIZE, as `sherd run` and
  // torchrun set them. What is wrong with them, Connect says.
  static SessionOptions FromEnvironment();
  std::string problem;  // of the environment
  // For endpoints over TCP: SHERD_TOKEN_FILE, SHERD_TLS_CA and so on (runtime/access_files.h).
  runtime::AccessFiles access;
  RestoreOptions restore;
};

class Session {
 public:
  //   FAILED_PRECONDITION  no endpoint
  //   INVALID_ARGUMENT     a rank outside the world, an endpoint that is none
  //   else                 a file of `access` that cannot be used
  static absl::StatusOr<std::unique_ptr<Session>> Connect(SessionOptions options);
  // Detaches if that was not done: as a trainer that goes before its end.
  ~Session();

  int rank() const { return options_.rank; }
  // Ranks of the job: once attached, as the last resize left them.
  int world_size() const;
  uint64_t epoch() const { return memory_->control().epoch.load(std::memory_order_acquire); }
  uint64_t incarnation() const { return incarnation_; }

  // Takes this rank's place. `spec` without job, uuid and world size: they are filled in.
  //   FAILED_PRECONDITION  the job is another: names the first field that differs and both values
  //   INVALID_ARGUMENT     the spec or SessionOptions::reduce_groups fits no job of this world
  absl::Status Attach(JobSpec spec);

  // Rank 0 of a job that has no values yet.
  bool must_initialise() const { return must_initialise_; }
  // Whether this rank writes some of them: rank 0, and with JobSpec::gather.initial_shares one of each host.
  bool writes_initial() const { return must_initialise_ || writes_share_; }
  // Which blocks of `blocks`, all of `unit`, it writes; at most one range.
  std::vector<BlockRange> InitialBlocks(int unit, BlockRange blocks) const;
  // The fp32 parameter plane, writable until FinishInitialShare, which also rounds what was written to what
  // trainers compute with. REQUIRES of both: writes_initial().
  absl::StatusOr<absl::Span<float>> InitialValues();
  absl::Status FinishInitialShare();
  // Rank 0: that, and when other hosts have their shares too the job has its values.
  absl::Status CommitInitial();
  // The job begins from a checkpoint. Then rank 0's InitialValues need hold only what that has not (nothing,
  // unless partial); what it has is read when they are committed.
  bool restoring() const { return !options_.restore.directory.empty(); }
  bool restoring_partially() const { return restoring() && options_.restore.partial; }
  // Updates that the job had when this rank attached.
  uint64_t attached_step() const { return attached_step_; }
  // On rank 0 after CommitInitial of a job that begins from a checkpoint: what was restored.
  const v1::RestoreReport& restored() const { return restored_; }

  // Lets the servers save the state while training goes on; see PendingSave. `after_step`: the step in hand,
  // whose record this rank has not published; or 0.
  std::shared_ptr<PendingSave> StartSave(const SaveOptions& options, uint64_t after_step);

  // Until rank 0 has committed the initial values.
  absl::Status WaitInitialized();

  // REQUIRES: attached.
  runtime::JobMemory& memory() { return *memory_; }
  // Shared, so that views of the memory may outlive the session.
  std::shared_ptr<runtime::JobMemory> shared_memory() const { return memory_; }

  struct NamedValues {
    std::string name;
    std::vector<int64_t> shape;
    absl::Span<const float> values;
  };
  // Hands values to the servers; they are stored with the step whose STEP record names the id returned, or
  // never.
  //   NOT_FOUND, INVALID_ARGUMENT  no such tensor, or another shape: nothing was handed over
  absl::StatusOr<uint64_t> StageWrite(const std::vector<NamedValues>& tensors);

  // The fp32 parameters of all tensors, in the layout's order, as the servers have them after one step, which
  // is returned; from all hosts, where a host has only its share of them. REQUIRES: tensors[t] has room for
  // what tensor t has.
  absl::StatusOr<uint64_t> ReadMasters(const std::vector<absl::Span<float>>& tensors);

  // Leaves. `finished`: training is complete and nobody is to take the place.
  absl::Status Detach(bool finished);

 private:
  Session(SessionOptions options, std::vector<std::string> endpoints, runtime::Access access);
  // The parameters in 16 bits, if the job computes so, from the initial values written here.
  absl::Status RoundInitial();
  // Until what the control bell is rung for is so.
  absl::Status WaitForControl(const std::function<bool()>& so, const std::string& what);
  absl::Time Deadline() const { return runtime::SteadyNow() + options_.timeout; }

  // A checkpoint takes as long as the disk does.
  static constexpr absl::Duration kRestorePatience = absl::Hours(24);

  const SessionOptions options_;
  rpc::JobClient client_;
  std::string job_;
  uint64_t incarnation_ = 0;
  bool attached_ = false, must_initialise_ = false, writes_share_ = false;
  uint64_t attached_step_ = 0;
  v1::RestoreReport restored_;
  std::shared_ptr<runtime::JobDir> dir_;
  std::shared_ptr<runtime::JobMemory> memory_;
  runtime::Segment initial_;
};

}  // namespace sherd

#endif  // SHERD_CLIENT_SESSION_H_
