// What a save costs training, how fast it is beside the disk, and how fast a restore is beside reading: all
// in one run, on the disk that --dir names.
//
//   bazel run -c opt //bench:save -- [--dir DIR] [--mib 768] [--rate 200] [--json]
//
// One trainer, two real sherdd servers, AdamW: a third of the state are parameters. A step is a stretch of
// arithmetic without memory traffic (--compute-ms), then all gradients to staging and the update.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>
#include <numeric>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "bench/median.h"
#include "client/pending_save.h"
#include "client/rpc/job_client.h"
#include "runtime/clock.h"
#include "runtime/formats/summed_file.h"
#include "runtime/test_root.h"
#include "tests/control/control_job.h"

namespace sherd::bench {
namespace {

constexpr int kServers = 2;
constexpr int64_t kPiece = 4 << 20;

void Check(bool ok, const std::string& what) {
  if (ok) return;
  std::fprintf(stderr, "save: %s\n", what.c_str());
  std::exit(1);
}

double Seconds(const std::function<void()>& work) {
  const absl::Time begun = runtime::SteadyNow();
  work();
  return absl::ToDoubleSeconds(runtime::SteadyNow() - begun);
}

// Runs `work` for each of the servers' shares at once.
void InParallel(const std::function<void(int)>& work) {
  std::vector<std::thread> threads;
  for (int i = 0; i < kServers; ++i) threads.emplace_back(work, i);
  for (std::thread& t : threads) t.join();
}

// The disk alone, with nothing but the system calls: `bytes` in all, in as many files as there are servers.
double RawWrite(const std::string& dir, int64_t bytes) {
  return Seconds([&] {
    InParallel([&](int i) {
      const formats::DirectBuffer buffer(kPiece);
      std::memset(buffer.data(), i + 1, kPiece);
      const std::string path = absl::StrCat(dir, "/raw.", i);
      const int fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_DIRECT, 0600);
      Check(fd >= 0, path + " cannot be written past the cache");
      for (int64_t at = 0; at < bytes / kServers; at += kPiece)
        Check(pwrite(fd, buffer.data(), kPiece, at) == kPiece, path);
      Check(fsync(fd) == 0, path);
      close(fd);
    });
  });
}

// Reads what `files` hold likewise, each on a thread of its own.
double RawRead(const std::vector<std::string>& files) {
  return Seconds([&] {
    InParallel([&](int i) {
      const formats::DirectBuffer buffer(kPiece);
      const int fd = open(files[i].c_str(), O_RDONLY | O_DIRECT);
      Check(fd >= 0, files[i] + " cannot be read past the cache");
      ssize_t got = kPiece;
      for (int64_t at = 0; got == kPiece; at += got) got = pread(fd, buffer.data(), kPiece, at);
      Check(got >= 0, files[i]);
      close(fd);
    });
  });
}

// As a save writes a part, buffered instead.
double SummedWrite(const std::string& dir, int64_t bytes, formats::FileAccess access) {
  return Seconds([&] {
    InParallel([&](int i) {
      const std::string path = absl::StrCat(dir, "/summed.", i);
      unlink(path.c_str());
      auto writer = formats::SummedFileWriter::Create(path, bytes / kServers, access);
      Check(writer.ok(), std::string(writer.status().message()));
      for (int64_t at = 0; at < bytes / kServers; at += kPiece) {
        const absl::Span<char> room = (*writer)->Room();
        std::memset(room.data(), i + 1, room.size());
        Check((*writer)->Advance(kPiece).ok(), path);
      }
      Check((*writer)->Finish().ok(), path);
    });
  });
}

void Compute(absl::Duration how_long) {
  const absl::Time end = runtime::SteadyNow() + how_long;
  volatile double x = 1;
  while (runtime::SteadyNow() < end) {
    for (int i = 0; i < 10000; ++i) x = x * 1.0000001 + 1e-9;
  }
}

struct Figures {
  double raw_write = 0, raw_read = 0, buffered_write = 0, save = 0, restore = 0,
         restore_other = 0;  // bytes/s
  double step_ms = 0, stall_ms = 0, after_ms = 0, writing_ms = 0, all_ms = 0;
};

class SaveBench {
 public:
  SaveBench(std::string dir, int64_t bytes, uint64_t rate, absl::Duration compute, int rounds)
      : dir_(std::move(dir)), bytes_(bytes), rate_(rate), compute_(compute), rounds_(rounds) {}

