// A job of real sherdd processes, with a trainer in this process: for tests of the control plane.
//
//   ControlJob job({"s0", "s1"});                     // two servers that form the first epoch
//   job.Attach();  job.Initialise();                  // rank 0 of 1
//   job.Step(3);
//   auto shard = job.Stub<v1::ShardService>("s1");
#ifndef SHERD_TESTS_CONTROL_CONTROL_JOB_H_
#define SHERD_TESTS_CONTROL_CONTROL_JOB_H_

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "client/step_writer.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "grpcpp/create_channel.h"
#include "proto/sherd/v1/checkpoint.grpc.pb.h"
#include "proto/sherd/v1/cluster.grpc.pb.h"
#include "proto/sherd/v1/shard.grpc.pb.h"
#include "runtime/child_process.h"
#include "runtime/job_dir.h"
#include "runtime/job_memory.h"
#include "runtime/test_root.h"

namespace sherd::tests {

// A deadline that no test should meet.
void Prepare(grpc::ClientContext* context, absl::Duration timeout = absl::Seconds(30));

class ControlJob {
 public:
  // Starts a server for each id and waits until they have formed the first epoch.
  explicit ControlJob(const std::vector<std::string>& ids, JobSpec spec = Spec());
  ~ControlJob();

  // One more process; `expect` as --expect. Returns when it listens.
  void StartServer(const std::string& id, int expect = 1);
  void Kill(const std::string& id);
  runtime::ChildProcess& server(const std::string& id) { return servers_.at(id); }

  std::string Address(const std::string& id) const;
  // Tries again soon, as servers here start and die.
  static std::shared_ptr<grpc::Channel> Channel(const std::string& address);
  // How the server listens on TCP; from its log.
  std::string TcpAddress(const std::string& id) const;
  template <typename Service>
  std::unique_ptr<typename Service::Stub> Stub(const std::string& id) const {
    return Service::NewStub(Channel(Address(id)));
  }

  // Polls GetCluster at `id` until `done` says so; the last answer. Fails the test after 20 s.
  v1::Cluster WaitUntil(const std::string& id, const std::function<bool(const v1::Cluster&)>& done) const;

  // Small, with a tensor of every kind.
  static JobSpec Spec();
  // Its layout, kept.
  static const Layout& TheLayout();
  v1::AttachRequest AttachRequest() const;
  // As rank 0 through server `id`; maps the memory.
  v1::AttachResponse Attach(const std::string& id = "s0");
  // The same for a job that begins from a checkpoint, then Begin in place of Initialise.
  v1::AttachResponse AttachFrom(const v1::RestoreFrom& from, const std::string& id = "s0");
  grpc::Status TryAttachFrom(const v1::RestoreFrom& from, const std::string& id = "s0");
  void Begin(const std::string& id = "s0");
  grpc::Status TryBegin(const std::string& id = "s0");
  // The first half of it: the job has its values, the trainer has no memory yet for its gradients.
  grpc::Status TryCommit(const std::string& id = "s0");
  // Parameter element i of the layout is i * 0.001.
  void Initialise(const std::string& id = "s0");
  void Detach(const std::string& id = "s0");
  // Runs steps with gradients of all ones; returns the last one done.
  uint64_t Step(int steps);

  runtime::JobMemory& memory() { return *memory_; }
  const runtime::JobDir& dir() const { return dir_; }
  // Values of a tensor in a plane as they stand in memory (of a job at rest).
  std::vector<float> Values(const std::string& tensor, int plane = 0);
  // Files in the job's directory that begin with `prefix`.
  int Files(const std::string& prefix) const;

 private:
  grpc::Status TryAttach(const v1::AttachRequest& request, const std::string& id,
                         v1::AttachResponse* response);
  const JobSpec spec_;
  runtime::TestRoot root_{"/dev/shm"};
  runtime::TestRoot logs_;
  runtime::JobDir dir_;
  std::map<std::string, runtime::ChildProcess> servers_;
  std::unique_ptr<runtime::JobMemory> memory_;
  std::unique_ptr<client::StepWriter> writer_;
  uint64_t incarnation_ = 0;
};

}  // namespace sherd::tests

#endif  // SHERD_TESTS_CONTROL_CONTROL_JOB_H_
