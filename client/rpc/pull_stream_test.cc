#include "client/rpc/pull_stream.h"

#include <random>
#include <string>
#include <vector>

#include "client/rpc/fake_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "runtime/crc32c.h"
#include "runtime/test_root.h"

namespace sherd::rpc {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Write = std::function<bool(const v1::Chunk&)>;

absl::Time Soon() { return runtime::SteadyNow() + absl::Seconds(30); }

std::string SomeBytes(size_t size) {
  std::mt19937 random(1);
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

v1::Chunk ChunkOf(const std::string& bytes, uint64_t offset, uint64_t size) {
  v1::Chunk chunk;
  chunk.set_offset(offset);
  chunk.set_data(bytes.substr(offset, size));
  chunk.set_crc32c(runtime::Crc32c(chunk.data()));
  return chunk;
}

class PullStreamTest : public ::testing::Test {
 protected:
  // Pulls with a server that does `serve(attempt, offset, write)`.
  PullOutcome Pull(std::function<absl::Status(int attempt, uint64_t offset, const Write& write)> serve) {
    server_.pull = [&, serve](const v1::PullRequest& request, const Write& write) {
      offsets_.push_back(request.offset());
      return serve(static_cast<int>(offsets_.size()), request.offset(), write);
    };
    JobClient client({server_.endpoint()}, {});
    return PullBytes(
        client, v1::PullRequest(), bytes_.size(),
        [&](uint64_t offset, absl::string_view bytes) {
          EXPECT_EQ(offset, got_.size());
          got_.append(bytes.data(), bytes.size());
          return absl::OkStatus();
        },
        Soon());
  }
  // Sends chunks from `offset` to `end`.
  void Send(uint64_t offset, uint64_t end, const Write& write, uint64_t size = 1000) {
    for (; offset < end; offset += size) write(ChunkOf(bytes_, offset, std::min(size, end - offset)));
  }

  runtime::TestRoot root_{"/tmp"};
  const std::string bytes_ = SomeBytes(10000);
  std::string got_;
  std::vector<uint64_t> offsets_;                 // asked for
  FakeServer server_{root_.path() + "/s0.sock"};  // its hooks use what stands above
};

TEST_F(PullStreamTest, TakesAllInOrder) {
  const PullOutcome outcome = Pull([&](int, uint64_t offset, const Write& write) {
    Send(offset, bytes_.size(), write);
    return absl::OkStatus();
  });
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_EQ(outcome.resumed, 0);
  EXPECT_EQ(got_, bytes_);
}

TEST_F(PullStreamTest, GoesOnWhereTheConnectionBroke) {
  const PullOutcome outcome = Pull([&](int attempt, uint64_t offset, const Write& write) {
    if (attempt < 4) {
      Send(offset, offset + 1500, write);
      return absl::UnavailableError("Socket closed");
    }
    Send(offset, bytes_.size(), write);
    return absl::OkStatus();
  });
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_THAT(offsets_, ElementsAre(0, 1500, 3000, 4500));
  EXPECT_EQ(outcome.resumed, 3);
  EXPECT_EQ(got_, bytes_);
}

TEST_F(PullStreamTest, GoesOnAtAnotherServer) {
  FakeServer other(root_.path() + "/s1.sock");
  other.pull = [&](const v1::PullRequest& request, const Write& write) {
    offsets_.push_back(request.offset());
    Send(request.offset(), bytes_.size(), write);
    return absl::OkStatus();
  };
  server_.pull = [&](const v1::PullRequest& request, const Write& write) {
    offsets_.push_back(request.offset());
    Send(request.offset(), 2500, write);
    return absl::UnavailableError("killed");
  };
  JobClient client({server_.endpoint(), other.endpoint()}, {});
  const PullOutcome outcome = PullBytes(
      client, v1::PullRequest(), bytes_.size(),
      [&](uint64_t, absl::string_view bytes) {
        got_.append(bytes.data(), bytes.size());
        return absl::OkStatus();
      },
      Soon());
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_THAT(offsets_, ElementsAre(0, 2500));
  EXPECT_EQ(got_, bytes_);
}

TEST_F(PullStreamTest, DamagedChunksAreAskedForAgain) {
  const PullOutcome outcome = Pull([&](int attempt, uint64_t offset, const Write& write) {
    Send(offset, 3000, write);
    v1::Chunk chunk = ChunkOf(bytes_, std::max<uint64_t>(offset, 3000), 1000);
    if (attempt < 3) (*chunk.mutable_data())[17] ^= 1;
    write(chunk);
    Send(4000, bytes_.size(), write);
    return absl::OkStatus();
  });
  EXPECT_TRUE(outcome.status.ok()) << outcome.status;
  EXPECT_THAT(offsets_, ElementsAre(0, 3000, 3000));
  EXPECT_EQ(got_, bytes_);
}

TEST_F(PullStreamTest, DamageThatStaysIsAnError) {
  const PullOutcome outcome = Pull([&](int, uint64_t offset, const Write& write) {
    v1::Chunk chunk = ChunkOf(bytes_, offset, 1000);
    chunk.set_crc32c(chunk.crc32c() + 1);
    write(chunk);
    return absl::OkStatus();
  });
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(outcome.status.message()), HasSubstr("crc32c of bytes 0 to 1000"));
  EXPECT_EQ(offsets_.size(), 3);
  EXPECT_FALSE(outcome.snapshot_lost);
  EXPECT_EQ(got_, "");
}

TEST_F(PullStreamTest, ChunksInTheWrongPlaceAreNotTaken) {
  for (const auto& [offset, size] : {std::pair<uint64_t, uint64_t>{1, 10}, {9000, 1000}, {0, 0}}) {
    SCOPED_TRACE(offset);
    offsets_.clear();
    const PullOutcome outcome = Pull([&, o = offset, s = size](int, uint64_t, const Write& write) {
      write(ChunkOf(bytes_, o, s));
      return absl::OkStatus();
    });
    EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDataLoss);
    EXPECT_EQ(got_, "");
  }
}

