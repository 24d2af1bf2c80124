#include "server/state_copies.h"

#include <algorithm>
#include <map>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/status.h"
#include "runtime/crc32c.h"
#include "server/own_blocks.h"
#include "server/snapshot_reader.h"

namespace sherd::server {
namespace {

using runtime::JobMemory;
using Difference = v1::CompareCopiesResponse::Difference;

// Of which sums are made at first, then of those that differ, and of those again.
constexpr int64_t kPartElements[] = {4194304, 4096, 1};
constexpr int kLevels = 3;
constexpr int64_t kMostSums = 65536;
// Read at a time: stays in a core's nearer cache.
constexpr int64_t kReadElements = 16384;
constexpr int kMostDifferences = 1000;
// Pieces that are looked at more closely; beyond, they are named as they are.
constexpr int kMostLooks = 256;

// Elements of a tensor that `host` owns in a plane.
std::pair<int64_t, int64_t> Owned(const JobMemory& memory, int host, const TensorInfo& tensor, int plane) {
  if (plane != 0 && !tensor.spec.trainable) return {0, 0};
  return ElementsOn(host, memory, tensor);
}

absl::Status SumOf(SnapshotReader& reader, const StatePart& part, int64_t step,
                   const std::function<bool()>& go_on, v1::SumShareResponse* out) {
  std::vector<char> buffer(std::min(kReadElements, part.end - part.begin) * sizeof(float));
  uint32_t crc = 0;
  int64_t left = step;  // of the sum in hand
  for (int64_t at = part.begin; at < part.end;) {
    int64_t n = std::min(kReadElements, part.end - at);
    reader.Read(*part.tensor, part.plane, at, n, buffer.data());
    at += n;
    for (const char* data = buffer.data(); n > 0;) {
      const int64_t take = std::min(n, left);
      crc = runtime::ExtendCrc32c(crc, data, take * sizeof(float));
      data += take * sizeof(float);
      n -= take;
      left -= take;
      if (left > 0) continue;
      out->add_crc32c(crc);
      crc = 0;
      left = step;
    }
  }
  if (left < step) out->add_crc32c(crc);
  if (!go_on()) return absl::CancelledError("the caller has gone");
  return reader.Check();
}

absl::StatusOr<StatePart> PartOf(const JobMemory& memory, const v1::SumShareRequest::Part& asked) {
  const auto& tensors = memory.layout().tensors();
  StatePart part;
  if (asked.tensor() >= 0 && asked.tensor() < static_cast<int>(tensors.size()) && asked.plane() >= 0 &&
      asked.plane() < memory.planes() && asked.step() > 0) {
    part = {&tensors[asked.tensor()], asked.plane(), asked.begin(), asked.end()};
    const auto [begin, end] = Owned(memory, memory.place().index, *part.tensor, part.plane);
    if (part.begin >= begin && part.begin < part.end && part.end <= end &&
        (part.end - part.begin - 1) / asked.step() < kMostSums)
      return part;
  }
  return absl::OutOfRangeError(
      absl::StrCat("host ", memory.place().index, " has no such part: ", asked.ShortDebugString()));
}

// One comparison: the hosts that are asked, and what came of it.
class Comparison {
 public:
  Comparison(const OtherHosts& others, JobMemory& memory, const SnapshotState& snapshot, absl::Time deadline,
             const std::function<bool()>& go_on)
      : others_(others), memory_(memory), deadline_(deadline), go_on_(go_on), sums_(memory.grid().hosts) {
    request_.set_job(others.job());
    request_.set_snapshot_id(snapshot.id);
    request_.set_step(snapshot.step.value());
    result_.set_step(snapshot.step.value());
    result_.set_copies(memory.grid().groups());
  }

  absl::StatusOr<v1::CompareCopiesResponse> Run() {
    if (absl::Status s = SumAll(); !s.ok()) return s;
    const HostGrid grid = memory_.grid();
    CompareCounts();
    for (int share = 0; share < grid.group; ++share) {
      std::vector<int> hosts;
      for (int g = 0; g < grid.groups(); ++g) hosts.push_back(grid.Counterpart(share, g * grid.group));
      const std::vector<StatePart> parts = PartsOf(memory_, share, kPartElements[0]);
      for (const StatePart& part : parts) {
        result_.set_bytes(result_.bytes() + (part.end - part.begin) * static_cast<int64_t>(sizeof(float)));
      }
      std::vector<const v1::SumShareResponse*> sums;
      for (int host : hosts) sums.push_back(&sums_[host]);
      if (absl::Status s = Compare(hosts, sums, parts, 0); !s.ok()) return s;
    }
    return std::move(result_);
  }

