// Replays the transcripts in testdata/membership_*.txt. In them, a line at the margin is done and the
// indented lines after it are what must come of it:
//
//   expect servers=2 world=0              begins a job (also in the middle of a file)
//   server-joined s0 process=10.1 request=a    an event, as Show(Event) writes it; address and host may be
//   left out
//     = server s0 joined                  Outcome::reason
//     > answer a OK                       the effects, as Show(MembershipEffect) writes them, all of them in
//     order ? waiting for ...                   Describe(), where the transcript cares
//   +5                                    5 seconds pass
//   restore                               a new coordinator starts from the last committed document
//   # comment
#include <fstream>
#include <iostream>
#include <map>
#include <string>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "core/membership.h"
#include "gtest/gtest.h"

namespace sherd {
namespace {

// The words of a line: verb, operand, key=value...
struct Words {
  explicit Words(const std::string& line) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ', absl::SkipEmpty());
    verb = words[0];
    for (size_t i = 1; i < words.size(); ++i) {
      const std::pair<std::string, std::string> pair = absl::StrSplit(words[i], absl::MaxSplits('=', 1));
      if (words[i].find('=') == std::string::npos) {
        operand = words[i];
      } else {
        values[pair.first] = pair.second;
      }
    }
  }
  std::string Text(const std::string& key, const std::string& otherwise = "") const {
    const auto it = values.find(key);
    return it == values.end() ? otherwise : it->second;
  }
  int64_t Number(const std::string& key) const { return ToNumber(Text(key, "0")); }
  ProcessIdentity Process() const {
    const std::pair<std::string, std::string> pair = absl::StrSplit(Text("process"), '.');
    return {ToNumber(pair.first), static_cast<uint64_t>(ToNumber(pair.second))};
  }
  static int64_t ToNumber(const std::string& text) {
    int64_t value = 0;
    EXPECT_TRUE(absl::SimpleAtoi(text, &value)) << text;
    return value;
  }
  Rank AsRank() const { return Rank(static_cast<int32_t>(ToNumber(operand))); }

  std::string verb;
  std::string operand;
  std::map<std::string, std::string> values;
};

Event Parse(const std::string& line) {
  const Words w(line);
  const std::string request = w.Text("request");
  const std::string host = w.Text("host", "h");
  if (w.verb == "host-joined") {
    return HostJoined{{w.operand, w.Text("address", "x:1"), static_cast<int32_t>(w.Number("ranks")),
                       static_cast<int32_t>(w.Number("servers"))},
                      static_cast<int32_t>(Words::ToNumber(w.Text("index", "-1"))),
                      request};
  }
  if (w.verb == "server-joined") {
    return ServerJoined{w.operand, w.Text("address", "unix:x"), host, w.Process(), request};
  }
  if (w.verb == "server-left") return ServerLeft{w.operand, w.Process(), request};
  if (w.verb == "server-dead") return ServerDead{w.operand, w.Process()};
  if (w.verb == "trainer-ready") return TrainerReady{w.AsRank(), w.Process()};
  if (w.verb == "trainer-attached") {
    uint64_t layout = 0;
    EXPECT_TRUE(absl::SimpleHexAtoi(w.Text("layout", "7"), &layout));
    return TrainerAttached{w.AsRank(), host,   w.Process(), static_cast<int32_t>(w.Number("world")),
                           layout,     request};
  }
  if (w.verb == "trainer-detached") {
    return TrainerDetached{w.AsRank(), w.Process(), w.Number("finished") != 0, request};
  }
  if (w.verb == "trainer-dead") return TrainerDead{w.AsRank(), w.Process()};
  if (w.verb == "resize")
    return ResizeRequested{w.AsRank().value(), request, static_cast<int32_t>(w.Number("trainers")),
                           Step(static_cast<uint64_t>(w.Number("from"))), w.Number("give_up") != 0};
  if (w.verb == "drain") return DrainRequested{w.operand, request};
  if (w.verb == "ranges-applied") return RangesApplied{Epoch(w.AsRank().value())};
  if (w.verb == "recovered") return Recovered{};
  ADD_FAILURE() << "no such event: " << line;
  return Recovered{};
}

class Replay {
 public:
  // Does what a line at the margin says; returns what came of it, as the transcript writes it.
  std::vector<std::string> Do(const std::string& line) {
    const Words w(line);
    if (w.verb == "expect") {
      Start(MembershipState::Create({"job", static_cast<int32_t>(w.Number("servers")),
                                     static_cast<int32_t>(w.Number("world")),
                                     static_cast<int32_t>(Words::ToNumber(w.Text("hosts", "1")))}));
    } else if (w.verb == "restore") {
      Start(MembershipState::Restore(committed_));
    } else if (w.verb[0] == '+') {
      now_ += absl::Seconds(Words::ToNumber(w.verb.substr(1)));
    } else {
      return Apply(line);
    }
    return {};
  }
  std::string Describe() const { return states_.back().Describe(now_); }

 private:
  void Start(absl::StatusOr<MembershipState> state) {
    ASSERT_TRUE(state.ok()) << state.status();
    states_.assign(1, *std::move(state));
  }

  std::vector<std::string> Apply(const std::string& line) {
    const Event event = Parse(line);
    EXPECT_EQ(Show(Parse(Show(event))), Show(event)) << "text and event disagree";
    const Outcome outcome = states_.back().Apply(event, now_);
    std::vector<std::string> result = {absl::StrCat("= ", outcome.reason)};
    for (const MembershipEffect& effect : outcome.effects) {
      result.push_back(absl::StrCat("> ", Show(effect)));
      if (const CommitEpoch* commit = absl::get_if<CommitEpoch>(&effect)) {
        committed_ = commit->doc;
        EXPECT_TRUE(CheckEpochDoc(committed_).ok()) << CheckEpochDoc(committed_);
      }
    }
    return result;
  }

  std::vector<MembershipState> states_;  // one
  absl::Time now_ = absl::UnixEpoch();
  EpochDoc committed_;
};

class TranscriptTest : public ::testing::TestWithParam<const char*> {};

TEST_P(TranscriptTest, Replays) {
  std::ifstream file(absl::StrCat("core/testdata/membership_", GetParam(), ".txt"));
  ASSERT_TRUE(file.is_open());
  Replay replay;
  std::vector<std::string> expected;
  std::vector<std::string> actual;
  for (std::string line; std::getline(file, line);) {
    if (line.empty() || line[0] == '#') {
      expected.push_back(line);
      actual.push_back(line);
    } else if (line[0] != ' ') {
      expected.push_back(line);
      actual.push_back(line);
      for (const std::string& came : replay.Do(line)) actual.push_back(absl::StrCat("  ", came));
    } else {
      expected.push_back(line);
      if (absl::StripAsciiWhitespace(line)[0] == '?')
        actual.push_back(absl::StrCat("  ? ", replay.Describe()));
    }
    if (HasFatalFailure()) return;
  }
  // On failure the whole actual transcript is printed: read it, and if it is right, it is the new file.
  EXPECT_TRUE(expected == actual) << absl::StrJoin(actual, "\n");
  EXPECT_GT(actual.size(), 10u);
}

INSTANTIATE_TEST_SUITE_P(Membership, TranscriptTest,
                         ::testing::Values("form", "hosts", "servers", "trainers", "resize", "drain", "world",
                                           "restore"),
                         [](const auto& info) { return std::string(info.param); });

}  // namespace
}  // namespace sherd
