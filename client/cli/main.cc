// `sherd`: reads the command line and hands over. Exit status 0 done, 1 failed, 2 usage; `sherd run` that of
// its job.

#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <exception>
#include <functional>
#include <iostream>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "client/cli/checkpoint.h"
#include "client/cli/context.h"
#include "client/cli/inspect.h"
#include "client/cli/interrupts.h"
#include "client/cli/plan.h"
#include "client/cli/progress.h"
#include "client/cli/read.h"
#include "client/cli/resize.h"
#include "client/cli/run_command.h"
#include "client/cli/text.h"
#include "client/cli/top.h"
#include "client/cli/transfer.h"
#include "client/cli/verify.h"
#include "client/rpc/endpoints.h"
#include "client/rpc/job_client.h"
#include "runtime/access_files.h"
#include "runtime/clock.h"
#include "runtime/control_page.h"
#include "runtime/etcd/job_store.h"
#include "runtime/job_dir.h"

namespace sherd::cli {
namespace {

constexpr int kFailed = 1;
constexpr int kUsage = 2;
constexpr int kMostTrainers = 4096;

struct Globals {
  std::string endpoint;
  runtime::AccessFiles access;
  bool json = false;
  std::string timeout;
};

struct Flags {
  Globals globals;
  RunOptions run;
  std::string glob, plane;
  ReadOptions read;
  PullOptions pull;
  std::string dtype = "fp32", format = "safetensors", rate, max_shard_bytes;
  std::string push_path;
  PushChoice push;
  bool push_optimizer = false, push_weights = false;
  SaveOptions save;
  RestoreCommandOptions restore;
  int servers = 0, trainers = 0;
  uint64_t from_step = 0;
  bool give_up_step = false;
  std::string drained;
  PlanOptions plan;
};

// A command that talks to a job: its default time limit, and what it does.
struct Command {
  absl::Duration limit;
  std::function<absl::Status(Context&)> act;
};

int Error(absl::string_view text, int status) {
  const std::string line = absl::StrReplaceAll(text, {{"\n", " "}, {"\r", " "}});
  std::fprintf(stderr, "sherd: %s\n", line.c_str());
  return status;
}

void DeclareRun(CLI::App& app, RunOptions& run) {
  CLI::App* sub = app.add_subcommand(
      "run", "Run a job: N trainers and M shard servers on this host, alone or with others");
  sub->add_option("-n", run.trainers, "Trainers")->required()->check(CLI::Range(1, kMostTrainers));
  sub->add_option("--servers", run.servers, "Shard servers. Default: one for each trainer")
      ->check(CLI::Range(1, runtime::kMaxSlots));
  sub->add_option(
         "--min", run.min_trainers,
         "Least trainers: down to it the job goes on without one that is out of restarts, and a resize "
         "may ask. Default: without any that is out of restarts the job ends")
      ->check(CLI::Range(1, kMostTrainers));
  sub->add_option("--max", run.max_trainers, "Most trainers that `sherd resize` may ask for. Default: any")
      ->check(CLI::Range(1, kMostTrainers));
  sub->add_option("--restarts", run.restarts, "How often each process that was killed is started again")
      ->check(CLI::Range(0, 1000000))
      ->capture_default_str();
  sub->add_option_function<std::string>(
      "--stall-timeout",
      [&run](const std::string& text) {
        absl::StatusOr<absl::Duration> value = ParseTimeout(text);
        if (!value.ok()) throw CLI::ValidationError("--stall-timeout", std::string(value.status().message()));
        if (*value < absl::Seconds(3))
          throw CLI::ValidationError("--stall-timeout",
                                     "below 3 s: a busy machine holds processes up for as long");
        run.stall_timeout = *value;
      },
      "Kill a process that lives but has not moved or answered for so long while others wait, and start it "
      "again: seconds, or like 2m. Default: never");
  sub->add_option("--job", run.job, "Name of the job. Default: the program's, with a number");
  sub->add_option("--dir", run.dir, "Folder that keeps the servers' logs (in logs/)");
  sub->add_option("--config", run.config,
                  "DeepSpeed's JSON file, checked first; trainers get it as SHERD_CONFIG");
  sub->add_option(
      "--reduce-groups", run.reduce_groups,
      "Ranks of each group in which gradients are added up, as \"2,2\" or \"2,2:bf16\": the bits of a "
      "job on as many hosts. Default: all in one");
  sub->add_option("--replicas", run.replicas,
                  "On several hosts: further copies of all state, so that as many hosts may be lost; another "
                  "one with the --host-index of a lost one takes its place")
      ->check(CLI::Range(0, kMaxHosts - 1));
  sub->add_option(
         "--verify-every", run.verify_every,
         "With --replicas: compare the copies every so many steps, as `sherd verify` does; what differs "
         "stands in the servers' logs and metrics")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 40));
  sub->add_option("--threads", run.threads, "Threads of each server. Default: cores divided by servers")
      ->check(CLI::Range(1, runtime::kMaxWorkers));
  sub->add_option(
      "--store", run.store,
      "Where servers keep what they agree on: file:DIR or etcd://HOST:PORT,...[/PREFIX]. Default: in "
      "the job's directory");
  sub->add_flag("--tag-output", run.tag_output, "Mark rank 0's output with [0], as others' always is");
  sub->add_option("--listen", run.hosts.listen, "HOST:PORT: the first host of several; others join it there");
  sub->add_option("--join", run.hosts.join, "HOST:PORT of the first host: this is one of the others");
  sub->add_option("--rendezvous", run.hosts.rendezvous,
                  "HOST:PORT of the first host, given on all: --listen on host 0, --join on the others");
  sub->add_option("--hosts", run.hosts.hosts,
                  "Hosts of the job. Default: SLURM_NNODES, GROUP_WORLD_SIZE, or 2");
  sub->add_option("--host-index", run.hosts.index,
                  "Which of them this is. Default: SLURM_NODEID, GROUP_RANK, or by --listen and --join");
  sub->add_option("--advertise", run.hosts.advertise,
                  "Address of this host for the others. Default: by route");
  sub->add_option("--interface", run.hosts.interface, "Network interface whose address the others use");
  sub->add_option(
      "--secret-file", run.hosts.secret_file,
      "File with the job's secret, the same on all hosts (mode 0600). Default: SHERD_SECRET_FILE, or "
      "one that the first host makes");
  sub->add_option("command", run.command, "-- CMD ARGS...: the trainer's program")->required();
}

