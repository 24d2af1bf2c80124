// A job in this process with a few small tensors, behind a FakeServer: what pull, push and read talk to in
// tests.
#ifndef SHERD_CLIENT_CLI_FAKE_JOB_H_
#define SHERD_CLIENT_CLI_FAKE_JOB_H_

#include <algorithm>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "client/rpc/fake_server.h"
#include "runtime/crc32c.h"

namespace sherd::cli {

class FakeJob {
 public:
  using Write = std::function<bool(const v1::Chunk&)>;

  explicit FakeJob(const std::string& socket_path) : server(socket_path) {
    server.list_tensors = [this](const v1::ListTensorsRequest& request, v1::ListTensorsResponse* out) {
      // One tensor in a page.
      const int64_t at = request.page_token();
      if (at < static_cast<int64_t>(tensors.size())) *out->add_tensors() = tensors[at];
      if (at + 1 < static_cast<int64_t>(tensors.size())) out->set_next_page_token(at + 1);
      if (at == 0) {
        for (const v1::Buffer& b : buffers) *out->add_buffers() = b;
      }
      return absl::OkStatus();
    };
    server.snapshot = [this](const v1::SnapshotRequest& request, v1::SnapshotInfo* out) {
      out->set_id(++snapshots);
      out->set_step(100 + snapshots);
      planes.assign(request.planes().begin(), request.planes().end());
      return absl::OkStatus();
    };
    server.release = [this](const v1::ReleaseRequest& request, v1::ReleaseResponse*) {
      released.push_back(request.id());
      return absl::OkStatus();
    };
    server.pull = [this](const v1::PullRequest& request, const Write& write) { return Pull(request, write); };
  }

  void AddTensor(const std::string& name, std::vector<int64_t> shape, bool frozen = false) {
    v1::ListTensorsResponse::Tensor& t = tensors.emplace_back();
    t.mutable_spec()->set_name(name);
    t.mutable_spec()->mutable_shape()->Assign(shape.begin(), shape.end());
    t.mutable_spec()->set_dtype(v1::DTYPE_FLOAT32);
    t.mutable_spec()->set_frozen(frozen);
    t.add_planes("param");
    if (!frozen) t.add_planes("exp_avg");
    int64_t numel = 1;
    for (int64_t d : shape) numel *= d;
    Fill("param", name, numel);
    if (!frozen) {
      Fill("exp_avg", name, numel);
      Fill("step", name, 1);
    }
  }
  void AddBuffer(const std::string& name, std::vector<int64_t> shape, const std::string& dtype,
                 size_t bytes) {
    v1::Buffer& b = buffers.emplace_back();
    b.set_name(name);
    b.mutable_shape()->Assign(shape.begin(), shape.end());
    b.set_dtype(dtype);
    values[{"buffer", name}] = std::string(bytes, 'b');
  }

  std::vector<v1::ListTensorsResponse::Tensor> tensors;
  std::vector<v1::Buffer> buffers;
  std::map<std::pair<std::string, std::string>, std::string> values;  // (plane, name) -> bytes
  int snapshots = 0;
  std::vector<uint64_t> released;
  std::vector<std::string> planes;  // of the last snapshot
  int most_chunks = 1 << 30;        // of one pull, which breaks after them
  // Called before each pull: an error is its answer.
  std::function<absl::Status(const v1::PullRequest&)> before_pull;
  rpc::FakeServer server;  // its hooks use what stands above

 private:
  void Fill(const std::string& plane, const std::string& name, int64_t numel) {
    std::string bytes;
    for (int64_t i = 0; i < numel; ++i) {
      const float value = static_cast<float>(i) + 0.25f * static_cast<float>(plane.size());
      bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
    }
    values[{plane, name}] = bytes;
  }
  absl::Status Pull(const v1::PullRequest& request, const Write& write) {
    if (before_pull) {
      if (absl::Status status = before_pull(request); !status.ok()) return status;
    }
    std::string all;
    for (const v1::TensorRef& ref : request.tensors()) all += values.at({ref.plane(), ref.name()});
    constexpr uint64_t kSize = 100;
    int chunks = 0;
    for (uint64_t at = request.offset(); at < all.size(); at += kSize) {
      if (chunks++ == most_chunks) return absl::UnavailableError("the server has gone");
      v1::Chunk chunk;
      chunk.set_offset(at);
      chunk.set_data(all.substr(at, kSize));
      chunk.set_crc32c(runtime::Crc32c(chunk.data()));
      if (!write(chunk)) break;
    }
    return absl::OkStatus();
  }
};

}  // namespace sherd::cli

#endif  // SHERD_CLIENT_CLI_FAKE_JOB_H_
