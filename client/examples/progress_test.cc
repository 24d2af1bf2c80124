#include "client/examples/progress.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>

#include "client/examples/step_log.h"

namespace sherd::examples {
namespace {

StepRecord Record(uint64_t step) {
  StepRecord record;
  record.step = step;
  record.loss = 1.0 / step;
  record.grad_norm = 0.5;
  record.tokens = 512 * step;
  record.epoch = 2;
  record.world_size = 3;
  record.lr = 0.002;
  record.step_ms = 100;
  return record;
}

std::string ReadFile(const std::string& path) {
  std::ifstream in(path);
  std::stringstream out;
  out << in.rdbuf();
  return out.str();
}

std::string NewPath(const std::string& name) {
  const std::string path = testing::TempDir() + "/" + name;
  remove(path.c_str());
  return path;
}

void WriteSteps(const std::string& path, uint64_t first, uint64_t last) {
  absl::StatusOr<StepLog> log = StepLog::Open(path, first);
  ASSERT_TRUE(log.ok()) << log.status();
  for (uint64_t step = first; step <= last; ++step) ASSERT_TRUE(log->Write(Record(step)).ok());
}

TEST(StepLog, OneObjectAStep) {
  const std::string path = NewPath("one.json");
  WriteSteps(path, 1, 2);
  const std::string text = ReadFile(path);
  EXPECT_EQ(text.substr(0, text.find('\n')),
            R"({"step":1,"loss":1.0,"grad_norm":0.5,"tokens":512,"epoch":2,"world_size":3,"lr":0.002,)"
            R"("step_ms":100.0})");
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2);
}

TEST(StepLog, ALineIsThereAsSoonAsItIsWritten) {
  const std::string path = NewPath("flushed.json");
  absl::StatusOr<StepLog> log = StepLog::Open(path, 1);
  ASSERT_TRUE(log.ok());
  ASSERT_TRUE(log->Write(Record(1)).ok());
  EXPECT_EQ(ReadFile(path).back(), '\n');
}

TEST(StepLog, RestartContinuesWithoutDoubling) {
  const std::string whole = NewPath("whole.json"), path = NewPath("continued.json");
  WriteSteps(whole, 1, 9);
  WriteSteps(path, 1, 7);
  WriteSteps(path, 5, 9);  // steps 5 .. 7 were not committed after all
  EXPECT_EQ(ReadFile(path), ReadFile(whole));
  WriteSteps(path, 1, 2);  // a fresh run
  EXPECT_EQ(ReadFile(path), ReadFile(whole).substr(0, ReadFile(path).size()));
  EXPECT_EQ(nlohmann::json::parse(ReadFile(path).substr(ReadFile(path).find('\n') + 1))["step"], 2);
}

TEST(StepLog, TornAndForeignLinesAreCutOff) {
  const std::string whole = NewPath("whole2.json"), path = NewPath("torn.json");
  WriteSteps(whole, 1, 5);
  for (const std::string& tail :
       {std::string("{\"step\":4,\"lo"), std::string("{\"step\":2}"), std::string("hello\n"),
        std::string("{\"step\":\"x\"}\n{\"step\":1}\n"), std::string("[]\n")}) {
    WriteSteps(path, 1, 3);
    std::ofstream(path, std::ios::app) << tail;
    WriteSteps(path, 4, 5);
    EXPECT_EQ(ReadFile(path), ReadFile(whole)) << tail;
  }
}

TEST(StepLog, NotANumberIsNullAndSkippedIsSaid) {
  const std::string path = NewPath("nan.json");
  {
    absl::StatusOr<StepLog> log = StepLog::Open(path, 1);
    ASSERT_TRUE(log.ok());
    StepRecord record = Record(1);
    record.loss = std::nan("");
    record.grad_norm = std::numeric_limits<double>::infinity();
    record.skipped = true;
    ASSERT_TRUE(log->Write(record).ok());
  }
  const nlohmann::json line = nlohmann::json::parse(ReadFile(path));
  EXPECT_TRUE(line["loss"].is_null());
  EXPECT_TRUE(line["grad_norm"].is_null());
  EXPECT_EQ(line["skipped"], true);
}

TEST(StepLog, ErrorsNameThePath) {
  const absl::Status missing = StepLog::Open("/no/such/dir/x.json", 1).status();
  EXPECT_EQ(missing.code(), absl::StatusCode::kNotFound);
  EXPECT_NE(missing.message().find("/no/such/dir/x.json"), std::string::npos);
  absl::StatusOr<StepLog> full = StepLog::Open("/dev/full", 1);
  ASSERT_TRUE(full.ok()) << full.status();
  EXPECT_EQ(full->Write(Record(1)).code(), absl::ErrnoToStatusCode(ENOSPC));
}

// What Show printed for steps 1 .. last, `ms` apart.
std::string Shown(bool terminal, uint64_t total, uint64_t last, int ms) {
  char* bytes = nullptr;
  size_t size = 0;
  FILE* out = open_memstream(&bytes, &size);
  {
    Progress progress(out, terminal, total);
    for (uint64_t step = 1; step <= last; ++step) {
      progress.Show(Record(step), absl::UnixEpoch() + absl::Milliseconds(ms * step));
    }
    progress.Finish();
    progress.Finish();
  }
  fclose(out);
  const std::string text(bytes, size);
  free(bytes);
  return text;
}

TEST(Progress, PlainLinesNowAndThen) {
  const std::string text = Shown(false, 400, 400, 10);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 21);
  EXPECT_EQ(text.find_first_of("\r\x1b"), std::string::npos);
  EXPECT_EQ(text.substr(0, text.find('\n')),
            "train 1/400  loss 1.0000  5120 tokens/s  epoch 2  world 3  eta 0:40");
}

TEST(Progress, OneLineThatRedrawsOnATerminal) {
  const std::string text = Shown(true, 20, 20, 50);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  EXPECT_EQ(text.back(), '\n');
  EXPECT_EQ(std::count(text.begin(), text.end(), '\r'), 11);  // every 100 ms, and the last
  EXPECT_NE(text.find("\rtrain [####################] 20/20  loss 0.0500"), std::string::npos) << text;
  EXPECT_NE(text.find("\rtrain [#-------------------] 1/20"), std::string::npos) << text;
}

}  // namespace
}  // namespace sherd::examples
