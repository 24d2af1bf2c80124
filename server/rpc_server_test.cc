#include "server/rpc_server.h"

#include <string>

#include "absl/strings/match.h"
#include "gtest/gtest.h"

namespace sherd::server {
namespace {

absl::Status Start(const std::string& listen, bool allow_remote, bool asks_token,
                   const std::string& ca = "") {
  RpcOptions options;
  options.listen = {listen};
  options.allow_remote = allow_remote;
  options.asks_token = asks_token;
  options.tls.ca = ca;
  return RpcServer::Start(options, {}).status();
}

TEST(RpcServer, APortThatOtherHostsReachAsksWhoCalls) {
  for (const char* address : {"0.0.0.0:0", "[::]:0"}) {
    const absl::Status open = Start(address, /*allow_remote=*/true, /*asks_token=*/false);
    if (absl::StrContains(open.message(), "Address family")) continue;  // a host without IPv6
    EXPECT_TRUE(absl::IsInvalidArgument(open)) << open;
    EXPECT_TRUE(absl::StrContains(open.message(), "--token-file")) << open;
    EXPECT_TRUE(absl::StrContains(open.message(), address)) << open;
    EXPECT_TRUE(Start(address, /*allow_remote=*/true, /*asks_token=*/true).ok());
    // Certificates of callers do, too; these here are none, which is another error.
    EXPECT_FALSE(absl::StrContains(Start(address, true, false, "no PEM").message(), "--token-file"));
  }
  EXPECT_TRUE(Start("127.0.0.1:0", /*allow_remote=*/true, /*asks_token=*/false).ok());
  EXPECT_TRUE(Start("127.0.0.1:0", /*allow_remote=*/false, /*asks_token=*/false).ok());
  const absl::Status remote = Start("0.0.0.0:0", /*allow_remote=*/false, /*asks_token=*/true);
  EXPECT_TRUE(absl::StrContains(remote.message(), "--allow-remote")) << remote;
}

}  // namespace
}  // namespace sherd::server
