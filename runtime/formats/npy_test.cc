#include "runtime/formats/npy.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <string>

#include "absl/strings/str_cat.h"

namespace sherd::formats {
namespace {

namespace fs = std::filesystem;
using ::testing::HasSubstr;

class NpyTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = ::testing::TempDir() + "/npy_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    directory_ = pattern;
    path_ = directory_ + "/a.npy";
  }
  void TearDown() override { fs::remove_all(directory_); }

  std::string directory_, path_;
};

TEST_F(NpyTest, HeaderIsByteForByteWhatNumpyWrites) {
  const auto text = [](const std::vector<int64_t>& shape) { return NpyHeader(shape)->substr(10); };
  EXPECT_EQ(NpyHeader({3, 4})->substr(0, 10), std::string("\x93NUMPY\x01\x00\x76\x00", 10));
  const std::string dictionary = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }";
  EXPECT_EQ(text({3, 4}), dictionary + std::string(128 - 10 - 1 - dictionary.size(), ' ') + "\n");
  EXPECT_THAT(text({3}), HasSubstr("'shape': (3,), }"));
  EXPECT_THAT(text({}), HasSubstr("'shape': (), }"));
  for (int dimensions = 0; dimensions < 40; ++dimensions) {
    EXPECT_EQ(NpyHeader(std::vector<int64_t>(dimensions, 1))->size() % 64, 0u) << dimensions;
  }
  EXPECT_FALSE(NpyHeader(std::vector<int64_t>(40'000, 1)).ok());
  EXPECT_FALSE(NpyHeader({-1}).ok());
}

TEST_F(NpyTest, WhatIsWrittenIsRead) {
  const std::vector<float> values = {1.5f, -2, 0, 4, 5, 6};
  const std::vector<std::vector<int64_t>> shapes = {{6}, {2, 3}, {1, 6, 1}};
  for (const auto& shape : shapes) {
    ASSERT_TRUE(WriteNpy(path_, values, shape).ok());
    const auto array = ReadNpy(path_);
    ASSERT_TRUE(array.ok()) << array.status();
    EXPECT_EQ(array->shape, shape);
    EXPECT_EQ(array->values, values);
  }
  const float one = 1;
  ASSERT_TRUE(WriteNpy(path_, absl::MakeSpan(&one, 1), {}).ok());
  EXPECT_EQ(ReadNpy(path_)->values, std::vector<float>{1});
  ASSERT_TRUE(WriteNpy(path_, {}, {0, 7}).ok());
  EXPECT_EQ(ReadNpy(path_)->shape, (std::vector<int64_t>{0, 7}));

  EXPECT_THAT(std::string(WriteNpy(path_, values, {2, 2}).message()),
              HasSubstr("6 values do not fill shape (2, 2)"));
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_), fs::directory_iterator()), 1);
}

TEST_F(NpyTest, MalformedFilesAreRefused) {
  const auto with_dictionary = [](std::string text) {
    std::string bytes("\x93NUMPY\x01\x00", 8);
    bytes.push_back(static_cast<char>(text.size()));
    return bytes + std::string(1, '\0') + text;
  };
  const auto dictionary = [&](const std::string& shape) {
    return with_dictionary("{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + ", }\n");
  };
  const std::pair<std::string, std::string> cases[] = {
      {"", "not a .npy file"},
      {std::string("\x93NUMPY\x02\x00\x00\x00\x00", 11), "not a .npy file of version 1.0"},
      {std::string("\x93NUMPY\x01\x00\xFF\x00{", 11), "header reaches past the end"},
      {with_dictionary("{'descr': '<f8', 'fortran_order': False, 'shape': (), }"),
       "not a row-major array of '<f4'"},
      {with_dictionary("{'descr': '<f4', 'fortran_order': True, 'shape': (), }"), "not a row-major array"},
      {with_dictionary("{'descr': '<f4', 'fortran_order': False, 'shape': (), } x"), "malformed"},
      {dictionary("(3)"), "malformed"},
      {dictionary("(-1,)"), "malformed"},
      {dictionary("(1.5,)"), "malformed"},
      {dictionary("(1,,2)"), "malformed"},
      {dictionary("(99999999999999999999,)"), "malformed"},
      {dictionary("(4611686018427387904,)"), "more than 2^63-1 bytes"},
      {dictionary("(2,)") + "1234567", "7 bytes of values where its shape takes 8"},
      {dictionary("(2,)") + "123456789", "9 bytes of values where its shape takes 8"},
  };
  for (const auto& [bytes, error] : cases) {
    std::ofstream(path_, std::ios::binary) << bytes;
    const auto array = ReadNpy(path_);
    ASSERT_FALSE(array.ok()) << error;
    EXPECT_THAT(std::string(array.status().message()), HasSubstr(path_ + ": "));
    EXPECT_THAT(std::string(array.status().message()), HasSubstr(error));
  }
  EXPECT_EQ(ReadNpy(directory_ + "/none.npy").status().code(), absl::StatusCode::kNotFound);
}

TEST_F(NpyTest, NumpyOpensIt) {
  if (std::system("python3 -c 'import numpy' 2>/dev/null") != 0)
    GTEST_SKIP() << "Python package numpy is not installed";
  ASSERT_TRUE(WriteNpy(path_, {1, 2, 3, 4, 5, 6}, {2, 3}).ok());
  const std::string script =
      absl::StrCat("python3 -c \"import numpy; a = numpy.load('", path_,
                   "', allow_pickle=False); assert a.tolist() == [[1, 2, 3], [4, 5, 6]]\"");
  EXPECT_EQ(std::system(script.c_str()), 0);
}

}  // namespace
}  // namespace sherd::formats