void DeclarePlan(CLI::App& app, PlanOptions& plan) {
  CLI::App* sub = app.add_subcommand(
      "plan",
      "Memory and traffic of a job, by ZeRO's textbook and in Sherd; without --params or --model of the "
      "running one");
  sub->add_option("--params", plan.params, "Parameters of the model, like 350M or 7.5B");
  sub->add_option("--model", plan.model, "safetensors file, index or folder; only headers are read");
  sub->add_option("--config", plan.config, "DeepSpeed's JSON file: stage, optimizer, dtype, offloading");
  sub->add_option("--world", plan.world, "Trainers in all. Default: 1")->check(CLI::Range(1, kMostTrainers));
  sub->add_option("--local-world", plan.local_world, "Trainers on a host. Default: at most 8")
      ->check(CLI::Range(1, kMostTrainers));
  sub->add_option("--servers", plan.servers, "Shard servers on a host. Default: one for each trainer")
      ->check(CLI::Range(1, runtime::kMaxSlots));
  sub->add_option("--stage", plan.stage, "Only this stage, 0 to 3")->check(CLI::Range(0, 3));
  sub->add_option("--optimizer", plan.optimizer, "Default: adamw");
  sub->add_option("--dtype", plan.dtype, "Of the computation. Default: bf16, and fp32")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}));
  sub->add_option("--largest-layer", plan.largest_layer, "Parameters of it, for stage 3 with offloading");
}