  Figures Run() {
    Figures f;
    for (int i = 0; i < rounds_; ++i) {
      f.raw_write = std::max(f.raw_write, bytes_ / RawWrite(dir_, bytes_));
      f.buffered_write =
          std::max(f.buffered_write, bytes_ / SummedWrite(dir_, bytes_, formats::FileAccess::kBuffered));
    }
    {
      tests::ControlJob job({"s0", "s1"}, Spec());
      job.Attach();
      job.Initialise();
      Train(job, &f);
    }
    for (int i = 0; i < rounds_; ++i) {
      f.raw_read = std::max(f.raw_read, bytes_ / RawRead(Parts()));
      f.restore = std::max(f.restore, Restore({"s0", "s1"}));
      f.restore_other = std::max(f.restore_other, Restore({"s0", "s1", "s2"}));
    }
    return f;
  }

 private:
  JobSpec Spec() const {
    JobSpec spec = tests::ControlJob::Spec();
    std::vector<std::vector<TensorSpec>> units;
    const int64_t numel = bytes_ / 3 / 4 / 16;
    for (int i = 0; i < 16; ++i) units.push_back({{absl::StrCat("t", i), {numel}}});
    spec.layout = *Layout::Create(units);
    spec.buffers.clear();
    return spec;
  }

  // Of the checkpoint that is restored.
  std::vector<std::string> Parts() const {
    std::vector<std::string> parts;
    for (const auto& file : std::filesystem::directory_iterator(dir_ + "/ck/fast")) {
      if (file.file_size() >= kPiece) parts.push_back(file.path());
    }
    Check(parts.size() == kServers, "the checkpoint has not a file of each server");
    return parts;
  }

  SaveOptions Options(const char* tag, uint64_t rate) const {
    SaveOptions options;
    options.directory = dir_ + "/ck";
    options.tag = tag;
    options.rate_bytes_per_second = rate;
    return options;
  }

  void Train(tests::ControlJob& job, Figures* f) {
    rpc::JobClient client({job.Address("s0")}, {});
    uint64_t done = job.Step(3);  // first touch
    const auto step = [&] {
      return 1e3 * Seconds([&] {
               Compute(compute_);
               done = job.Step(1);
             });
    };
    std::vector<double> quiet, stalls, after, writing, all;
    for (int i = 0; i < 8; ++i) quiet.push_back(step());
    f->step_ms = Median(quiet);
    for (int r = 0; r < rounds_; ++r) {
      // As train_gpt does: two steps ahead.
      const auto save = PendingSave::Start(&client, "ctl", Options("rated", rate_), done + 3);
      step();
      step();
      Compute(compute_);
      // What the trainer would not do without a save.
      stalls.push_back(1e3 * Seconds([&] { Check(save->WaitCut().ok(), "no cut"); }));
      done = job.Step(1);
      after.push_back(step());
      const size_t begun = writing.size();
      while (!save->done()) writing.push_back(step());
      all.push_back(std::accumulate(writing.begin() + begun, writing.end(), after.back()) /
                    static_cast<double>(writing.size() - begun + 1));
      Check(save->Wait().ok(), "the save failed");
    }
    f->stall_ms = Median(stalls);
    f->after_ms = Median(after);
    f->writing_ms = Median(writing);
    f->all_ms = Median(all);
    // As fast as it goes, between two steps.
    for (int i = 0; i < rounds_; ++i) {
      const auto saved = PendingSave::Start(&client, "ctl", Options("fast", 0), 0)->Wait();
      Check(saved.ok(), std::string(saved.status().message()));
      f->save = std::max(f->save, saved->bytes / absl::ToDoubleSeconds(saved->duration));
    }
  }

