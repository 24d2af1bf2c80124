#include "runtime/access_files.h"

#include <sys/stat.h>

#include <fstream>
#include <map>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/secret_file.h"
#include "runtime/test_root.h"

namespace sherd::runtime {
namespace {

using ::testing::HasSubstr;

class AccessFilesTest : public ::testing::Test {
 protected:
  std::string Write(const std::string& name, const std::string& text) {
    const std::string path = root_.path() + "/" + name;
    std::ofstream(path) << text;
    ::chmod(path.c_str(), 0600);
    return path;
  }
  static absl::Status Error(const AccessFiles& files, AccessSide side = AccessSide::kServer) {
    return ReadAccess(files, side).status();
  }
  TestRoot root_;
};

TEST_F(AccessFilesTest, NothingNamedIsNothing) {
  const absl::StatusOr<Access> none = ReadAccess({}, AccessSide::kServer);
  ASSERT_TRUE(none.ok());
  EXPECT_EQ(none->token, "");
  EXPECT_TRUE(none->tls.empty());
}

TEST_F(AccessFilesTest, TokensAreReadOrDerived) {
  AccessFiles files;
  files.secret = Write("secret", "0123456789abcdef\n");
  EXPECT_EQ(ReadAccess(files, AccessSide::kServer)->token, RpcToken(*ReadSecretFile(files.secret)));
  files.token = Write("token", "fedcba9876543210\n");
  EXPECT_EQ(ReadAccess(files, AccessSide::kServer)->Bearer(), "Bearer fedcba9876543210");
}

TEST_F(AccessFilesTest, BadTokens) {
  AccessFiles files;
  files.token = root_.path() + "/none";
  EXPECT_TRUE(absl::IsNotFound(Error(files)));
  EXPECT_THAT(Error(files).message(), HasSubstr("--token-file"));
  files.token = Write("token", "0123456789 abcdef");
  EXPECT_TRUE(absl::IsInvalidArgument(Error(files)));
  files.token = Write("token", "short");
  EXPECT_THAT(Error(files).message(), HasSubstr("16 to 4096"));
  files.token = Write("token", "0123456789abcdef");
  ::chmod(files.token.c_str(), 0644);
  EXPECT_TRUE(absl::IsPermissionDenied(Error(files)));
}

TEST_F(AccessFilesTest, CertificatesGoTogether) {
  const std::string pem = Write("pem", "-----BEGIN CERTIFICATE-----\n");
  AccessFiles files;
  files.ca = pem;
  EXPECT_TRUE(ReadAccess(files, AccessSide::kCaller).ok());
  EXPECT_FALSE(ReadAccess(files, AccessSide::kCaller)->tls.empty());
  EXPECT_THAT(Error(files).message(), HasSubstr("--tls-ca needs both"));
  files.certificate = pem;
  EXPECT_THAT(Error(files, AccessSide::kCaller).message(), HasSubstr("go together"));
  files.key = pem;
  EXPECT_TRUE(ReadAccess(files, AccessSide::kServer).ok());
  files.ca = Write("text", "hello");
  EXPECT_THAT(Error(files).message(), HasSubstr("--tls-ca: " + files.ca + " is not a PEM file"));
  files.ca = root_.path() + "/none";
  EXPECT_TRUE(absl::IsNotFound(Error(files)));
}

// A pipe without a writer would be waited for.
TEST_F(AccessFilesTest, WhatIsNoFileIsRefusedAtOnce) {
  const std::string pipe = root_.path() + "/pipe";
  ASSERT_EQ(::mkfifo(pipe.c_str(), 0600), 0);
  for (const std::string& path : {pipe, root_.path(), std::string("/dev/zero")}) {
    AccessFiles token, ca;
    token.token = ca.ca = path;
    EXPECT_THAT(Error(token).message(),
                HasSubstr("--token-file: the secret " + path + " is not a regular file"));
    EXPECT_THAT(Error(ca, AccessSide::kCaller).message(),
                HasSubstr("--tls-ca: " + path + ": not a regular file"));
  }
}

TEST_F(AccessFilesTest, FlagsGoBeforeTheEnvironment) {
  std::map<std::string, std::string> environment = {
      {"SHERD_TOKEN_FILE", "t"}, {"SHERD_SECRET_FILE", "s"}, {"SHERD_TLS_CA", "a"}, {"SHERD_TLS_CERT", "c"}};
  const auto getenv = [&](const char* name) {
    const auto at = environment.find(name);
    return at == environment.end() ? nullptr : at->second.c_str();
  };
  AccessFiles files;
  files.FillFrom(getenv);
  EXPECT_EQ(files.token, "t");
  EXPECT_EQ(files.secret, "s");
  EXPECT_EQ(files.ca, "a");
  EXPECT_EQ(files.certificate, "c");
  EXPECT_EQ(files.key, "");
  AccessFiles flags;
  flags.secret = "mine";
  flags.ca = "my ca";
  flags.FillFrom(getenv);
  EXPECT_EQ(flags.token, "");
  EXPECT_EQ(flags.secret, "mine");
  EXPECT_EQ(flags.certificate, "");
}

}  // namespace
}  // namespace sherd::runtime