// For servers over TCP.
void DeclareAccess(CLI::App& app, runtime::AccessFiles& files) {
  app.add_option("--token-file", files.token,
                 "File with the servers' token, for TCP. Default: SHERD_TOKEN_FILE");
  app.add_option("--secret-file", files.secret,
                 "File with the job's secret, instead of a token. Default: SHERD_SECRET_FILE");
  app.add_option("--tls-ca", files.ca,
                 "PEM certificates that sign the servers': TLS over TCP. Default: SHERD_TLS_CA");
  app.add_option("--tls-cert", files.certificate,
                 "PEM certificate to show to servers that want one. Default: SHERD_TLS_CERT");
  app.add_option("--tls-key", files.key, "PEM key of --tls-cert. Default: SHERD_TLS_KEY");
}

// `commands` gets what each subcommand does.
void Declare(CLI::App& app, Flags& f, std::map<std::string, Command>& commands) {
  app.add_option(
      "--endpoint", f.globals.endpoint,
      "unix:PATH or HOST:PORT of a server, or several with commas. Default: SHERD_ENDPOINT, else the "
      "only job on this host");
  DeclareAccess(app, f.globals.access);
  app.add_flag("--json", f.globals.json, "Write one JSON document");
  app.add_option("--timeout", f.globals.timeout,
                 "Most time for all of it, in seconds or like 500ms, 2m. Default: 30 s; resize 5 m; pull, "
                 "push, save, verify, restore and top none");
  app.require_subcommand(1);
  app.fallthrough();
  DeclareRun(app, f.run);

  app.add_subcommand("status", "The job: epoch, step, and a row for each member");
  commands["status"] = {absl::Seconds(30), ShowStatus};

  CLI::App* ls = app.add_subcommand("ls", "Tensors: name, shape, dtype, group, owners");
  ls->add_option("glob", f.glob, "Shell pattern over names, in quotes");
  commands["ls"] = {absl::Seconds(30), [&f](Context& c) { return ShowTensors(c, f.glob); }};

  CLI::App* stat = app.add_subcommand("stat", "Norm, mean, min, max, NaNs and infs of tensors");
  stat->add_option("glob", f.glob, "Shell pattern over names, in quotes");
  stat->add_option("--plane", f.plane, "param, exp_avg, exp_avg_sq, momentum_buffer. Default: param");
  commands["stat"] = {absl::Seconds(30), [&f](Context& c) { return ShowStats(c, f.glob, f.plane); }};

  CLI::App* read = app.add_subcommand("read", "A slice of one tensor as a .npy file");
  read->add_option("name", f.read.name, "Tensor")->required();
  read->add_option("--plane", f.read.plane, "param, exp_avg, ..., step, or buffer. Default: param");
  read->add_option("--slice", f.read.slice, "As in NumPy: 0:10,: or 3,::2");
  read->add_option("-o", f.read.file, "File to write")->required();
  commands["read"] = {absl::Seconds(30), [&f](Context& c) { return ReadToFile(c, f.read); }};

  CLI::App* pull = app.add_subcommand("pull", "The state at one step as files; training goes on");
  pull->add_option("path", f.pull.path, "File; or folder, which gets model.safetensors or model.pt")
      ->required();
  pull->add_option("--format", f.format,
                   "pt: torch.save's; deepspeed: a universal folder, with the optimizer")
      ->check(CLI::IsMember({"safetensors", "pt", "deepspeed"}))
      ->capture_default_str();
  pull->add_option("--dtype", f.dtype, "Of parameters")
      ->check(CLI::IsMember({"fp32", "bf16", "fp16"}))
      ->capture_default_str();
  pull->add_flag("--with-optimizer", f.pull.with_optimizer, "Optimizer state too");
  pull->add_option("--rate", f.rate, "Most bytes in a second, like 100M; at least 64K. Default: no limit");
  pull->add_option("--max-shard-bytes", f.max_shard_bytes,
                   "More than this goes to several files and an index. Default: 5G");
  commands["pull"] = {absl::InfiniteDuration(), [&f](Context& c) { return PullCommand(c, f.pull); }};

  CLI::App* push = app.add_subcommand("push", "Weights, or everything, into a running job between two steps");
  push->add_option("path", f.push_path,
                   "safetensors or torch.save file, index, folder of them, or DeepSpeed's universal folder")
      ->required();
  CLI::Option* with =
      push->add_flag("--with-optimizer", f.push_optimizer, "Fail unless it holds optimizer state");
  push->add_flag("--weights-only", f.push_weights, "Leave out optimizer state that it holds")->excludes(with);
  push->add_flag("--partial", f.push.partial, "Take the tensors that both have, instead of all or nothing");
  commands["push"] = {absl::InfiniteDuration(),
                      [&f](Context& c) { return PushCommand(c, f.push_path, f.push); }};

  CLI::App* save = app.add_subcommand("save", "All state at one step into a directory; training goes on");
  save->add_option("directory", f.save.directory, "Gets a folder for each checkpoint, and `latest`")
      ->required();
  save->add_option("--tag", f.save.tag, "Name of the checkpoint. Default: step-<step>");
  save->add_option("--keep", f.save.keep, "Remove the oldest checkpoints there beyond so many")
      ->check(CLI::Range(1, 1000000));
  save->add_option("--rate", f.rate, "Most bytes written in a second, like 100M. Default: no limit");
  commands["save"] = {absl::InfiniteDuration(), [&f](Context& c) { return SaveCommand(c, f.save); }};

  app.add_subcommand(
      "verify",
      "Whether all copies of the state, of a job with --replicas, are the same bits at one step; "
      "training goes on");
  commands["verify"] = {absl::InfiniteDuration(), VerifyCommand};

  CLI::App* restore =
      app.add_subcommand("restore", "A checkpoint's values into a running job, between two steps");
  restore->add_option("directory", f.restore.directory, "As given to save; or weights, as push takes them")
      ->required();
  restore->add_option("--tag", f.restore.tag, "Default: the newest that is whole");
  restore->add_flag("--weights-only", f.restore.weights_only, "Leave the optimizer's state alone");
  restore->add_flag("--partial", f.restore.partial,
                    "Tensors that agree in name and shape; report the others");
  commands["restore"] = {absl::InfiniteDuration(), [&f](Context& c) { return RestoreCommand(c, f.restore); }};

  CLI::App* drain = app.add_subcommand(
      "drain",
      "Take a server's part of the state away, so that it may be stopped, or let the last trainer go, while "
      "training goes on");
  drain
      ->add_option("member", f.drained,
                   "Server: its name, or the number of a slot that it holds. Trainer: rank-N")
      ->required();
  commands["drain"] = {absl::Minutes(5), [&f](Context& c) { return DrainMember(c, f.drained); }};

  CLI::App* resize =
      app.add_subcommand("resize", "Another number of shard servers or trainers, while training goes on");
  CLI::Option_group* what = resize->add_option_group("number");
  what->add_option("--servers", f.servers, "Servers afterwards")->check(CLI::Range(1, runtime::kMaxSlots));
  what->add_option("--trainers", f.trainers, "Trainers afterwards; `sherd run` starts those that are to join")
      ->check(CLI::Range(1, kMostTrainers));
  what->require_option(1);
  resize
      ->add_option("--from-step", f.from_step, "First step with so many trainers. Default: as soon as can be")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 39));
  resize->add_flag("--give-up-step", f.give_up_step,
                   "With fewer trainers: do not wait for the step in hand; those that stay compute it again");
  commands["resize"] = {absl::Minutes(5), [&f](Context& c) {
                          return Resize(c, f.servers, f.trainers, f.from_step, f.give_up_step);
                        }};

  app.add_subcommand("top", "Live view of the job");
  commands["top"] = {absl::InfiniteDuration(),
                     [](Context& c) { return Top(c, ::isatty(STDOUT_FILENO) != 0); }};

  DeclarePlan(app, f.plan);
  commands["plan"] = {absl::Seconds(30), [&f](Context& c) { return PlanOfJob(f.plan, c); }};

  app.add_subcommand("gc", "Remove the shared memory that dead jobs left");
}

