#include "client/cli/read.h"

#include <cstring>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "client/cli/json_text.h"
#include "client/cli/slice_spec.h"
#include "client/cli/tensor_list.h"
#include "client/cli/text.h"
#include "nlohmann/json.hpp"
#include "runtime/crc32c.h"
#include "runtime/formats/npy.h"

namespace sherd::cli {
namespace {

absl::StatusOr<std::vector<int64_t>> ShapeOf(rpc::JobClient& client, const ReadOptions& options,
                                             absl::Time deadline) {
  absl::StatusOr<TensorList> list = ListAll(client, EscapeGlob(options.name), deadline);
  if (!list.ok()) return list.status();
  if (options.plane == "step") return std::vector<int64_t>{};
  for (const auto& t : list->tensors) {
    if (options.plane != "buffer")
      return std::vector<int64_t>(t.spec().shape().begin(), t.spec().shape().end());
  }
  for (const v1::Buffer& b : list->buffers) {
    if (options.plane == "buffer") return std::vector<int64_t>(b.shape().begin(), b.shape().end());
  }
  return absl::NotFoundError(absl::StrCat("no tensor ", options.name,
                                          !list->buffers.empty() ? " (but a buffer: add --plane buffer)" : "",
                                          "; `sherd ls` lists all"));
}

// Puts one answer together.
class Assembly {
 public:
  absl::Status Take(v1::ReadTensorResponse& message) {
    if (message.has_header()) {
      if (header_) return absl::DataLossError("the server sent two headers");
      header_ = message.header();
      if (header_->dtype() != "F32") {
        return absl::UnimplementedError(absl::StrCat("the values are ", header_->dtype(),
                                                     "; .npy files hold F32 only: use `sherd pull`"));
      }
      if (header_->bytes() % sizeof(float) != 0)
        return absl::DataLossError("the server states half a number");
      return absl::OkStatus();
    }
    const v1::Chunk& chunk = message.chunk();
    const size_t size = chunk.data().size();
    if (!header_ || chunk.offset() != filled_ || size > header_->bytes() - filled_) {
      return absl::DataLossError(
          absl::StrCat("the server sent byte ", chunk.offset(), " where byte ", filled_, " was due"));
    }
    if (runtime::Crc32c(chunk.data()) != chunk.crc32c()) {
      return absl::DataLossError(
          absl::StrCat("the crc32c of the values from byte ", filled_, " on does not match"));
    }
    // Grows with what came: what a peer states allocates nothing.
    values_.resize((filled_ + size + sizeof(float) - 1) / sizeof(float));
    std::memcpy(reinterpret_cast<char*>(values_.data()) + filled_, chunk.data().data(), size);
    filled_ += size;
    return absl::OkStatus();
  }

  absl::StatusOr<ReadResult> Finish(std::vector<int64_t> shape) && {
    int64_t elements = 1;
    for (int64_t size : shape) elements *= size;
    if (!header_ || filled_ != header_->bytes() || static_cast<int64_t>(values_.size()) != elements) {
      return absl::DataLossError(
          absl::StrCat("the server sent ", filled_, " bytes where ", elements * sizeof(float), " were due"));
    }
    return ReadResult{header_->step(), std::move(shape), std::move(values_)};
  }

 private:
  std::optional<v1::ReadTensorResponse::Header> header_;
  uint64_t filled_ = 0;
  std::vector<float> values_;
};

}  // namespace

absl::StatusOr<ReadResult> ReadValues(rpc::JobClient& client, const ReadOptions& options,
                                      absl::Time deadline) {
  absl::StatusOr<SliceSpec> spec = ParseSlice(options.slice);
  if (!spec.ok()) return spec.status();
  absl::StatusOr<std::vector<int64_t>> shape = ShapeOf(client, options, deadline);
  if (!shape.ok()) return shape.status();
  absl::StatusOr<ResolvedSlice> slice = Resolve(*spec, *shape);
  if (!slice.ok()) return slice.status();
  v1::ReadTensorRequest request;
  request.mutable_tensor()->set_name(options.name);
  request.mutable_tensor()->set_plane(options.plane);
  for (const Slice::Dimension& d : slice->dimensions) {
    v1::SliceDimension* out = request.add_slice();
    out->set_start(d.start);
    out->set_stop(d.stop);
    out->set_step(d.step);
  }
  std::optional<Assembly> assembly;
  absl::Status status = client.RetryUnavailable(deadline, [&] {
    assembly.emplace();
    return client.ReadTensor(request, deadline,
                             [&](v1::ReadTensorResponse& message) { return assembly->Take(message); });
  });
  if (!status.ok()) return status;
  return std::move(*assembly).Finish(std::move(slice->shape));
}

absl::Status ReadToFile(Context& context, const ReadOptions& options) {
  absl::StatusOr<ReadResult> result = ReadValues(context.client, options, context.deadline);
  if (!result.ok()) return result.status();
  if (absl::Status status = formats::WriteNpy(options.file, result->values, result->shape); !status.ok())
    return status;
  if (context.json) {
    context.out << Dump({{"file", options.file},
                         {"name", options.name},
                         {"plane", options.plane.empty() ? "param" : options.plane},
                         {"step", result->step},
                         {"shape", result->shape}});
  } else {
    context.out << options.file << ": " << ShapeText(result->shape) << " at step " << result->step << "\n";
  }
  return absl::OkStatus();
}

}  // namespace sherd::cli
