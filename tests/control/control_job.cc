#include "tests/control/control_job.h"

#include <dirent.h>
#include <signal.h>

#include <cstring>
#include <fstream>
#include <iterator>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/convert.h"
#include "runtime/clock.h"
#include "runtime/doorbell.h"
#include "runtime/process_identity.h"

namespace sherd::tests {

void Prepare(grpc::ClientContext* context, absl::Duration timeout) {
  context->set_deadline(runtime::ToTimeOfDay(runtime::SteadyNow() + timeout));
  context->set_wait_for_ready(true);
}

ControlJob::ControlJob(const std::vector<std::string>& ids, JobSpec spec)
    : spec_(std::move(spec)), dir_(*runtime::JobDir::Create(root_.path(), "ctl")) {
  for (const std::string& id : ids) StartServer(id, static_cast<int>(ids.size()));
  WaitUntil(ids[0], [&](const v1::Cluster& c) { return c.epoch() >= 1; });
}

ControlJob::~ControlJob() {
  writer_.reset();
  memory_.reset();
  servers_.clear();
  if (!::testing::Test::HasFailure()) return;
  for (const char* id : {"s0", "s1", "s2", "s3"}) {
    std::ifstream log(absl::StrCat(logs_.path(), "/", id));
    if (log.is_open())
      std::cerr << id << ":\n"
                << std::string((std::istreambuf_iterator<char>(log)), std::istreambuf_iterator<char>());
  }
}

void ControlJob::StartServer(const std::string& id, int expect) {
  runtime::ChildProcess::Options options;
  options.argv = {"server/sherdd", "--job",     "ctl",
                  "--id",          id,          "--job-dir",
                  dir_.path(),     "--expect",  std::to_string(expect),
                  "--listen",      Address(id), "--listen",
                  "127.0.0.1:0"};
  options.stderr_stream = {runtime::ChildProcess::Stream::Kind::kFile, absl::StrCat(logs_.path(), "/", id)};
  absl::StatusOr<runtime::ChildProcess> child = runtime::ChildProcess::Spawn(options);
  ASSERT_TRUE(child.ok()) << child.status();
  servers_.erase(id);
  servers_.emplace(id, *std::move(child));
  grpc::ClientContext context;
  Prepare(&context);
  v1::GetCapabilitiesRequest request;
  v1::Capabilities response;
  const grpc::Status s = Stub<v1::ShardService>(id)->GetCapabilities(&context, request, &response);
  ASSERT_TRUE(s.ok()) << s.error_message();
}

void ControlJob::Kill(const std::string& id) {
  ASSERT_TRUE(servers_.at(id).Signal(SIGKILL).ok());
  ASSERT_TRUE(servers_.at(id).Wait(absl::InfiniteFuture()).ok());
}

std::shared_ptr<grpc::Channel> ControlJob::Channel(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 20);
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, 20);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
  arguments.SetMaxReceiveMessageSize(-1);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

std::string ControlJob::Address(const std::string& id) const {
  return absl::StrCat("unix:", dir_.path(), "/", id, ".sock");
}

std::string ControlJob::TcpAddress(const std::string& id) const {
  std::ifstream log(absl::StrCat(logs_.path(), "/", id));
  for (std::string line; std::getline(log, line);) {
    if (const size_t at = line.find("127.0.0.1:"); at != std::string::npos) return line.substr(at);
  }
  ADD_FAILURE() << id << " does not say its TCP address";
  return "";
}

v1::Cluster ControlJob::WaitUntil(const std::string& id,
                                  const std::function<bool(const v1::Cluster&)>& done) const {
  const std::unique_ptr<v1::ClusterService::Stub> stub = Stub<v1::ClusterService>(id);
  const absl::Time deadline = runtime::SteadyNow() + absl::Seconds(20);
  v1::Cluster cluster;
  while (runtime::SteadyNow() < deadline) {
    // Each change comes on the stream; a new coordinator ends it.
    grpc::ClientContext context;
    Prepare(&context, deadline - runtime::SteadyNow());
    v1::WatchClusterRequest request;
    const std::unique_ptr<grpc::ClientReader<v1::Cluster>> reader = stub->WatchCluster(&context, request);
    while (reader->Read(&cluster)) {
      if (!done(cluster)) continue;
      context.TryCancel();
      return cluster;
    }
    reader->Finish();
  }
  ADD_FAILURE() << "the cluster did not come to what was waited for: " << cluster.DebugString();
  return cluster;
}

JobSpec ControlJob::Spec() {
  JobSpec spec;
  spec.job = "ctl";
  spec.layout = *Layout::Create({{{"w", {300, 70}}, {"b", {7}}, {"scalar", {}}},
                                 {{"big", {200, 1000}}, {"empty", {0, 2}}},
                                 {{"frozen", {300}, DType::kFloat32, 0, false}}});
  spec.groups = {""};
  spec.stage = 1;
  spec.buffers = {{"mean", {3}, "F32"}};
  return spec;
}

const Layout& ControlJob::TheLayout() {
  static const Layout* const layout = new Layout(Spec().layout);
  return *layout;
}

v1::AttachRequest ControlJob::AttachRequest() const {
  v1::AttachRequest request;
  ToProto(spec_, &request);
  request.set_rank(0);
  request.mutable_process()->set_pid(runtime::Self().pid);
  request.mutable_process()->set_start_ticks(runtime::Self().start_ticks);
  request.set_token("attach");
  return request;
}

grpc::Status ControlJob::TryAttach(const v1::AttachRequest& request, const std::string& id,
                                   v1::AttachResponse* response) {
  grpc::ClientContext context;
  Prepare(&context);
  const grpc::Status s = Stub<v1::ShardService>(id)->Attach(&context, request, response);
  if (!s.ok()) return s;
  incarnation_ = response->incarnation();
  auto memory = runtime::JobMemory::Open(&dir_, spec_, runtime::JobMemory::Role::kTrainer);
  EXPECT_TRUE(memory.ok()) << memory.status();
  memory_ = *std::move(memory);
  return s;
}

