#include "proto/status.h"

#include <string>

#include "gtest/gtest.h"

namespace sherd {
namespace {

TEST(Status, EveryCodeThereAndBack) {
  EXPECT_TRUE(ToGrpc(absl::OkStatus()).ok());
  EXPECT_TRUE(FromGrpc(grpc::Status::OK).ok());
  for (int code = 1; code <= 16; ++code) {
    const absl::Status s(static_cast<absl::StatusCode>(code), "wörtlich");
    EXPECT_EQ(FromGrpc(ToGrpc(s)), s);
  }
  EXPECT_EQ(FromGrpc(grpc::Status(static_cast<grpc::StatusCode>(99), "x")).code(),
            absl::StatusCode::kUnknown);
}

TEST(Status, MessagesAreBoundedAndUtf8) {
  std::string text(3999, 'a');
  text += "\xc3\xa9 and more";  // the cut falls into the letter
  EXPECT_EQ(ToGrpc(absl::NotFoundError(text)).error_message(), std::string(3999, 'a') + "...");
  EXPECT_EQ(ToGrpc(absl::NotFoundError("a\xff z")).error_message(), "a? z");
}

}  // namespace
}  // namespace sherd
