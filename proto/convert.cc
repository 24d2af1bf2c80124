#include "proto/convert.h"

#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "proto/sherd/v1/job.pb.h"

namespace sherd {
namespace {

// OK, or INVALID_ARGUMENT for a dtype that is none; the rest is Validate's business.
absl::Status PrecisionFrom(const v1::Precision& m, JobSpec* spec) {
  const absl::StatusOr<DType> compute = DTypeFromProto(m.compute(), "compute_dtype", DType::kFloat32);
  if (!compute.ok()) return compute.status();
  const absl::StatusOr<DType> staging = DTypeFromProto(m.staging(), "staging_dtype", DType::kFloat32);
  if (!staging.ok()) return staging.status();
  spec->compute = *compute;
  spec->staging = *staging;
  if (m.has_loss_scale()) {
    const v1::LossScale& s = m.loss_scale();
    spec->loss_scale = {s.dynamic(), s.initial(), s.window(), s.hysteresis(), s.min()};
  }
  spec->stochastic_rounding = m.stochastic_rounding();
  spec->rounding_seed = m.rounding_seed();
  return absl::OkStatus();
}

absl::Status ReductionFrom(const v1::Reduction& m, JobSpec* spec) {
  const absl::StatusOr<DType> wire = DTypeFromProto(m.wire(), "reduction.wire", DType::kFloat32);
  if (!wire.ok()) return wire.status();
  spec->reduction = {{m.groups().begin(), m.groups().end()}, *wire};
  return absl::OkStatus();
}

// Fields that AttachRequest and JobRecord share, by name.
template <typename Message>
absl::StatusOr<JobSpec> SpecFrom(const Message& m) {
  JobSpec spec;
  spec.job = m.job();
  absl::StatusOr<Layout> layout = LayoutFromProto(m.layout());
  if (!layout.ok()) return layout.status();
  spec.layout = *std::move(layout);
  // Validate() names a kind it does not know; a narrower type must not hide it first.
  const int kind = m.optimizer().kind();
  spec.optimizer = static_cast<OptimizerKind>(kind >= 0 && kind <= 255 ? kind : 255);
  for (const v1::ParameterGroup& group : m.optimizer().groups()) spec.groups.push_back(group.name());
  spec.world_size = m.world_size();
  spec.stage = m.stage();
  spec.parts = m.accumulation_parts();
  spec.virtual_ranks = m.virtual_ranks();
  spec.shard_ranks = m.shard_ranks();
  spec.nominal_samples = m.nominal_samples();
  spec.max_blob_bytes = m.max_blob_bytes();
  for (const v1::Buffer& b : m.buffers()) {
    spec.buffers.push_back({b.name(), {b.shape().begin(), b.shape().end()}, b.dtype()});
  }
  spec.gather.persistent = {m.gathering().persistent().begin(), m.gathering().persistent().end()};
  spec.gather.max_live = m.gathering().max_live();
  spec.gather.initial_shares = m.gathering().initial_shares();
  spec.gather.hpz_partition = m.gathering().hpz_partition();
  if (absl::Status s = PrecisionFrom(m.precision(), &spec); !s.ok()) return s;
  if (absl::Status s = ReductionFrom(m.reduction(), &spec); !s.ok()) return s;
  if (absl::Status s = Validate(spec); !s.ok()) return s;
  return spec;
}

template <typename Message>
void SpecTo(const JobSpec& spec, Message* m) {
  m->set_job(spec.job);
  ToProto(spec.layout, m->mutable_layout());
  ToProto(spec, m->mutable_optimizer());
  m->set_world_size(spec.world_size);
  m->set_stage(spec.stage);
  m->set_accumulation_parts(spec.parts);
  m->set_virtual_ranks(spec.virtual_ranks);
  m->set_shard_ranks(spec.shard_ranks);
  m->set_nominal_samples(spec.nominal_samples);
  m->set_max_blob_bytes(spec.max_blob_bytes);
  for (const BufferSpec& b : spec.buffers) ToProto(b, m->add_buffers());
  ToProto(spec, m->mutable_precision());
  if (spec.stage == 3) {
    v1::Gathering* gathering = m->mutable_gathering();
    gathering->mutable_persistent()->Assign(spec.gather.persistent.begin(), spec.gather.persistent.end());
    gathering->set_max_live(spec.gather.max_live);
    gathering->set_initial_shares(spec.gather.initial_shares);
    gathering->set_hpz_partition(spec.gather.hpz_partition);
  }
  if (spec.reduction.groups.empty()) return;
  m->mutable_reduction()->mutable_groups()->Assign(spec.reduction.groups.begin(),
                                                   spec.reduction.groups.end());
  m->mutable_reduction()->set_wire(ToProto(spec.reduction.wire));
}

}  // namespace

absl::StatusOr<DType> DTypeFromProto(v1::DType dtype, absl::string_view field) {
  switch (dtype) {
    case v1::DTYPE_FLOAT32:
      return DType::kFloat32;
    case v1::DTYPE_BFLOAT16:
      return DType::kBFloat16;
    case v1::DTYPE_FLOAT16:
      return DType::kFloat16;
    default:
      return absl::InvalidArgumentError(absl::StrCat(field, "=", static_cast<int>(dtype),
                                                     " is not a dtype: fp32 (1), bf16 (2) or fp16 (3)"));
  }
}

absl::StatusOr<DType> DTypeFromProto(v1::DType dtype, absl::string_view field, DType if_unset) {
  if (dtype == v1::DTYPE_UNSPECIFIED) return if_unset;
  return DTypeFromProto(dtype, field);
}

v1::DType ToProto(DType dtype) { return static_cast<v1::DType>(static_cast<int>(dtype)); }

std::string SafetensorsName(DType dtype) {
  return dtype == DType::kFloat32 ? "F32" : dtype == DType::kBFloat16 ? "BF16" : "F16";
}

absl::StatusOr<Layout> LayoutFromProto(const v1::Layout& layout) {
  std::vector<std::vector<TensorSpec>> units;
  units.reserve(layout.units_size());
  for (const v1::Unit& unit : layout.units()) {
    std::vector<TensorSpec>& tensors = units.emplace_back();
    tensors.reserve(unit.tensors_size());
    for (const v1::TensorSpec& t : unit.tensors()) {
      absl::StatusOr<DType> dtype = DTypeFromProto(t.dtype(), absl::StrCat("tensor ", t.name(), ": dtype"));
      if (!dtype.ok()) return dtype.status();
      tensors.push_back({t.name(), {t.shape().begin(), t.shape().end()}, *dtype, t.group(), !t.frozen()});
    }
  }
  absl::StatusOr<Layout> made = Layout::Create(std::move(units));
  if (made.ok() && layout.hash() != 0 && layout.hash() != made->hash()) {
    return absl::InvalidArgumentError(absl::StrCat("layout.hash=", absl::Hex(layout.hash()),
                                                   " but the layout's is ", absl::Hex(made->hash())));
  }
  return made;
}

void ToProto(const TensorSpec& spec, v1::TensorSpec* out) {
  out->set_name(spec.name);
  out->mutable_shape()->Assign(spec.shape.begin(), spec.shape.end());
  out->set_dtype(ToProto(spec.dtype));
  out->set_group(spec.group);
  out->set_frozen(!spec.trainable);
}

void ToProto(const BufferSpec& buffer, v1::Buffer* out) {
  out->set_name(buffer.name);
  out->mutable_shape()->Assign(buffer.shape.begin(), buffer.shape.end());
  out->set_dtype(buffer.dtype);
}

void ToProto(const Layout& layout, v1::Layout* out) {
  out->Clear();
  for (const UnitInfo& unit : layout.units()) {
    v1::Unit* u = out->add_units();
    for (int t = unit.first_tensor; t < unit.end_tensor; ++t)
      ToProto(layout.tensors()[t].spec, u->add_tensors());
  }
  out->set_hash(layout.hash());
}

absl::StatusOr<JobSpec> JobSpecFromProto(const v1::AttachRequest& request) { return SpecFrom(request); }

void ToProto(const JobSpec& spec, v1::AttachRequest* out) { SpecTo(spec, out); }

void ToProto(const JobSpec& spec, v1::Optimizer* out) {
  out->Clear();
  out->set_kind(static_cast<v1::Optimizer::Kind>(spec.optimizer));
  for (const std::string& name : spec.groups) out->add_groups()->set_name(name);
}

void ToProto(const JobSpec& spec, v1::Precision* out) {
  out->Clear();
  out->set_compute(ToProto(spec.compute));
  out->set_staging(ToProto(spec.staging));
  v1::LossScale* scale = out->mutable_loss_scale();
  scale->set_dynamic(spec.loss_scale.dynamic);
  scale->set_initial(spec.loss_scale.initial);
  scale->set_window(spec.loss_scale.window);
  scale->set_hysteresis(spec.loss_scale.hysteresis);
  scale->set_min(spec.loss_scale.min);
  out->set_stochastic_rounding(spec.stochastic_rounding);
  out->set_rounding_seed(spec.rounding_seed);
}

void ToProto(const JobSpec& spec, v1::JobRecord* out) {
  out->Clear();
  out->set_format(1);
  out->set_uuid(spec.uuid);
  SpecTo(spec, out);
}

absl::StatusOr<JobSpec> JobSpecFromProto(const v1::JobRecord& record) {
  if (record.format() != 1) {
    return absl::FailedPreconditionError(
        absl::StrCat("job record has format ", record.format(),
                     " but this program reads 1: use the version that made the job"));
  }
  absl::StatusOr<JobSpec> spec = SpecFrom(record);
  if (!spec.ok())
    return absl::DataLossError(absl::StrCat("job record is damaged: ", spec.status().message()));
  spec->uuid = record.uuid();
  return spec;
}

std::string EncodeJobSpec(const JobSpec& spec) {
  v1::JobRecord record;
  ToProto(spec, &record);
  return record.SerializeAsString();
}

absl::StatusOr<JobSpec> DecodeJobSpec(absl::string_view bytes) {
  v1::JobRecord record;
  if (!record.ParseFromString(std::string(bytes))) {
    return absl::DataLossError(absl::StrCat("job record of ", bytes.size(), " bytes is damaged"));
  }
  return JobSpecFromProto(record);
}

absl::StatusOr<Slice> SliceFromProto(const google::protobuf::RepeatedPtrField<v1::SliceDimension>& dimensions,
                                     const std::vector<int64_t>& shape) {
  if (dimensions.empty()) return Slice::Whole(shape);
  std::vector<Slice::Dimension> dims;
  for (int d = 0; d < dimensions.size(); ++d) {
    const v1::SliceDimension& dim = dimensions[d];
    const int64_t size = d < static_cast<int>(shape.size()) ? shape[d] : 0;
    dims.push_back({dim.start(), dim.has_stop() ? dim.stop() : size, dim.step() == 0 ? 1 : dim.step()});
  }
  return Slice::Create(shape, dims);
}

std::string PlaneOf(const v1::TensorRef& ref) { return ref.plane().empty() ? "param" : ref.plane(); }

absl::Status CheckToken(absl::string_view token) {
  if (!token.empty() && token.size() <= 64) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("token of ", token.size(), " bytes: needs 1 to 64 random bytes"));
}

