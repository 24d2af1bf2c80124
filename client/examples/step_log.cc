#include "client/examples/step_log.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/str_cat.h"

namespace sherd::examples {
namespace {

// Bytes at the beginning of `contents` that are whole lines of steps before `first_step`.
size_t KeptBytes(const std::string& contents, uint64_t first_step) {
  size_t kept = 0;
  while (true) {
    const size_t end = contents.find('\n', kept);
    if (end == std::string::npos) return kept;
    const nlohmann::json line = nlohmann::json::parse(contents.begin() + kept, contents.begin() + end,
                                                      nullptr, /*allow_exceptions=*/false);
    if (!line.is_object()) return kept;
    const auto step = line.find("step");
    if (step == line.end() || !step->is_number_unsigned() || step->get<uint64_t>() >= first_step) return kept;
    kept = end + 1;
  }
}

// Leaves `fd` positioned behind the lines to keep, with nothing after them.
absl::Status CutAt(int fd, const std::string& path, uint64_t first_step) {
  struct stat info;
  if (fstat(fd, &info) != 0)
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot examine the step log ", path));
  if (!S_ISREG(info.st_mode)) return absl::OkStatus();  // a pipe or a device holds nothing to continue
  std::string contents;
  char buffer[1 << 16];
  ssize_t n;
  while ((n = read(fd, buffer, sizeof buffer)) != 0) {
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot read the step log ", path));
    contents.append(buffer, n);
  }
  const size_t kept = KeptBytes(contents, first_step);
  if (ftruncate(fd, kept) != 0 || lseek(fd, kept, SEEK_SET) < 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot cut the step log ", path));
  }
  return absl::OkStatus();
}

}  // namespace

StepLog::StepLog(std::string path, FILE* file)
    : path_(std::move(path)), file_(file, [](FILE* f) { return f ? fclose(f) : 0; }) {}

absl::StatusOr<StepLog> StepLog::Open(const std::string& path, uint64_t first_step) {
  int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (fd < 0) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open the step log ", path));
  absl::Cleanup close_fd = [fd] { close(fd); };
  if (absl::Status cut = CutAt(fd, path, first_step); !cut.ok()) return cut;
  FILE* file = fdopen(fd, "w");
  if (file == nullptr) return absl::ErrnoToStatus(errno, absl::StrCat("cannot open the step log ", path));
  std::move(close_fd).Cancel();
  return StepLog(path, file);
}

absl::Status StepLog::Write(const StepRecord& record) {
  nlohmann::ordered_json line = {
      {"step", record.step},     {"loss", record.loss},      {"grad_norm", record.grad_norm},
      {"tokens", record.tokens}, {"epoch", record.epoch},    {"world_size", record.world_size},
      {"lr", record.lr},         {"step_ms", record.step_ms}};
  if (record.loss_scale != 1) line["loss_scale"] = record.loss_scale;
  if (record.skipped) line["skipped"] = true;
  if (record.peak_parameter_bytes > 0) {
    line["gathers"] = record.gathers;
    line["prefetch_hits"] = record.prefetch_hits;
    line["peak_parameter_bytes"] = record.peak_parameter_bytes;
  }
  const std::string text = line.dump() + "\n";
  if (fwrite(text.data(), 1, text.size(), file_.get()) != text.size() || fflush(file_.get()) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("cannot write the step log ", path_));
  }
  return absl::OkStatus();
}

}  // namespace sherd::examples
