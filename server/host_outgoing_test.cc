// What an agent says of an owner that goes on while it speaks.
#include "server/host_outgoing.h"

#include <algorithm>
#include <memory>
#include <thread>

#include "core/host_map.h"
#include "gtest/gtest.h"
#include "runtime/test_links.h"
#include "runtime/test_root.h"
#include "server/host_incoming.h"

namespace sherd::server {
namespace {

using runtime::FrameHeader;
using runtime::JobDir;
using runtime::JobMemory;

class HostOutgoingTest : public runtime::TestLinks {
 protected:
  // A host of two, with one server each.
  struct Host {
    explicit Host(int index) : dir(*JobDir::Create(root.path(), "t")) {
      JobSpec spec;
      spec.job = "t";
      spec.layout = *Layout::Create({{{"w", {2048, 2048}}}});
      spec.groups = {""};
      spec.world_size = 2;
      spec.stage = 2;
      spec.reduction.groups = {1, 1};
      auto made = JobMemory::Create(&dir, spec, {index, 2});
      EXPECT_TRUE(made.ok()) << made.status();
      memory = *std::move(made);
      EXPECT_TRUE(memory->BeginFirstAssignment(1, *HostMap::Create({0, 1})).ok());
      memory->control().initialized = 1;
    }
    runtime::TestRoot root;
    JobDir dir;
    std::unique_ptr<JobMemory> memory;
  };
  Host first_{0}, second_{1};
};

// A mark that is raised while parameters are on their way is not in the record behind them: it must be said
// with the next one, or a trainer of the other host waits for it until the link breaks.
TEST_F(HostOutgoingTest, ConsumedWhileParametersAreSentIsSaidAfterwards) {
  runtime::LinkOptions small;  // the parameters are far larger
  small.socket_buffer = 64 << 10;
  ASSERT_NO_FATAL_FAILURE(Connect(small, small));
  runtime::OwnerRecords& owner = **first_.memory->owner(Slot(0));
  const uint64_t consumed = Mark::Of({Step(1), 0}, 1).word();
  HostBytes bytes;
  HostOutgoing outgoing(first_.memory.get(), /*peer=*/1, &bytes);
  outgoing.Begin(/*peer_initialized=*/true);
  std::thread sender([&] {
    absl::StatusOr<bool> more = true;
    while (more.ok() && *more) more = outgoing.Pass(*a_);
    EXPECT_TRUE(more.ok()) << more.status();
    FrameHeader end;
    end.type = static_cast<uint16_t>(HostFrame::kHello);
    EXPECT_TRUE(a_->Send(end).ok());
  });
  HostIncoming incoming(second_.memory.get(), /*peer=*/0);
  bool raised = false;
  for (;;) {
    FrameHeader header;
    const absl::Status received = b_->Receive(&header);
    ASSERT_TRUE(received.ok()) << received;
    if (header.type == static_cast<uint16_t>(HostFrame::kHello)) break;
    if (header.type == static_cast<uint16_t>(HostFrame::kParameters) && !raised) {
      owner.Consumed(0).store(consumed);  // most of the payload has not left yet
      raised = true;
    }
    const absl::Status taken = incoming.Take(*b_, header);
    ASSERT_TRUE(taken.ok()) << taken;
  }
  sender.join();
  ASSERT_TRUE(raised);
  EXPECT_EQ((*second_.memory->owner(Slot(0)))->Consumed(0).load(), consumed);
}

// Trainers of a 16-bit job read its fp32 tensors in the masters.
TEST_F(HostOutgoingTest, UpdatedParametersGoFromThePlaneThatTheyAreReadIn) {
  const auto make = [](const JobDir& dir, int index) {
    JobSpec spec;
    spec.job = "t";
    spec.compute = spec.staging = DType::kBFloat16;
    spec.layout = *Layout::Create({{{"half", {1024}, DType::kBFloat16}, {"full", {1024}}}});
    spec.groups = {""};
    spec.world_size = 2;
    spec.reduction = {{1, 1}, DType::kBFloat16};
    auto made = JobMemory::Create(&dir, spec, {index, 2});
    EXPECT_TRUE(made.ok()) << made.status();
    // All of the second half, which is "full", is host 1's.
    EXPECT_TRUE((*made)->BeginFirstAssignment(1, *HostMap::Create({0, 1})).ok());
    (*made)->control().initialized = 1;
    return *std::move(made);
  };
  runtime::TestRoot roots[2];
  const JobDir dirs[] = {*JobDir::Create(roots[0].path(), "t"), *JobDir::Create(roots[1].path(), "t")};
  const std::unique_ptr<JobMemory> first = make(dirs[0], 0), second = make(dirs[1], 1);
  ASSERT_NO_FATAL_FAILURE(Connect());
  std::fill_n(second->plane(0) + 1024, 1024, 3.0f);
  (*second->owner(Slot(1)))->Changed(0) = 1;
  HostBytes bytes;
  HostOutgoing outgoing(second.get(), /*peer=*/0, &bytes);
  outgoing.Begin(/*peer_initialized=*/false);
  const absl::StatusOr<bool> sent = outgoing.Pass(*a_);
  ASSERT_TRUE(sent.ok()) << sent.status();
  HostIncoming incoming(first.get(), /*peer=*/1);
  FrameHeader header;
  do {
    ASSERT_TRUE(b_->Receive(&header).ok());
    ASSERT_TRUE(incoming.Take(*b_, header).ok());
  } while (header.type != static_cast<uint16_t>(HostFrame::kOwner));
  EXPECT_EQ(std::count(first->plane(0) + 1024, first->plane(0) + 2048, 3.0f), 1024);
  EXPECT_EQ(bytes.parameters, 1024u * 4);
}

}  // namespace
}  // namespace sherd::server
