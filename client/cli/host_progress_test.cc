#include "client/cli/host_progress.h"

#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sherd::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using Host = ClusterWatcher::Seen::Host;

Host Come(int ranks, bool finished = false, bool left = false) {
  Host host;
  host.come = true;
  host.ranks = ranks;
  host.trainers_finished = finished;
  host.left = left;
  return host;
}

TEST(HostProgress, TellsOnceWhatItWaitsForAndOnceThatAllHaveCome) {
  HostProgress progress(0);
  EXPECT_EQ(progress.See({}, "").say, "");
  EXPECT_EQ(progress.See({Come(2), Host()}, "host 1").say, "host 1");
  HostProgress::News news = progress.See({Come(2), Host()}, "host 1");
  EXPECT_EQ(news.say, "");
  EXPECT_THAT(news.ranks, IsEmpty());
  EXPECT_FALSE(progress.all_came());
  EXPECT_THAT(progress.See({Come(2), Come(1)}, "").ranks, ElementsAre(2, 1));
  EXPECT_TRUE(progress.all_came());
  news = progress.See({Come(2), Come(1)}, "host 1");
  EXPECT_EQ(news.say, "");
  EXPECT_THAT(news.ranks, IsEmpty());
  EXPECT_FALSE(news.may_end_servers);
}

TEST(HostProgress, ServersOfTheFirstHostEndLast) {
  HostProgress first(0), second(1);
  for (HostProgress* p : {&first, &second}) p->See({Come(1), Come(1)}, "");
  const std::vector<Host> training = {Come(1, true), Come(1)};
  const std::vector<Host> trained = {Come(1, true), Come(1, true)};
  const std::vector<Host> signed_off = {Come(1, true), Come(1, true, true)};
  EXPECT_FALSE(first.See(training, "").may_end_servers);
  EXPECT_FALSE(second.See(training, "").may_end_servers);
  EXPECT_FALSE(first.See(trained, "").may_end_servers);
  EXPECT_TRUE(second.See(trained, "").may_end_servers);
  EXPECT_TRUE(first.See(signed_off, "").may_end_servers);
  EXPECT_THAT(first.See(signed_off, "").lost, IsEmpty());
}

v1::Member* AddMember(v1::Cluster* cluster, v1::Member::Kind kind, v1::Member::State state) {
  v1::Member* m = cluster->add_members();
  m->set_host("b");
  m->set_kind(kind);
  m->set_state(state);
  return m;
}

TEST(HostProgress, AHostHasLeftAlsoWhenAServerThatSignedOffIsSeenToHaveEnded) {
  v1::Cluster cluster;
  v1::Host* host = cluster.add_hosts();
  host->set_name("b");
  host->set_ranks(1);
  v1::Member* trainer = AddMember(&cluster, v1::Member::KIND_TRAINER, v1::Member::STATE_FINISHED);
  AddMember(&cluster, v1::Member::KIND_SERVER, v1::Member::STATE_LOST);
  v1::Member* server = AddMember(&cluster, v1::Member::KIND_SERVER, v1::Member::STATE_ACTIVE);
  EXPECT_FALSE(ClusterWatcher::HostsOf(cluster)[0].left);
  server->set_state(v1::Member::STATE_LEAVING);
  EXPECT_TRUE(ClusterWatcher::HostsOf(cluster)[0].left);
  trainer->set_state(v1::Member::STATE_ACTIVE);
  EXPECT_FALSE(ClusterWatcher::HostsOf(cluster)[0].left) << "the lost one is going to be back";
}

TEST(HostProgress, AHostThatLeavesInTheMiddleIsLost) {
  HostProgress progress(0);
  progress.See({Come(1), Come(1), Come(1)}, "");
  EXPECT_THAT(progress.See({Come(1), Come(1), Come(1, false, true)}, "").lost,
              ElementsAre("host 2 has left; the job ends"));
}

}  // namespace
}  // namespace sherd::cli
