#include "runtime/net_address.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sherd::runtime {
namespace {

using ::testing::HasSubstr;

TEST(HostPort, Parses) {
  const struct {
    const char *text, *host;
    int port;
  } kGood[] = {
      {"10.0.0.1:4711", "10.0.0.1", 4711},
      {"[fd00::2]:80", "fd00::2", 80},
      {"node7.cluster:0", "node7.cluster", 0},
      {"a:65535", "a", 65535},
  };
  for (const auto& good : kGood) {
    const absl::StatusOr<HostPort> at = ParseHostPort(good.text);
    ASSERT_TRUE(at.ok()) << at.status();
    EXPECT_EQ(at->host, good.host);
    EXPECT_EQ(at->port, good.port);
    EXPECT_EQ(at->ToString(), good.text);
  }
}

TEST(HostPort, RefusesAndQuotes) {
  for (const std::string text : {"", ":", "host", "host:", ":80", "host:-1", "host:+1", "host:65536",
                                 "host:8o", "host:99999999999999", "fd00::2:80", "[fd00::2]", "[]:80",
                                 "[fd00::2]80:", "ho st:80", "ho\nst:80", "unix:/run/a:80", "host: 80"}) {
    const absl::StatusOr<HostPort> at = ParseHostPort(text);
    EXPECT_TRUE(absl::IsInvalidArgument(at.status())) << text;
    EXPECT_THAT(at.status().message(), HasSubstr("\"" + text + "\""));
  }
  EXPECT_TRUE(absl::IsInvalidArgument(ParseHostPort(std::string(100000, 'a') + ":1").status()));
}

TEST(SocketAddress, Resolves) {
  const SocketAddress v4 = ResolveOne({"127.0.0.1", 4711}).value();
  EXPECT_EQ(v4.ToString(), "127.0.0.1:4711");
  EXPECT_EQ(v4.port(), 4711);
  EXPECT_TRUE(v4.IsLoopback());
  SocketAddress v6 = ResolveOne({"fd00::2", 1}).value();
  v6.set_port(2);
  EXPECT_EQ(v6.ToString(), "[fd00::2]:2");
  EXPECT_EQ(v6.host(), "fd00::2");
  EXPECT_FALSE(v6.IsLoopback());
  EXPECT_TRUE(ResolveOne({"::1", 1})->IsLoopback());
  EXPECT_TRUE(ResolveOne({"localhost", 1})->IsLoopback());
  EXPECT_TRUE(ResolveOne({"0.0.0.0", 1})->IsAny());
  EXPECT_TRUE(ResolveOne({"::", 1})->IsAny());
  EXPECT_FALSE(ResolveOne({"10.0.0.1", 1})->IsAny());
  const absl::StatusOr<SocketAddress> none = ResolveOne({"no-such-host.invalid", 7});
  EXPECT_TRUE(absl::IsInvalidArgument(none.status()));
  EXPECT_THAT(none.status().message(), HasSubstr("no-such-host.invalid:7"));
}

TEST(SocketAddress, OfAnInterface) {
  EXPECT_EQ(InterfaceAddress("lo")->host(), "127.0.0.1");
  const absl::StatusOr<SocketAddress> none = InterfaceAddress("nic77");
  EXPECT_TRUE(absl::IsNotFound(none.status()));
  EXPECT_THAT(none.status().message(), HasSubstr("nic77"));
  EXPECT_THAT(none.status().message(), HasSubstr("lo"));
}

TEST(SocketAddress, ByRoute) {
  const SocketAddress mine = AddressTowards(ResolveOne({"127.0.0.1", 4711}).value()).value();
  EXPECT_EQ(mine.ToString(), "127.0.0.1:0");
}

TEST(ChooseAddress, BestFirst) {
  const SocketAddress loopback = ResolveOne({"127.0.0.1", 4711}).value();
  EXPECT_EQ(ChooseAddress({"10.1.2.3", "lo", loopback})->ToString(), "10.1.2.3:0");
  EXPECT_EQ(ChooseAddress({"10.1.2.3:99", "lo", loopback})->ToString(), "10.1.2.3:99");
  EXPECT_EQ(ChooseAddress({"fd00::7", "", {}})->ToString(), "[fd00::7]:0");
  EXPECT_EQ(ChooseAddress({"[fd00::7]:5", "", {}})->ToString(), "[fd00::7]:5");
  EXPECT_EQ(ChooseAddress({"", "lo", {}})->host(), "127.0.0.1");
  EXPECT_EQ(ChooseAddress({"", "", loopback})->host(), "127.0.0.1");
  EXPECT_TRUE(absl::IsFailedPrecondition(ChooseAddress({}).status()));
  EXPECT_TRUE(absl::IsNotFound(ChooseAddress({"", "nic77", loopback}).status()));
  for (const char* bad : {"0.0.0.0", "::", "0.0.0.0:5", "a b", "[]", "10.0.0.1:x"}) {
    const absl::Status s = ChooseAddress({bad, "lo", loopback}).status();
    EXPECT_TRUE(absl::IsInvalidArgument(s)) << bad;
    EXPECT_THAT(s.message(), HasSubstr(bad));
  }
}

TEST(CheckMayListen, PublicOnlyWhenTold) {
  EXPECT_TRUE(CheckMayListen(ResolveOne({"127.0.0.1", 1}).value(), false).ok());
  EXPECT_TRUE(CheckMayListen(ResolveOne({"::1", 1}).value(), false).ok());
  for (const char* open : {"0.0.0.0", "::", "10.0.0.1"}) {
    const SocketAddress address = ResolveOne({open, 1}).value();
    EXPECT_TRUE(CheckMayListen(address, true).ok());
    EXPECT_THAT(CheckMayListen(address, false).message(), HasSubstr("--allow-remote"));
  }
}

}  // namespace
}  // namespace sherd::runtime
