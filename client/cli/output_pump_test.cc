#include "client/cli/output_pump.h"

#include <fcntl.h>
#include <unistd.h>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace sherd::cli {
namespace {

using ::testing::ElementsAre;

struct Pipe {
  Pipe() {
    int fds[2];
    EXPECT_EQ(::pipe2(fds, O_CLOEXEC), 0);
    read.Reset(fds[0]);
    write.Reset(fds[1]);
  }
  void Write(const std::string& text) {
    EXPECT_EQ(::write(write.get(), text.data(), text.size()), text.size());
  }
  runtime::UniqueFd read, write;
};

TEST(OutputPump, CarriesLinesAndTheRestAtTheEnd) {
  Pipe a, b;
  std::vector<std::string> from_a, from_b;
  runtime::Notification a_ended;
  {
    auto pump = OutputPump::Start();
    ASSERT_TRUE(pump.ok()) << pump.status();
    (*pump)->Add(
        std::move(a.read), [&](absl::string_view line) { from_a.emplace_back(line); },
        [&] { a_ended.Notify(); });
    (*pump)->Add(
        std::move(b.read), [&](absl::string_view line) { from_b.emplace_back(line); }, nullptr);
    a.Write("one\ntw");
    b.Write(std::string(100 << 10, 'x') + "\n");
    a.Write("o\n\nrest");
    a.write.Reset();
    a_ended.Wait();
    b.write.Reset();
    (*pump)->Finish(absl::InfiniteDuration());
  }
  EXPECT_THAT(from_a, ElementsAre("one\n", "two\n", "\n", "rest\n"));
  ASSERT_EQ(from_b.size(), 2) << "a line past the limit comes in pieces";
}

TEST(OutputPump, FinishDoesNotWaitForEverForWhoKeepsAPipeOpen) {
  Pipe a;
  std::vector<std::string> lines;
  auto pump = OutputPump::Start();
  ASSERT_TRUE(pump.ok()) << pump.status();
  (*pump)->Add(
      std::move(a.read), [&](absl::string_view line) { lines.emplace_back(line); }, nullptr);
  (*pump)->Finish(absl::Milliseconds(20));
  a.write.Reset();
}

}  // namespace
}  // namespace sherd::cli
