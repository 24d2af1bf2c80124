#include "proto/convert.h"

#include <functional>
#include <iterator>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"

namespace sherd {
namespace {

v1::AttachRequest Good() {
  JobSpec spec;
  spec.job = "gpt";
  spec.layout = *Layout::Create(
      {{{"w", {3, 4}}, {"b", {4}, DType::kBFloat16, 1}}, {{"emb", {7}, DType::kFloat32, 0, false}}, {}});
  spec.optimizer = OptimizerKind::kSgd;
  spec.groups = {"decay", ""};
  spec.world_size = 3;
  spec.parts = 4;
  spec.nominal_samples = 2.5;
  spec.max_blob_bytes = 77;
  spec.buffers = {{"mean", {4}, "F32"}};
  spec.compute = DType::kBFloat16;
  spec.staging = DType::kFloat16;
  spec.loss_scale = {true, 1024, 7, 3, 2};
  spec.stochastic_rounding = true;
  spec.rounding_seed = 99;
  spec.reduction = {{1, 2}, DType::kFloat16};
  spec.gather = {{1}, 5000, true, 2};
  spec.stage = 3;
  v1::AttachRequest request;
  ToProto(spec, &request);
  return request;
}

TEST(Convert, JobSpecThereAndBack) {
  const absl::StatusOr<JobSpec> spec = JobSpecFromProto(Good());
  ASSERT_TRUE(spec.ok()) << spec.status();
  EXPECT_EQ(spec->world_size, 3);
  EXPECT_EQ(spec->stage, 3);
  EXPECT_EQ(spec->gather.persistent, std::vector<int>{1});
  EXPECT_EQ(spec->gather.max_live, 5000);
  EXPECT_TRUE(spec->gather.initial_shares);
  EXPECT_EQ(spec->gather.hpz_partition, 2);
  EXPECT_EQ(spec->compute, DType::kBFloat16);
  EXPECT_EQ(spec->staging, DType::kFloat16);
  EXPECT_EQ(spec->loss_scale, (LossScaleSpec{true, 1024, 7, 3, 2}));
  EXPECT_TRUE(spec->stochastic_rounding);
  EXPECT_EQ(spec->rounding_seed, 99);
  EXPECT_EQ(spec->reduction, (ReductionTree{{1, 2}, DType::kFloat16}));
  EXPECT_FALSE(spec->layout.Find("emb")->spec.trainable);
  v1::AttachRequest again;
  ToProto(*spec, &again);
  EXPECT_EQ(again.SerializeAsString(), Good().SerializeAsString());

  JobSpec named = *spec;
  named.uuid = "1234";
  const absl::StatusOr<JobSpec> decoded = DecodeJobSpec(EncodeJobSpec(named));
  ASSERT_TRUE(decoded.ok()) << decoded.status();
  EXPECT_TRUE(CheckSame(named, *decoded).ok());
  EXPECT_EQ(decoded->uuid, "1234");
}

// The wire's enum is the list of kernels/optimizer_kinds.h.
TEST(Convert, EveryOptimizerHasItsNameOnTheWire) {
  EXPECT_EQ(v1::Optimizer::Kind_descriptor()->value_count(),
            1 + static_cast<int>(std::size(kernels::kOptimizers)));
  for (const kernels::OptimizerInfo& info : kernels::kOptimizers) {
    EXPECT_EQ(v1::Optimizer::Kind_Name(static_cast<v1::Optimizer::Kind>(info.kind)),
              absl::StrCat("KIND_", absl::AsciiStrToUpper(info.name)));
  }
}

TEST(Convert, DamagedJobRecordIsAnError) {
  const std::string bytes = EncodeJobSpec(*JobSpecFromProto(Good()));
  for (size_t n = 0; n < bytes.size(); ++n) {
    // A prefix may parse (fields are optional); it must not pass for the same job.
    const absl::StatusOr<JobSpec> cut = DecodeJobSpec(absl::string_view(bytes).substr(0, n));
    EXPECT_FALSE(cut.ok() && CheckSame(*JobSpecFromProto(Good()), *cut).ok()) << n;
  }
  EXPECT_EQ(DecodeJobSpec("").status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(DecodeJobSpec("\xff\xff").status().code(), absl::StatusCode::kDataLoss);
}

TEST(Convert, BadFieldsAreNamedWithTheirValue) {
  const struct {
    const char* named;
    std::function<void(v1::AttachRequest&)> change;
  } cases[] = {
      {"job=\"\"", [](v1::AttachRequest& r) { r.clear_job(); }},
      {"world_size=0", [](v1::AttachRequest& r) { r.clear_world_size(); }},
      {"world_size=-1", [](v1::AttachRequest& r) { r.set_world_size(-1); }},
      {"stage=7", [](v1::AttachRequest& r) { r.set_stage(7); }},
      {"optimizer.kind=0", [](v1::AttachRequest& r) { r.mutable_optimizer()->clear_kind(); }},
      {"optimizer.kind=255",
       [](v1::AttachRequest& r) { r.mutable_optimizer()->set_kind(static_cast<v1::Optimizer::Kind>(257)); }},
      {"optimizer.groups", [](v1::AttachRequest& r) { r.mutable_optimizer()->clear_groups(); }},
      {"accumulation_parts=0", [](v1::AttachRequest& r) { r.clear_accumulation_parts(); }},
      {"nominal_samples=0", [](v1::AttachRequest& r) { r.clear_nominal_samples(); }},
      {"tensor w: dtype=0",
       [](v1::AttachRequest& r) { r.mutable_layout()->mutable_units(0)->mutable_tensors(0)->clear_dtype(); }},
      {"tensor w: dtype=9",
       [](v1::AttachRequest& r) {
         r.mutable_layout()->mutable_units(0)->mutable_tensors(0)->set_dtype(static_cast<v1::DType>(9));
       }},
      {"w",
       [](v1::AttachRequest& r) { r.mutable_layout()->mutable_units(0)->mutable_tensors(1)->set_name("w"); }},
      {"-3",
       [](v1::AttachRequest& r) {
         r.mutable_layout()->mutable_units(0)->mutable_tensors(1)->set_shape(0, -3);
       }},
      {"compute_dtype=9",
       [](v1::AttachRequest& r) { r.mutable_precision()->set_compute(static_cast<v1::DType>(9)); }},
      {"staging_dtype=9",
       [](v1::AttachRequest& r) { r.mutable_precision()->set_staging(static_cast<v1::DType>(9)); }},
      {"loss_scale.initial=0",
       [](v1::AttachRequest& r) { r.mutable_precision()->mutable_loss_scale()->Clear(); }},
      {"loss_scale.window=0",
       [](v1::AttachRequest& r) { r.mutable_precision()->mutable_loss_scale()->clear_window(); }},
      {"reduction.wire=9 is not a dtype",
       [](v1::AttachRequest& r) { r.mutable_reduction()->set_wire(static_cast<v1::DType>(9)); }},
      {"reduce_groups: 1,2,-1 has a group of -1",
       [](v1::AttachRequest& r) { r.mutable_reduction()->add_groups(-1); }},
      {"tensor b: dtype=bf16 but compute_dtype=fp32", [](v1::AttachRequest& r) { r.clear_precision(); }},
      {"layout.hash=", [](v1::AttachRequest& r) { r.mutable_layout()->set_hash(5); }},
      {"buffer mean: unknown dtype \"Q\"",
       [](v1::AttachRequest& r) { r.mutable_buffers(0)->set_dtype("Q"); }},
  };
  for (const auto& c : cases) {
    v1::AttachRequest request = Good();
    c.change(request);
    const absl::Status status = JobSpecFromProto(request).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << c.named;
    EXPECT_NE(status.message().find(c.named), std::string::npos) << c.named << " not in: " << status;
  }
}

TEST(Convert, Slices) {
  google::protobuf::RepeatedPtrField<v1::SliceDimension> dims;
  EXPECT_EQ(SliceFromProto(dims, {3, 4})->numel(), 12);
  dims.Add()->set_start(1);
  v1::SliceDimension* second = dims.Add();
  second->set_stop(3);
  second->set_step(2);
  EXPECT_EQ(SliceFromProto(dims, {3, 4})->shape(), (std::vector<int64_t>{2, 2}));
  second->set_stop(0);  // set, and empty: not "to the end"
  EXPECT_EQ(SliceFromProto(dims, {3, 4})->numel(), 0);
  second->set_stop(5);
  EXPECT_EQ(SliceFromProto(dims, {3, 4}).status().code(), absl::StatusCode::kOutOfRange);
  EXPECT_EQ(SliceFromProto(dims, {3}).status().code(), absl::StatusCode::kOutOfRange);
}

TEST(Convert, SmallFields) {
  EXPECT_FALSE(CheckToken("").ok());
  EXPECT_TRUE(CheckToken(std::string(64, 'x')).ok());
  EXPECT_FALSE(CheckToken(std::string(65, 'x')).ok());
  EXPECT_FALSE(CheckProcess(v1::Process(), "process").ok());
  EXPECT_EQ(CheckInRange("servers", 0, 1, 5).message(), "servers=0 is not in 1..5");
  EXPECT_EQ(PlaneOf(v1::TensorRef()), "param");
  for (const DType d : {DType::kFloat32, DType::kBFloat16, DType::kFloat16})
    EXPECT_EQ(*DTypeFromProto(ToProto(d), "x"), d);
  EXPECT_EQ(*DTypeFromProto(v1::DTYPE_UNSPECIFIED, "x", DType::kFloat16), DType::kFloat16);

  google::protobuf::Duration d;
  ToProto(absl::Milliseconds(1500), &d);
  const absl::Duration second = absl::Seconds(1);
  EXPECT_EQ(*DurationFromProto(&d, "idle", second, second, absl::Hours(1)), absl::Milliseconds(1500));
  EXPECT_EQ(*DurationFromProto(nullptr, "idle", second, second, absl::Hours(1)), second);
  EXPECT_EQ(DurationFromProto(&d, "idle", second, 2 * second, absl::Hours(1)).status().message(),
            "idle=1.5s is not in 2s..1h");
}

}  // namespace
}  // namespace sherd
