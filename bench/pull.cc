// How fast a pull is, beside a bare gRPC stream of the same bytes in the same run: one process sends, this
// one receives and drops.
//
//   bazel run -c opt //bench:pull -- [--mib 512] [--rounds 5] [--json]
//
// The bare stream is gRPC's own generated code writing one prepared message again and again, without
// checksums.
#include <signal.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <functional>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/median.h"
#include "grpcpp/server.h"
#include "grpcpp/server_builder.h"
#include "runtime/clock.h"
#include "tests/control/control_job.h"

namespace sherd::bench {
namespace {

class BareService final : public v1::CheckpointService::Service {
  grpc::Status Pull(grpc::ServerContext*, const v1::PullRequest* request,
                    grpc::ServerWriter<v1::Chunk>* writer) override {
    v1::Chunk chunk;
    chunk.mutable_data()->assign(1 << 20, 'x');
    for (uint64_t left = request->offset(); left > 0; left -= 1 << 20) {  // here: how much is asked for
      if (!writer->Write(chunk)) break;
    }
    return grpc::Status::OK;
  }
};

int ServeBare(const std::string& address) {
  BareService service;
  grpc::ServerBuilder builder;
  builder.AddListeningPort(address, grpc::InsecureServerCredentials());
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  server->Wait();
  return 0;
}

// GB/s.
double Receive(v1::CheckpointService::Stub& stub, const v1::PullRequest& request, uint64_t bytes) {
  grpc::ClientContext context;
  tests::Prepare(&context, absl::Minutes(2));
  const absl::Time begun = runtime::SteadyNow();
  const auto reader = stub.Pull(&context, request);
  uint64_t got = 0;
  for (v1::Chunk chunk; reader->Read(&chunk);) got += chunk.data().size();
  const grpc::Status s = reader->Finish();
  if (!s.ok() || got != bytes) {
    std::fprintf(stderr, "pull: %llu bytes, %s\n", static_cast<unsigned long long>(got),
                 s.error_message().c_str());
    std::exit(1);
  }
  return static_cast<double>(bytes) / absl::ToDoubleSeconds(runtime::SteadyNow() - begun) * 1e-9;
}

int Main(int argc, char** argv) {
  int64_t mib = 512;
  int rounds = 15;
  bool json = false;
  std::string serve;
  CLI::App app("A pull beside a bare gRPC stream.", "pull");
  app.add_option("--mib", mib, "MiB to pull")->check(CLI::Range(1, 1 << 16));
  app.add_option("--rounds", rounds, "Rounds of each, in turn; the median of their ratios counts")
      ->check(CLI::Range(1, 1000));
  app.add_flag("--json", json, "One JSON object on stdout");
  app.add_option("--serve-bare", serve, "Be the bare server at this address (the program starts itself so)");
  CLI11_PARSE(app, argc, argv);
  if (!serve.empty()) return ServeBare(serve);
  if (access("server/sherdd", X_OK) != 0) {
    std::fprintf(stderr,
                 "pull: there is no server/sherdd here; start it with bazel run -c opt //bench:pull\n");
    return 2;
  }

  const uint64_t bytes = static_cast<uint64_t>(mib) << 20;
  JobSpec spec = tests::ControlJob::Spec();
  spec.layout = *Layout::Create({{{"values", {static_cast<int64_t>(bytes / 4)}}}});
  tests::ControlJob job({"s0"}, spec);
  job.Attach();
  job.Initialise();
  job.Detach();
  runtime::ChildProcess::Options options;
  const std::string bare_address = absl::StrCat("unix:", job.dir().path(), "/bare.sock");
  options.argv = {"/proc/self/exe", "--serve-bare", bare_address};
  absl::StatusOr<runtime::ChildProcess> child = runtime::ChildProcess::Spawn(options);
  if (!child.ok()) return 1;
  const auto bare = v1::CheckpointService::NewStub(tests::ControlJob::Channel(bare_address));
  const auto sherd = job.Stub<v1::CheckpointService>("s0");
  v1::SnapshotRequest snapshot;
  snapshot.set_token("bench");
  v1::SnapshotInfo info;
  grpc::ClientContext context;
  tests::Prepare(&context);
  if (!sherd->Snapshot(&context, snapshot, &info).ok()) return 1;
  v1::PullRequest pull, plain;
  pull.set_snapshot_id(info.id());
  pull.add_tensors()->set_name("values");
  plain.set_offset(bytes);
  std::vector<double> pulls, bares, ratios;
  for (int i = -2; i < rounds; ++i) {  // the first two warm up: memory is still being laid out
    const double b = Receive(*bare, plain, bytes), p = Receive(*sherd, pull, bytes);
    if (i < 0) continue;
    bares.push_back(b);
    pulls.push_back(p);
    ratios.push_back(p / b);
  }
  const double pull_rate = Median(pulls), bare_rate = Median(bares), ratio = Median(ratios);
  if (json) {
    const nlohmann::json out = {
        {"bytes", bytes}, {"pull_gb_s", pull_rate}, {"bare_gb_s", bare_rate}, {"pull_to_bare", ratio}};
    std::printf("%s\n", out.dump().c_str());
  } else {
    std::printf("pull %.2f GB/s, bare stream %.2f GB/s: %.2f of it\n", pull_rate, bare_rate, ratio);
  }
  return 0;
}

}  // namespace
}  // namespace sherd::bench

int main(int argc, char** argv) { return sherd::bench::Main(argc, argv); }
