// A private directory for one test, removed with everything in it at the end.
//
//   TestRoot root("/dev/shm");   // /dev/shm/sherd-test-XXXXXX
//   JobDir::Create(root.path(), "job");
#ifndef SHERD_RUNTIME_TEST_ROOT_H_
#define SHERD_RUNTIME_TEST_ROOT_H_

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <string>

#include "gtest/gtest.h"
#include "runtime/dir_tree.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {

class TestRoot {
 public:
  explicit TestRoot(const std::string& parent)
      : path_(parent + (parent.back() == '/' ? "" : "/") + "sherd-test-XXXXXX") {
    if (::mkdtemp(path_.data()) == nullptr) ADD_FAILURE() << "cannot create " << path_;
  }
  TestRoot() : TestRoot(::testing::TempDir()) {}
  TestRoot(const TestRoot&) = delete;
  TestRoot& operator=(const TestRoot&) = delete;
  ~TestRoot() {
    UniqueFd fd(::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
    EXPECT_TRUE(RemoveContents(fd.get(), path_).ok());
    ::rmdir(path_.c_str());
  }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_TEST_ROOT_H_
