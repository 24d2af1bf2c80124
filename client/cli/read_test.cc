#include "client/cli/read.h"

#include <unistd.h>

#include <cstring>
#include <sstream>

#include "client/rpc/fake_server.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "runtime/clock.h"
#include "runtime/crc32c.h"
#include "runtime/formats/npy.h"
#include "runtime/test_root.h"

namespace sherd::cli {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Write = std::function<bool(const v1::ReadTensorResponse&)>;

class ReadTest : public ::testing::Test {
 protected:
  ReadTest() {
    server_.list_tensors = [](const v1::ListTensorsRequest& request, v1::ListTensorsResponse* out) {
      if (request.glob() == "w\\[0]") {
        auto* t = out->add_tensors();
        t->mutable_spec()->set_name("w[0]");
        t->mutable_spec()->add_shape(4);
        t->mutable_spec()->add_shape(3);
      }
      if (request.glob() == "count") {
        out->add_buffers()->set_name("count");
      }
      return absl::OkStatus();
    };
    server_.read_tensor = [this](const v1::ReadTensorRequest& request, const Write& write) {
      request_ = request;
      v1::ReadTensorResponse message;
      message.mutable_header()->set_step(5);
      message.mutable_header()->set_dtype(dtype_);
      message.mutable_header()->set_bytes(values_.size() * sizeof(float));
      write(message);
      const std::string bytes(reinterpret_cast<const char*>(values_.data()), values_.size() * sizeof(float));
      // In pieces that do not end with a number.
      for (size_t at = 0; at < bytes.size(); at += 7) {
        v1::Chunk* chunk = message.mutable_chunk();
        chunk->set_offset(at);
        chunk->set_data(bytes.substr(at, 7));
        chunk->set_crc32c(runtime::Crc32c(chunk->data()) ^ damage_);
        if (!write(message)) break;
      }
      return absl::OkStatus();
    };
  }
  absl::StatusOr<ReadResult> Read(const ReadOptions& options) {
    return ReadValues(client_, options, runtime::SteadyNow() + absl::Seconds(30));
  }

  runtime::TestRoot root_{"/tmp"};
  std::vector<float> values_ = {1, 2, 3, 4};
  std::string dtype_ = "F32";
  uint32_t damage_ = 0;
  v1::ReadTensorRequest request_;
  rpc::FakeServer server_{root_.path() + "/s0.sock"};  // its hooks use what stands above
  rpc::JobClient client_{{server_.endpoint()}, {}};
};

TEST_F(ReadTest, AsksForTheSliceAndPutsItTogether) {
  absl::StatusOr<ReadResult> result = Read({"w[0]", "exp_avg", "0:4:2,:2", ""});
  ASSERT_TRUE(result.ok()) << result.status();
  EXPECT_EQ(result->step, 5);
  EXPECT_THAT(result->shape, ElementsAre(2, 2));
  EXPECT_THAT(result->values, ElementsAre(1, 2, 3, 4));
  EXPECT_EQ(request_.tensor().name(), "w[0]");
  EXPECT_EQ(request_.tensor().plane(), "exp_avg");
  ASSERT_EQ(request_.slice_size(), 2);
  EXPECT_EQ(request_.slice(0).step(), 2);
  EXPECT_EQ(request_.slice(1).stop(), 2);
}

TEST_F(ReadTest, WritesAFileAndSaysSo) {
  Progress progress(false);
  std::ostringstream out;
  Context context{client_, runtime::SteadyNow() + absl::Seconds(30), false, out, progress};
  const std::string file = root_.path() + "/w.npy";
  ASSERT_TRUE(ReadToFile(context, {"w[0]", "", "0:2,1:", file}).ok());
  EXPECT_THAT(out.str(), HasSubstr("w.npy: 2x2 at step 5"));
  absl::StatusOr<formats::NpyArray> array = formats::ReadNpy(file);
  ASSERT_TRUE(array.ok()) << array.status();
  EXPECT_THAT(array->shape, ElementsAre(2, 2));
  EXPECT_THAT(array->values, ElementsAre(1, 2, 3, 4));
}

TEST_F(ReadTest, NamesWhatIsWrong) {
  EXPECT_EQ(Read({"none", "", "", ""}).status().code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(std::string(Read({"count", "", "", ""}).status().message()), HasSubstr("add --plane buffer"));
  EXPECT_EQ(Read({"w[0]", "", "9", ""}).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(Read({"w[0]", "", "x", ""}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Read({"w[0]", "", "", ""}).status().code(), absl::StatusCode::kDataLoss) << "4 of 12 values";
  dtype_ = "I64";
  EXPECT_EQ(Read({"count", "buffer", "", ""}).status().code(), absl::StatusCode::kUnimplemented);
}

TEST_F(ReadTest, DamageIsSeen) {
  damage_ = 1;
  const absl::Status status = Read({"w[0]", "", "0:2,:2", ""}).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("crc32c"));
}

}  // namespace
}  // namespace sherd::cli