v1::AttachResponse ControlJob::Attach(const std::string& id) {
  v1::AttachResponse response;
  const grpc::Status s = TryAttach(AttachRequest(), id, &response);
  EXPECT_TRUE(s.ok()) << s.error_message();
  return response;
}

v1::AttachResponse ControlJob::AttachFrom(const v1::RestoreFrom& from, const std::string& id) {
  v1::AttachRequest request = AttachRequest();
  *request.mutable_restore() = from;
  v1::AttachResponse response;
  const grpc::Status s = TryAttach(request, id, &response);
  EXPECT_TRUE(s.ok()) << s.error_message();
  return response;
}

grpc::Status ControlJob::TryAttachFrom(const v1::RestoreFrom& from, const std::string& id) {
  v1::AttachRequest request = AttachRequest();
  *request.mutable_restore() = from;
  v1::AttachResponse response;
  return TryAttach(request, id, &response);
}

grpc::Status ControlJob::TryCommit(const std::string& id) {
  grpc::ClientContext context;
  Prepare(&context);
  v1::CommitInitialRequest request;
  request.set_job("ctl");
  request.set_incarnation(incarnation_);
  request.set_token("init");
  v1::CommitInitialResponse response;
  return Stub<v1::ShardService>(id)->CommitInitial(&context, request, &response);
}

grpc::Status ControlJob::TryBegin(const std::string& id) {
  const grpc::Status s = TryCommit(id);
  if (!s.ok()) return s;
  writer_ = std::make_unique<client::StepWriter>(memory_.get(), Rank(0), client::StepWriter::Options{});
  EXPECT_TRUE(writer_->Resume().ok());
  return s;
}

void ControlJob::Begin(const std::string& id) {
  const grpc::Status s = TryBegin(id);
  EXPECT_TRUE(s.ok()) << s.error_message();
}

void ControlJob::Initialise(const std::string& id) {
  auto writable = runtime::Segment::Open(dir_, "plane.param", runtime::Segment::Access::kReadWrite,
                                         runtime::SegmentKind::kParameters);
  ASSERT_TRUE(writable.ok()) << writable.status();
  for (const TensorInfo& t : memory_->layout().tensors()) {
    for (int64_t e = 0; e < t.numel; ++e)
      writable->as<float>()[t.blocks.begin * kBlockElements + e] = static_cast<float>(e) * 0.001f;
  }
  const float mean[3] = {1, 2, 3};
  std::memcpy(memory_->rank(Rank(0)).buffers(sherd::Step(0)).data(), mean, sizeof(mean));
  Begin(id);
}

void ControlJob::Detach(const std::string& id) {
  grpc::ClientContext context;
  Prepare(&context);
  v1::DetachRequest request;
  request.set_job("ctl");
  request.set_incarnation(incarnation_);
  request.set_finished(true);
  request.set_token("detach");
  v1::DetachResponse response;
  const grpc::Status s = Stub<v1::ShardService>(id)->Detach(&context, request, &response);
  ASSERT_TRUE(s.ok()) << s.error_message();
}

uint64_t ControlJob::Step(int steps) {
  const std::vector<UnitInfo>& units = memory_->layout().units();
  for (int i = 0; i < steps; ++i) {
    writer_->BeginPart(1);
    for (size_t u = 0; u < units.size(); ++u) {
      if (units[u].blocks.begin >= memory_->trainable_blocks()) continue;
      absl::StatusOr<void*> to = writer_->Stage(static_cast<int>(u));
      EXPECT_TRUE(to.ok()) << to.status();
      if (!to.ok()) return 0;
      if (*to != nullptr) {
        for (int t = units[u].first_tensor; t < units[u].end_tensor; ++t) {
          const TensorInfo& info = memory_->layout().tensors()[t];
          std::fill_n(static_cast<float*>(*to) + (info.blocks.begin - units[u].blocks.begin) * kBlockElements,
                      info.numel, 1.0f);
        }
      }
      writer_->Deliver(static_cast<int>(u));
    }
    EXPECT_TRUE(writer_->EndPart().ok());
    client::StepWriter::Record record;
    record.samples = 1;
    record.weight = 1;
    GroupScalars scalars{};
    scalars[kLr] = 1e-2, scalars[kBeta1] = 0.9, scalars[kBeta2] = 0.95, scalars[kEps] = 1e-8;
    record.groups = {scalars};
    record.has_grad.resize((memory_->layout().tensors().size() + 63) / 64);
    for (const TensorInfo& t : memory_->layout().tensors()) {
      if (t.spec.trainable) SetBit(record.has_grad, t.index);
    }
    absl::StatusOr<Verdict> verdict = writer_->Finish(record, "");
    EXPECT_TRUE(verdict.ok()) << verdict.status();
    if (!verdict.ok()) return 0;
    EXPECT_EQ(verdict->kind, VerdictKind::kCommit) << verdict->reason;
  }
  return writer_->current().step.value() - 1;
}

std::vector<float> ControlJob::Values(const std::string& tensor, int plane) {
  const TensorInfo& t = *memory_->layout().Find(tensor);
  const float* from = memory_->plane(plane) + t.blocks.begin * kBlockElements;
  return std::vector<float>(from, from + t.numel);
}

int ControlJob::Files(const std::string& prefix) const {
  const std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(dir_.path().c_str()), ::closedir);
  int files = 0;
  while (const dirent* entry = ::readdir(dir.get())) files += absl::StartsWith(entry->d_name, prefix);
  return files;
}

}  // namespace sherd::tests
