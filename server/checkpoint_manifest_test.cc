// Manifests that nobody's save wrote, with right checksums: each is refused, and named.
#include "server/checkpoint_manifest.h"

#include <sys/stat.h>

#include <cmath>
#include <cstdint>
#include <fstream>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "gtest/gtest.h"
#include "proto/convert.h"
#include "runtime/test_root.h"

namespace sherd::server {
namespace {

using Manifest = v1::CheckpointManifest;

class ManifestTest : public ::testing::Test {
 protected:
  ManifestTest() {
    JobSpec spec;
    spec.job = "t";
    spec.layout = *Layout::Create({{{"w", {30, 50}}, {"b", {7}}}});
    spec.groups = {""};
    spec.world_size = 1;
    ToProto(spec, good_.mutable_job());
    good_.set_step(7);
    good_.set_servers(1);
    for (const char* plane : {"param", "exp_avg", "exp_avg_sq"}) good_.add_planes(plane);
    good_.add_update_counts(7);
    good_.add_update_counts(6);
    good_.set_updates(7);
    good_.add_groups()->add_scalars(1e-3);
    good_.mutable_loss_scale()->set_scale(1);
    good_.mutable_loss_scale()->set_last(-1);
    Name("part", good_.add_parts());
    Name("state", good_.mutable_state());
    ::mkdir((root_.path() + "/step-7").c_str(), 0700);
    for (const char* file : {"part", "state"}) std::ofstream(root_.path() + "/step-7/" + file) << "x";
  }

  static void Name(const char* name, Manifest::File* file) {
    formats::FileSum sum;
    sum.bytes = 1;
    sum.chunk_crc32c = {0};
    SetSum(sum, file);
    file->set_name(name);
  }

  absl::Status Open(const std::function<void(Manifest&)>& change) const {
    Manifest m = good_;
    change(m);
    const absl::StatusOr<std::string> text = EncodeManifest(m);
    EXPECT_TRUE(text.ok()) << text.status();
    std::ofstream(root_.path() + "/step-7/manifest.json") << *text;
    return OpenCheckpoint(root_.path(), "step-7").status();
  }

  const runtime::TestRoot root_;
  Manifest good_;
};

TEST_F(ManifestTest, WhatNoSaveWritesIsRefused) {
  ASSERT_TRUE(Open([](Manifest&) {}).ok());
  constexpr uint64_t kHuge = std::numeric_limits<uint64_t>::max();
  struct Case {
    const char* named;
    std::function<void(Manifest&)> change;
  };
  const std::vector<Case> cases = {
      {"step is", [](Manifest& m) { m.set_step(kHuge); }},
      {"step is", [](Manifest& m) { m.set_step(uint64_t{1} << 40); }},
      {"updates is", [](Manifest& m) { m.set_updates(kHuge); }},
      {"an update count is", [](Manifest& m) { m.set_update_counts(1, kHuge); }},
      {"2 tensors", [](Manifest& m) { m.clear_update_counts(); }},
      {"a scalar of a group is nan", [](Manifest& m) { m.mutable_groups(0)->set_scalars(0, std::nan("")); }},
      {"loss_scale.scale is inf", [](Manifest& m) { m.mutable_loss_scale()->set_scale(HUGE_VAL); }},
      {"loss_scale.scale is 0", [](Manifest& m) { m.clear_loss_scale(); }},
      {"loss_scale.last is", [](Manifest& m) { m.mutable_loss_scale()->set_last(INT64_MAX); }},
      {"loss_scale.i is", [](Manifest& m) { m.mutable_loss_scale()->set_i(-1); }},
      {"parts of 2 servers", [](Manifest& m) { m.set_servers(2); }},
      {"no plane \"param\"", [](Manifest& m) { m.clear_planes(); }},
      {"\"../state\" is no name", [](Manifest& m) { m.mutable_state()->set_name("../state"); }},
      {"\"part\\x00\" is no name",
       [](Manifest& m) { m.mutable_parts(0)->set_name(std::string("part\0", 5)); }},
      {"part is damaged", [](Manifest& m) { m.mutable_parts(0)->set_chunk_bytes(1); }},
      {"it has 1 bytes but 2 were", [](Manifest& m) { m.mutable_parts(0)->set_bytes(2); }},
      {"world_size=0", [](Manifest& m) { m.mutable_job()->set_world_size(0); }},
  };
  for (const Case& c : cases) {
    const absl::Status s = Open(c.change);
    EXPECT_FALSE(s.ok()) << c.named;
    EXPECT_TRUE(absl::StrContains(s.message(), c.named)) << s;
  }
}

}  // namespace
}  // namespace sherd::server