// What CLI11 takes as text and means more. INVALID_ARGUMENT: usage.
absl::Status Finish(Flags& f) {
  f.pull.dtype = f.dtype == "bf16"   ? v1::DTYPE_BFLOAT16
                 : f.dtype == "fp16" ? v1::DTYPE_FLOAT16
                                     : v1::DTYPE_FLOAT32;
  f.pull.format = f.format == "pt"          ? PullFormat::kTorch
                  : f.format == "deepspeed" ? PullFormat::kDeepSpeed
                                            : PullFormat::kSafetensors;
  if (f.pull.format == PullFormat::kDeepSpeed && f.pull.dtype != v1::DTYPE_FLOAT32) {
    return absl::InvalidArgumentError(
        absl::StrCat("--dtype ", f.dtype, ": --format deepspeed holds fp32 parameters; leave --dtype out"));
  }
  if (f.pull.format != PullFormat::kSafetensors && !f.max_shard_bytes.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("--max-shard-bytes: only safetensors are split, not --format ", f.format));
  }
  f.push.optimizer = f.push_optimizer ? PushChoice::Optimizer::kRequired
                     : f.push_weights ? PushChoice::Optimizer::kLeaveOut
                                      : PushChoice::Optimizer::kIfThere;
  const auto bytes = [](absl::string_view flag, const std::string& text, uint64_t least, uint64_t* out) {
    if (text.empty()) return absl::OkStatus();
    absl::StatusOr<uint64_t> value = ParseBytes(text);
    if (!value.ok()) return absl::InvalidArgumentError(absl::StrCat(flag, ": ", value.status().message()));
    if (*value < least)
      return absl::InvalidArgumentError(absl::StrCat(flag, " ", text, " is below ", HumanBytes(least)));
    *out = *value;
    return absl::OkStatus();
  };
  if (absl::Status status = bytes("--rate", f.rate, 64 << 10, &f.pull.rate); !status.ok()) return status;
  f.save.rate_bytes_per_second = f.pull.rate;
  return bytes("--max-shard-bytes", f.max_shard_bytes, 1, &f.pull.max_shard_bytes);
}