absl::Status CheckProcess(const v1::Process& process, absl::string_view field) {
  if (process.pid() >= 1) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(field, ".pid=", process.pid(), " is not a process: at least 1"));
}

absl::Status CheckInRange(absl::string_view field, int64_t value, int64_t low, int64_t high) {
  if (value >= low && value <= high) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(field, "=", value, " is not in ", low, "..", high));
}

absl::Duration FromProto(const google::protobuf::Duration& duration) {
  return absl::Seconds(duration.seconds()) + absl::Nanoseconds(duration.nanos());
}

void ToProto(absl::Duration duration, google::protobuf::Duration* out) {
  out->set_seconds(absl::IDivDuration(duration, absl::Seconds(1), &duration));
  out->set_nanos(static_cast<int32_t>(absl::IDivDuration(duration, absl::Nanoseconds(1), &duration)));
}

absl::StatusOr<absl::Duration> DurationFromProto(const google::protobuf::Duration* duration,
                                                 absl::string_view field, absl::Duration if_unset,
                                                 absl::Duration low, absl::Duration high) {
  if (duration == nullptr) return if_unset;
  const absl::Duration value = FromProto(*duration);
  if (value >= low && value <= high) return value;
  return absl::InvalidArgumentError(absl::StrCat(field, "=", absl::FormatDuration(value), " is not in ",
                                                 absl::FormatDuration(low), "..",
                                                 absl::FormatDuration(high)));
}

}  // namespace sherd