 private:
  absl::Status SumAll() {
    absl::StatusOr<v1::SumShareResponse> own;
    std::thread here([&] { own = SumShareHere(memory_, request_, go_on_); });
    const absl::Status status = others_.ForEach(
        deadline_,
        [&](int host, OtherHosts::Stub& stub, grpc::ClientContext* context) {
          return FromGrpc(stub.SumShare(context, request_, &sums_[host]));
        },
        go_on_);
    here.join();
    if (!status.ok()) return status;
    if (!own.ok()) return own.status();
    sums_[memory_.place().index] = *std::move(own);
    return absl::OkStatus();
  }

  void CompareCounts() {
    std::vector<int> hosts;
    for (int h = 0; h < memory_.grid().hosts; ++h) hosts.push_back(h);
    const auto& tensors = memory_.layout().tensors();
    for (int t = 0; t < static_cast<int>(tensors.size()); ++t) {
      std::vector<uint32_t> counts;
      for (const v1::SumShareResponse& s : sums_) {
        const uint64_t count = t < s.update_counts_size() ? s.update_counts(t) : ~uint64_t{0};
        counts.push_back(runtime::Crc32c(&count, sizeof(count)));
      }
      if (const std::vector<int> apart = Apart(hosts, counts); !apart.empty())
        Add(tensors[t], "step", 0, 0, hosts, apart);
    }
  }

  // `sums[i]`: of parts, one after another, as hosts[i] made them.
  absl::Status Compare(const std::vector<int>& hosts, const std::vector<const v1::SumShareResponse*>& sums,
                       const std::vector<StatePart>& parts, int level) {
    for (size_t i = 0; i < hosts.size(); ++i) {
      if (sums[i]->crc32c_size() != static_cast<int>(parts.size())) {
        return absl::DataLossError(absl::StrCat("host ", hosts[i], " sent ", sums[i]->crc32c_size(),
                                                " checksums where ", parts.size(), " were asked for"));
      }
    }
    for (size_t p = 0; p < parts.size(); ++p) {
      std::vector<uint32_t> of_part;
      for (const v1::SumShareResponse* s : sums) of_part.push_back(s->crc32c(static_cast<int>(p)));
      const std::vector<int> apart = Apart(hosts, of_part);
      if (apart.empty()) continue;
      const StatePart& part = parts[p];
      if (level + 1 == kLevels || looks_ == kMostLooks) {
        Add(*part.tensor, memory_.plane_name(part.plane), part.begin, part.end, hosts, apart);
      } else if (absl::Status s = LookInto(hosts, part, level + 1); !s.ok()) {
        return s;
      }
    }
    return absl::OkStatus();
  }

  absl::Status LookInto(const std::vector<int>& hosts, const StatePart& part, int level) {
    ++looks_;
    const int64_t step = kPartElements[level];
    v1::SumShareRequest request = request_;
    request.mutable_part()->set_tensor(part.tensor->index);
    request.mutable_part()->set_plane(part.plane);
    request.mutable_part()->set_begin(part.begin);
    request.mutable_part()->set_end(part.end);
    request.mutable_part()->set_step(step);
    std::vector<v1::SumShareResponse> sums(hosts.size());
    std::vector<const v1::SumShareResponse*> views;
    for (size_t i = 0; i < hosts.size(); ++i) {
      absl::Status status;
      if (hosts[i] == memory_.place().index) {
        absl::StatusOr<v1::SumShareResponse> own = SumShareHere(memory_, request, go_on_);
        status = own.status();
        if (own.ok()) sums[i] = *std::move(own);
      } else {
        status = others_.To(
            hosts[i], deadline_,
            [&](int, OtherHosts::Stub& stub, grpc::ClientContext* context) {
              return FromGrpc(stub.SumShare(context, request, &sums[i]));
            },
            go_on_);
      }
      if (!status.ok()) return status;
      views.push_back(&sums[i]);
    }
    std::vector<StatePart> parts;
    for (int64_t at = part.begin; at < part.end; at += step)
      parts.push_back({part.tensor, part.plane, at, std::min(at + step, part.end)});
    return Compare(hosts, views, parts, level);
  }