TEST_F(PullStreamTest, TooManyAndTooFewBytesAreErrors) {
  PullOutcome outcome = Pull([&](int, uint64_t offset, const Write& write) {
    v1::Chunk chunk;
    chunk.set_offset(offset);
    chunk.set_data(std::string(bytes_.size() + 1, 'x'));
    chunk.set_crc32c(runtime::Crc32c(chunk.data()));
    write(chunk);
    return absl::OkStatus();
  });
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDataLoss);
  outcome = Pull([&](int, uint64_t offset, const Write& write) {
    Send(offset, 5000, write);
    return absl::OkStatus();
  });
  EXPECT_EQ(outcome.status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(outcome.status.message()), HasSubstr("ended after 5000 of 10000"));
}

TEST_F(PullStreamTest, ALostSnapshotIsSaid) {
  for (const absl::Status& lost :
       {absl::NotFoundError("no snapshot 3"), absl::ResourceExhaustedError("the pool overflowed")}) {
    const PullOutcome outcome = Pull([&](int, uint64_t, const Write&) { return lost; });
    EXPECT_TRUE(outcome.snapshot_lost);
    EXPECT_EQ(outcome.status, lost);
  }
  const PullOutcome other =
      Pull([&](int, uint64_t, const Write&) { return absl::PermissionDeniedError("another user's"); });
  EXPECT_FALSE(other.snapshot_lost);
}

TEST_F(PullStreamTest, TheServersLastWordCounts) {
  const absl::Status changed = absl::AbortedError("the bytes from 4000 on changed while they were sent");
  const PullOutcome outcome = Pull([&](int, uint64_t offset, const Write& write) {
    Send(offset, bytes_.size(), write);
    return changed;
  });
  EXPECT_EQ(outcome.status, changed);
  EXPECT_TRUE(outcome.snapshot_lost);
  EXPECT_THAT(offsets_, ElementsAre(0));
}

TEST_F(PullStreamTest, TheSinksErrorIsTheOutcome) {
  server_.pull = [&](const v1::PullRequest&, const Write& write) {
    Send(0, bytes_.size(), write);
    return absl::OkStatus();
  };
  JobClient client({server_.endpoint()}, {});
  const PullOutcome outcome = PullBytes(
      client, v1::PullRequest(), bytes_.size(),
      [&](uint64_t, absl::string_view) { return absl::ResourceExhaustedError("disk full"); }, Soon());
  EXPECT_EQ(outcome.status, absl::ResourceExhaustedError("disk full"));
  EXPECT_FALSE(outcome.snapshot_lost) << "another snapshot would not help";
}

TEST_F(PullStreamTest, NothingIsAskedForNothing) {
  JobClient client({server_.endpoint()}, {});
  EXPECT_TRUE(
      PullBytes(
          client, v1::PullRequest(), 0, [](uint64_t, absl::string_view) { return absl::OkStatus(); }, Soon())
          .status.ok());
}

}  // namespace
}  // namespace sherd::rpc
