#include "client/cli/push.h"

#include <algorithm>
#include <memory>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/types/span.h"
#include "client/cli/consolidated.h"
#include "client/cli/tensor_list.h"
#include "client/cli/text.h"
#include "runtime/clock.h"
#include "runtime/crc32c.h"
#include "runtime/formats/checkpoint.h"

namespace sherd::cli {
namespace {

constexpr uint64_t kChunkBytes = 1 << 20;

// The messages of one Push call, in order.
class Sender {
 public:
  Sender(const formats::Checkpoint& checkpoint, const PushPlan& plan, const std::string& token, bool partial,
         Progress& progress)
      : checkpoint_(checkpoint), plan_(plan), token_(token), partial_(partial), progress_(progress) {}

  absl::StatusOr<bool> Next(v1::PushRequest* message) {
    if (!begun_) {
      begun_ = true;
      message->mutable_begin()->set_token(token_);
      message->mutable_begin()->set_partial(partial_);
      *message->mutable_begin()->mutable_manifest() = plan_.manifest;
      return true;
    }
    while (item_ < plan_.items.size() && in_item_ == plan_.items[item_].bytes) {
      ++item_;
      in_item_ = 0;
    }
    if (item_ < plan_.items.size()) {
      if (absl::Status status = Chunk(message->mutable_chunk()); !status.ok()) return status;
      return true;
    }
    if (committed_) return false;
    committed_ = true;
    message->mutable_commit();
    return true;
  }

 private:
  absl::Status Chunk(v1::Chunk* chunk) {
    const PushPlan::Item& item = plan_.items[item_];
    std::string* data = chunk->mutable_data();
    data->resize(std::min(kChunkBytes, item.bytes - in_item_));
    absl::Status status =
        checkpoint_.Read(item.stored_name, in_item_, absl::MakeSpan(&(*data)[0], data->size()));
    if (!status.ok()) return status;
    chunk->set_offset(sent_);
    chunk->set_crc32c(runtime::Crc32c(*data));
    in_item_ += data->size();
    sent_ += data->size();
    if (progress_.Due()) {
      progress_.Show(absl::StrFormat("push: %3.0f%%  %s of %s", 100.0 * sent_ / plan_.bytes,
                                     HumanBytes(sent_), HumanBytes(plan_.bytes)));
    }
    return absl::OkStatus();
  }

  const formats::Checkpoint& checkpoint_;
  const PushPlan& plan_;
  const std::string token_;
  const bool partial_;
  Progress& progress_;
  bool begun_ = false, committed_ = false;
  size_t item_ = 0;
  uint64_t in_item_ = 0;
  uint64_t sent_ = 0;
};

}  // namespace

absl::StatusOr<PushResult> PushJob(rpc::JobClient& client, const std::string& path, const PushChoice& choice,
                                   absl::Time deadline, Progress& progress) {
  const absl::Time start = runtime::SteadyNow();
  absl::StatusOr<std::unique_ptr<formats::Checkpoint>> checkpoint = formats::Checkpoint::Open(path);
  if (!checkpoint.ok()) return checkpoint.status();
  absl::StatusOr<TensorList> job = ListAll(client, "", deadline);
  if (!job.ok()) return job.status();
  std::vector<formats::TensorEntry> stored;
  for (const formats::CheckpointTensor& t : (*checkpoint)->tensors()) stored.push_back(*t.entry);
  absl::StatusOr<PushPlan> plan = PlanPush(*job, stored, choice);
  if (!plan.ok()) {
    return absl::Status(plan.status().code(), absl::StrCat(path, ": ", plan.status().message()));
  }
  const std::string token = rpc::NewToken();
  PushResult result;
  absl::Status status = client.RetryUnavailable(deadline, [&] {
    Sender sender(**checkpoint, *plan, token, choice.partial, progress);
    absl::StatusOr<v1::PushResponse> pushed =
        client.Push([&](v1::PushRequest* message) { return sender.Next(message); }, deadline);
    if (pushed.ok()) result.step = pushed->step();
    return pushed.status();
  });
  progress.Clear();
  if (!status.ok()) return status;
  result.tensors = plan->items.size();
  result.bytes = plan->bytes;
  result.skipped_buffers = plan->skipped_buffers;
  result.missing = static_cast<int>(plan->missing.size());
  result.left_over = static_cast<int>(plan->left_over.size());
  result.duration = runtime::SteadyNow() - start;
  return result;
}

}  // namespace sherd::cli