  void Add(const TensorInfo& tensor, const std::string& plane, int64_t begin, int64_t end,
           const std::vector<int>& hosts, const std::vector<int>& apart) {
    const int n = result_.differences_size();
    if (n > 0) {
      Difference& last = *result_.mutable_differences(n - 1);
      if (last.tensor().name() == tensor.spec.name && last.tensor().plane() == plane && last.end() == begin &&
          begin < end && std::equal(apart.begin(), apart.end(), last.apart().begin(), last.apart().end())) {
        last.set_end(end);
        return;
      }
    }
    if (n == kMostDifferences) {
      result_.set_more(true);
      return;
    }
    Difference& d = *result_.add_differences();
    d.mutable_tensor()->set_name(tensor.spec.name);
    d.mutable_tensor()->set_plane(plane);
    d.set_begin(begin);
    d.set_end(end);
    for (int h : hosts) d.add_hosts(h);
    for (int h : apart) d.add_apart(h);
  }

  const OtherHosts& others_;
  JobMemory& memory_;
  const absl::Time deadline_;
  const std::function<bool()>& go_on_;
  v1::SumShareRequest request_;
  std::vector<v1::SumShareResponse> sums_;  // by host
  v1::CompareCopiesResponse result_;
  int looks_ = 0;
};

}  // namespace

std::vector<StatePart> PartsOf(const JobMemory& memory, int host, int64_t most_elements) {
  std::vector<StatePart> parts;
  for (int p = 0; p < memory.planes(); ++p) {
    for (const TensorInfo& tensor : memory.layout().tensors()) {
      const auto [begin, end] = Owned(memory, host, tensor, p);
      for (int64_t at = begin; at < end; at += most_elements)
        parts.push_back({&tensor, p, at, std::min(end, at + most_elements)});
    }
  }
  return parts;
}

std::vector<int> Apart(const std::vector<int>& hosts, const std::vector<uint32_t>& sums) {
  std::map<uint32_t, size_t> votes;
  for (uint32_t sum : sums) ++votes[sum];
  if (votes.size() == 1) return {};
  std::vector<int> apart;
  const auto most = std::max_element(votes.begin(), votes.end(),
                                     [](const auto& a, const auto& b) { return a.second < b.second; });
  const bool majority = 2 * most->second > sums.size();
  for (size_t i = 0; i < hosts.size(); ++i) {
    if (!majority || sums[i] != most->first) apart.push_back(hosts[i]);
  }
  return apart;
}

absl::StatusOr<v1::SumShareResponse> SumShareHere(JobMemory& memory, const v1::SumShareRequest& request,
                                                  const std::function<bool()>& go_on) {
  const absl::StatusOr<std::shared_ptr<SnapshotReader>> reader =
      SnapshotReader::OpenOfStep(&memory, request.snapshot_id(), request.step());
  if (!reader.ok()) return reader.status();
  v1::SumShareResponse response;
  if (request.has_part()) {
    const absl::StatusOr<StatePart> part = PartOf(memory, request.part());
    if (!part.ok()) return part.status();
    if (absl::Status s = SumOf(**reader, *part, request.part().step(), go_on, &response); !s.ok()) return s;
    return response;
  }
  for (const StatePart& part : PartsOf(memory, memory.place().index, kPartElements[0])) {
    if (absl::Status s = SumOf(**reader, part, kPartElements[0], go_on, &response); !s.ok()) return s;
  }
  for (size_t t = 0; t < memory.layout().tensors().size(); ++t)
    response.add_update_counts((*reader)->UpdateCount(static_cast<int>(t)));
  return response;
}

absl::StatusOr<v1::CompareCopiesResponse> CompareCopies(const OtherHosts* others, JobMemory& memory,
                                                        Snapshots& snapshots, const std::string& token,
                                                        absl::Time deadline,
                                                        const std::function<bool()>& go_on) {
  if (others == nullptr || memory.grid().groups() == 1) {
    return absl::FailedPreconditionError(
        "the job's state is held once, so there is nothing to compare: `sherd run --hosts N --replicas R` "
        "makes R further copies");
  }
  SnapshotOptions options;
  options.plane_mask = SnapshotPool::AllPlanes(memory);
  options.token = token;
  options.cancelled = [&] { return !go_on(); };
  const absl::StatusOr<SnapshotState> snapshot = snapshots.Open(memory, options, deadline);
  if (!snapshot.ok()) return snapshot.status();
  absl::StatusOr<v1::CompareCopiesResponse> result =
      Comparison(*others, memory, *snapshot, deadline, go_on).Run();
  snapshots.Release(memory, snapshot->id);
  return result;
}

}  // namespace sherd::server