int Talk(const Globals& globals, const Command& command, absl::Duration limit, const std::string& shm_root) {
  const char* environment = std::getenv("SHERD_ENDPOINT");
  absl::StatusOr<std::vector<std::string>> endpoints =
      rpc::FindEndpoints({globals.endpoint, environment == nullptr ? "" : environment, shm_root});
  if (!endpoints.ok()) return Error(endpoints.status().message(), kFailed);
  runtime::AccessFiles files = globals.access;
  files.FillFrom([](const char* name) { return std::getenv(name); });
  absl::StatusOr<runtime::Access> access = runtime::ReadAccess(files, runtime::AccessSide::kCaller);
  if (!access.ok()) return Error(access.status().message(), kFailed);
  ::signal(SIGPIPE, SIG_IGN);
  InterruptWatch interrupts;
  rpc::JobClient::Options options;
  options.access = *std::move(access);
  rpc::JobClient client(*endpoints, options);
  interrupts.Start([&] { client.Cancel(); });
  Progress progress(::isatty(STDERR_FILENO) != 0);
  Context context{client, runtime::SteadyNow() + limit, globals.json, std::cout, progress};
  const absl::Status status = command.act(context);
  progress.Clear();
  std::cout.flush();
  if (interrupts.signal() != 0) return 128 + interrupts.signal();
  if (!status.ok()) return Error(status.message(), kFailed);
  return std::cout.good() ? 0 : Error("cannot write the output", kFailed);
}

