#include "client/pending_save.h"

#include <unistd.h>

#include <climits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/convert.h"
#include "runtime/clock.h"
#include "runtime/crc32c.h"

namespace sherd {
namespace {

using runtime::MutexLock;

// A disk may be slow; a save that hangs for so long is lost.
constexpr absl::Duration kMostPatience = absl::Hours(24);

}  // namespace

std::string AbsolutePath(const std::string& path) {
  std::string out = path;
  char here[PATH_MAX];
  if (!path.empty() && path[0] != '/' && ::getcwd(here, sizeof(here)) != nullptr)
    out = absl::StrCat(here, "/", path);
  while (out.size() > 1 && out.back() == '/') out.pop_back();
  return out;
}

absl::StatusOr<v1::SaveRequest> ToSaveRequest(const std::string& job, const SaveOptions& options,
                                              uint64_t after_step) {
  if (options.directory.empty()) return absl::InvalidArgumentError("no directory to save into was given");
  v1::SaveRequest request;
  request.set_job(job);
  request.set_directory(AbsolutePath(options.directory));
  request.set_tag(options.tag);
  request.set_keep(options.keep);
  request.set_rate_bytes_per_second(options.rate_bytes_per_second);
  request.set_after_step(after_step);
  request.set_token(rpc::NewToken());
  if (after_step != 0) {
    // The same for a trainer's successor, which asks again for what may be under way.
    const uint32_t where = runtime::Crc32c(absl::StrCat(request.directory(), "//", request.tag()));
    request.set_token(absl::StrCat("save ", after_step, " ", absl::Hex(where, absl::kZeroPad8)));
  }
  return request;
}

std::shared_ptr<PendingSave> PendingSave::Start(rpc::JobClient* client, const std::string& job,
                                                const SaveOptions& options, uint64_t after_step) {
  std::shared_ptr<PendingSave> save(new PendingSave);
  const absl::StatusOr<v1::SaveRequest> request = ToSaveRequest(job, options, after_step);
  if (!request.ok()) {
    MutexLock lock(save->mu_);
    save->result_ = request.status();
    return save;
  }
  save->thread_ = std::thread([s = save.get(), client, r = *request] { s->Run(client, r); });
  return save;
}

PendingSave::~PendingSave() {
  if (thread_.joinable()) thread_.join();
}

void PendingSave::Run(rpc::JobClient* client, const v1::SaveRequest& request) {
  const absl::Time deadline = runtime::SteadyNow() + kMostPatience;
  std::optional<v1::SaveProgress::Result> result;
  absl::Status status = client->RetryUnavailable(deadline, [&] {
    return client->Save(request, deadline, [&](v1::SaveProgress& message) {
      if (message.has_result()) result = message.result();
      if (message.has_cut()) {
        MutexLock lock(mu_);
        cut_ = message.cut();
        changed_.SignalAll();
      }
      return absl::OkStatus();
    });
  });
  if (status.ok() && !result.has_value())
    status = absl::InternalError("the servers have not said how the save ended");
  MutexLock lock(mu_);
  if (!status.ok()) {
    result_ = status;
  } else {
    SavedAs as{result->path(),
               result->tag(),
               result->step(),
               result->bytes(),
               FromProto(result->duration()),
               {result->removed().begin(), result->removed().end()}};
    result_ = std::move(as);
  }
  changed_.SignalAll();
}

absl::Status PendingSave::WaitCut() {
  MutexLock lock(mu_);
  while (!cut_.has_value() && !result_.has_value()) changed_.Wait(mu_);
  return cut_.has_value() ? absl::OkStatus() : result_->status();
}

uint64_t PendingSave::step() const {
  MutexLock lock(mu_);
  if (result_.has_value() && result_->ok()) return (*result_)->step;
  return cut_.has_value() ? cut_->step() : 0;
}

bool PendingSave::done() const {
  MutexLock lock(mu_);
  return result_.has_value();
}

absl::StatusOr<SavedAs> PendingSave::Wait() {
  MutexLock lock(mu_);
  while (!result_.has_value()) changed_.Wait(mu_);
  return *result_;
}

}  // namespace sherd
