#include "runtime/link_admission.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sherd::runtime {
namespace {

using ::testing::HasSubstr;

const char kJob[] = "0a1b2c3d-0000-4000-8000-000000000001";
const char kOther[] = "0a1b2c3d-0000-4000-8000-000000000002";

LinkIdentity Peer(uint32_t host, uint64_t incarnation = 1, uint64_t epoch = 1, uint64_t layout = 0) {
  return {kJob, host, incarnation, epoch, layout};
}

TEST(LinkAdmission, TheOtherHostsOfTheJob) {
  LinkAdmission admission(Peer(0), 3);
  EXPECT_TRUE(admission.Admit(Peer(1)).ok());
  EXPECT_TRUE(admission.Admit(Peer(2)).ok());
  EXPECT_TRUE(absl::IsInvalidArgument(admission.Admit(Peer(0))));
  EXPECT_TRUE(absl::IsInvalidArgument(admission.Admit(Peer(3))));
  EXPECT_TRUE(absl::IsInvalidArgument(admission.Admit(Peer(0xffffffff))));
  LinkIdentity stranger = Peer(1);
  stranger.job_uuid = kOther;
  EXPECT_TRUE(absl::IsPermissionDenied(admission.Admit(stranger)));
  EXPECT_THAT(admission.Admit(stranger).message(), HasSubstr(kOther));
}

TEST(LinkAdmission, AnOldIncarnationStaysOut) {
  LinkAdmission admission(Peer(0), 3);
  EXPECT_TRUE(admission.Admit(Peer(1, 5)).ok());
  EXPECT_TRUE(admission.Admit(Peer(1, 5)).ok());  // it reconnects
  EXPECT_TRUE(absl::IsFailedPrecondition(admission.Admit(Peer(1, 4))));
  EXPECT_TRUE(admission.Admit(Peer(2, 1)).ok());  // each host counts its own
  EXPECT_TRUE(admission.Admit(Peer(1, 6)).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(admission.Admit(Peer(1, 5))));
}

TEST(LinkAdmission, ARefusedPeerLeavesNoTrace) {
  LinkAdmission admission(Peer(0), 2);
  admission.SetEpoch(4, 3);
  EXPECT_FALSE(admission.Admit(Peer(1, 9, 2)).ok());
  EXPECT_TRUE(admission.Admit(Peer(1, 8, 3)).ok());
}

TEST(LinkAdmission, StaleEpochs) {
  LinkAdmission admission(Peer(0), 2);
  admission.SetEpoch(8, 7);
  EXPECT_EQ(admission.self().epoch, 8);
  EXPECT_TRUE(admission.Admit(Peer(1, 1, 7)).ok());
  EXPECT_TRUE(admission.Admit(Peer(1, 1, 9)).ok());
  const absl::Status stale = admission.Admit(Peer(1, 1, 6));
  EXPECT_TRUE(absl::IsFailedPrecondition(stale));
  EXPECT_THAT(stale.message(), HasSubstr("epoch 6, older than 7"));
}

TEST(LinkAdmission, LayoutsThatBothKnowAreTheSame) {
  LinkAdmission admission(Peer(0), 2);
  EXPECT_TRUE(admission.Admit(Peer(1, 1, 1, 77)).ok());
  admission.SetLayoutHash(0x42);
  EXPECT_EQ(admission.self().layout_hash, 0x42);
  EXPECT_TRUE(admission.Admit(Peer(1, 1, 1, 0)).ok());
  EXPECT_TRUE(admission.Admit(Peer(1, 1, 1, 0x42)).ok());
  EXPECT_TRUE(absl::IsFailedPrecondition(admission.Admit(Peer(1, 1, 1, 0x43))));
}

}  // namespace
}  // namespace sherd::runtime