int Main(int argc, char** argv) {
  // What gRPC has to say about connections comes with the calls' errors.
  ::setenv("GRPC_VERBOSITY", "NONE", 0);
  Flags flags;
  std::map<std::string, Command> commands;
  CLI::App app("Sherd: training state in shard servers. See `sherd COMMAND --help`.", "sherd");
  Declare(app, flags, commands);
  const bool is_command =
      argc > 1 && !app.get_subcommands([&](CLI::App* c) { return c->get_name() == argv[1]; }).empty();
  if (argc > 1 && argv[1][0] != '-' && !is_command) {
    return Error(absl::StrCat("there is no command ", argv[1], "; see `sherd --help`"), kUsage);
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& e) {
    if (e.get_exit_code() == 0) return app.exit(e);
    return Error(absl::StrCat(e.what(), "; see `sherd --help`"), kUsage);
  }
  if (absl::Status status = Finish(flags); !status.ok()) return Error(status.message(), kUsage);
  const absl::StatusOr<std::string> shm_root = runtime::ShmRoot(std::getenv(runtime::kShmRootVariable));
  if (!shm_root.ok()) return Error(shm_root.status().message(), kUsage);
  const std::string name = app.get_subcommands().front()->get_name();
  if (name == "run") {
    if (!flags.globals.endpoint.empty() || !flags.globals.timeout.empty() || flags.globals.json) {
      return Error("run takes no --endpoint, --timeout or --json: it starts a job of its own", kUsage);
    }
    if (absl::Status store = runtime::ParseStorePlace(flags.run.store).status(); !store.ok())
      return Error(store.message(), kUsage);
    flags.run.shm_root = *shm_root;
    return RunJob(flags.run);
  }
  if (name == "gc") {
    if (!flags.globals.endpoint.empty() || !flags.globals.timeout.empty()) {
      return Error("gc takes no --endpoint or --timeout: it talks to nobody", kUsage);
    }
    const absl::Status status = GcCommand(*shm_root, flags.globals.json, std::cout);
    return status.ok() ? 0 : Error(status.message(), kFailed);
  }
  if (name == "plan" && !flags.plan.of_running_job()) {
    if (!flags.globals.endpoint.empty() || !flags.globals.timeout.empty()) {
      return Error("plan with --params or --model takes no --endpoint or --timeout: it talks to nobody",
                   kUsage);
    }
    const absl::Status status = PlanWithoutJob(flags.plan, flags.globals.json, std::cout);
    if (absl::IsInvalidArgument(status)) return Error(status.message(), kUsage);
    return status.ok() ? 0 : Error(status.message(), kFailed);
  }
  const Command& command = commands.at(name);
  absl::Duration limit = command.limit;
  if (!flags.globals.timeout.empty()) {
    absl::StatusOr<absl::Duration> timeout = ParseTimeout(flags.globals.timeout);
    if (!timeout.ok()) return Error(absl::StrCat("--timeout: ", timeout.status().message()), kUsage);
    limit = *timeout;
  }
  return Talk(flags.globals, command, limit, *shm_root);
}

}  // namespace
}  // namespace sherd::cli

int main(int argc, char** argv) {
  // The libraries below throw when memory runs out or a system call cannot fail otherwise.
  try {
    return sherd::cli::Main(argc, argv);
  } catch (const std::exception& e) {
    std::fprintf(stderr, "sherd: %s\n", e.what());
  } catch (...) {
    std::fprintf(stderr, "sherd: ended by an exception of an unknown kind\n");
  }
  return 1;
}