  double Restore(const std::vector<std::string>& servers) {
    tests::ControlJob job(servers, Spec());
    v1::RestoreFrom from;
    from.set_directory(dir_ + "/ck");
    job.AttachFrom(from);
    return bytes_ / Seconds([&] { Check(job.TryCommit().ok(), "nothing was restored"); });
  }

  const std::string dir_;
  const int64_t bytes_;
  const uint64_t rate_;
  const absl::Duration compute_;
  const int rounds_;
};

int Main(int argc, char** argv) {
  int64_t mib = 768, rate = 200;
  int compute_ms = 150, rounds = 6;
  bool json = false;
  std::string dir = "/tmp";
  CLI::App app("A save and a restore beside the disk.", "save");
  app.add_option("--dir", dir, "Where to save; on the disk to measure")->check(CLI::ExistingDirectory);
  app.add_option("--mib", mib, "MiB of state")->check(CLI::Range(48, 1 << 20));
  app.add_option("--rate", rate, "MiB a second while training is looked at")->check(CLI::Range(1, 1 << 20));
  app.add_option("--compute-ms", compute_ms, "Arithmetic of a step")->check(CLI::Range(0, 60000));
  app.add_option("--rounds", rounds, "Of each; the best rate counts, the median time")
      ->check(CLI::Range(1, 100));
  app.add_flag("--json", json, "One JSON object on stdout");
  CLI11_PARSE(app, argc, argv);
  const runtime::TestRoot work(dir);  // removed at the end
  const Figures f = SaveBench(work.path(), mib << 20, static_cast<uint64_t>(rate) << 20,
                              absl::Milliseconds(compute_ms), rounds)
                        .Run();
  if (json) {
    const nlohmann::json out = {{"bytes", mib << 20},
                                {"disk_write_gb_s", f.raw_write * 1e-9},
                                {"buffered_write_gb_s", f.buffered_write * 1e-9},
                                {"save_gb_s", f.save * 1e-9},
                                {"save_to_disk", f.save / f.raw_write},
                                {"disk_read_gb_s", f.raw_read * 1e-9},
                                {"restore_gb_s", f.restore * 1e-9},
                                {"restore_to_disk", f.restore / f.raw_read},
                                {"restore_other_size_to_disk", f.restore_other / f.raw_read},
                                {"step_ms", f.step_ms},
                                {"stall_ms", f.stall_ms},
                                {"stall_to_step", f.stall_ms / f.step_ms},
                                {"step_after_cut", f.after_ms / f.step_ms},
                                {"step_while_writing", f.writing_ms / f.step_ms},
                                {"steps_until_saved", f.all_ms / f.step_ms}};
    std::printf("%s\n", out.dump().c_str());
    return 0;
  }
  std::printf("save %.2f GB/s, disk %.2f GB/s: %.2f of it (buffered, as parts are written: %.2f GB/s)\n",
              f.save * 1e-9, f.raw_write * 1e-9, f.save / f.raw_write, f.buffered_write * 1e-9);
  std::printf("restore %.2f GB/s, disk %.2f GB/s: %.2f of it; at another number of servers %.2f\n",
              f.restore * 1e-9, f.raw_read * 1e-9, f.restore / f.raw_read, f.restore_other / f.raw_read);
  std::printf(
      "a step %.1f ms; held up by a save for %.2f ms (%.2f %% of it); the one after the cut, which keeps "
      "what it overwrites, %.2f times as long; then %.2f times while %lld MiB/s are written; in the mean "
      "until "
      "all is saved %.2f times\n",
      f.step_ms, f.stall_ms, 100 * f.stall_ms / f.step_ms, f.after_ms / f.step_ms, f.writing_ms / f.step_ms,
      static_cast<long long>(rate), f.all_ms / f.step_ms);
  return 0;
}

}  // namespace
}  // namespace sherd::bench

int main(int argc, char** argv) { return sherd::bench::Main(argc, argv); }
