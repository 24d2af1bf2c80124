#include "runtime/secret_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/test_root.h"

namespace sherd::runtime {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

class SecretFile : public ::testing::Test {
 protected:
  std::string Write(const std::string& bytes, mode_t mode = 0600) {
    std::ofstream(path_, std::ios::binary) << bytes;
    EXPECT_EQ(::chmod(path_.c_str(), mode), 0);
    return path_;
  }
  absl::Status Error() { return ReadSecretFile(path_).status(); }

  TestRoot root_;
  const std::string path_ = root_.path() + "/secret";
};

TEST_F(SecretFile, WhatIsCreatedIsRead) {
  const absl::StatusOr<Secret> made = CreateSecretFile(path_);
  ASSERT_TRUE(made.ok()) << made.status();
  EXPECT_EQ(made->bytes().size(), 64);
  const absl::StatusOr<Secret> read = ReadSecretFile(path_);
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->bytes(), made->bytes());
  struct stat file;
  ASSERT_EQ(::stat(path_.c_str(), &file), 0);
  EXPECT_EQ(file.st_mode & 07777, 0600);
  EXPECT_EQ(file.st_nlink, 1);
}

TEST_F(SecretFile, IsNeverReplaced) {
  const Secret first = CreateSecretFile(path_).value();
  const absl::StatusOr<Secret> second = CreateSecretFile(path_);
  EXPECT_TRUE(absl::IsAlreadyExists(second.status())) << second.status();
  EXPECT_EQ(ReadSecretFile(path_)->bytes(), first.bytes());
}

TEST_F(SecretFile, TwoDiffer) {
  EXPECT_NE(CreateSecretFile(path_)->bytes(), CreateSecretFile(path_ + "2")->bytes());
}

TEST_F(SecretFile, SpaceAroundItDoesNotBelongToIt) {
  EXPECT_EQ(ReadSecretFile(Write("  0123456789abcdef \n"))->bytes(), "0123456789abcdef");
}

TEST_F(SecretFile, Sizes) {
  EXPECT_TRUE(ReadSecretFile(Write(std::string(kMinSecretBytes, 'x'))).ok());
  EXPECT_TRUE(ReadSecretFile(Write(std::string(kMaxSecretBytes, 'x') + "\n")).ok());
  for (const size_t bytes :
       {size_t{0}, kMinSecretBytes - 1, kMaxSecretBytes + 1, kMaxSecretBytes + 2, size_t{1} << 20}) {
    Write(std::string(bytes, 'x'));
    EXPECT_TRUE(absl::IsInvalidArgument(Error())) << bytes;
    EXPECT_THAT(Error().message(), HasSubstr(path_));
    EXPECT_THAT(Error().message(), HasSubstr("16 to 4096"));
    EXPECT_THAT(Error().message(), Not(HasSubstr("xx")));
  }
}

TEST_F(SecretFile, OthersMayNotOpenIt) {
  for (const mode_t mode : {0640, 0604, 0620, 0666}) {
    Write("0123456789abcdef", mode);
    EXPECT_TRUE(absl::IsPermissionDenied(Error())) << Error();
    EXPECT_THAT(Error().message(), HasSubstr("chmod 600"));
    EXPECT_THAT(Error().message(), HasSubstr(path_));
  }
}

TEST_F(SecretFile, AnotherUsersIsRefused) {
  if (::geteuid() != 0) GTEST_SKIP() << "only root can give a file away";
  Write("0123456789abcdef");
  ASSERT_EQ(::chown(path_.c_str(), 12345, 12345), 0);
  EXPECT_TRUE(absl::IsPermissionDenied(Error()));
  EXPECT_THAT(Error().message(), HasSubstr("12345"));
}

TEST_F(SecretFile, NotAFile) {
  EXPECT_TRUE(absl::IsNotFound(Error())) << Error();
  ASSERT_EQ(::mkdir(path_.c_str(), 0700), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(Error())) << Error();
  ASSERT_EQ(::rmdir(path_.c_str()), 0);
  ASSERT_EQ(::mkfifo(path_.c_str(), 0600), 0);
  EXPECT_TRUE(absl::IsFailedPrecondition(Error())) << Error();
}

TEST_F(SecretFile, CreationSaysWhereItFailed) {
  const absl::StatusOr<Secret> none = CreateSecretFile(root_.path() + "/none/secret");
  EXPECT_TRUE(absl::IsNotFound(none.status())) << none.status();
  EXPECT_THAT(none.status().message(), HasSubstr("/none/secret"));
}

TEST_F(SecretFile, TokenOfASecret) {
  const Secret a = Secret::Of("0123456789abcdef").value(), b = Secret::Of("0123456789abcdeg").value();
  EXPECT_EQ(RpcToken(a), RpcToken(a));
  EXPECT_NE(RpcToken(a), RpcToken(b));
  EXPECT_EQ(RpcToken(a).size(), 64);
  EXPECT_THAT(RpcToken(a), Not(HasSubstr("0123456789abcdef")));
}

}  // namespace
}  // namespace sherd::runtime
