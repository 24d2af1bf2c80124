// Messages of sherd.v1 to core's types and back. What comes from a peer is checked here, once: an error is
// INVALID_ARGUMENT (or the code named) and says the field and its value, so that nothing behind this header
// sees a value out of range.
//
//   absl::StatusOr<JobSpec> spec = JobSpecFromProto(attach_request);
//   v1::Layout message;  ToProto(layout, &message);
//
// Pure functions; thread-safe.
#ifndef SHERD_PROTO_CONVERT_H_
#define SHERD_PROTO_CONVERT_H_

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "core/job_spec.h"
#include "core/layout.h"
#include "core/slice.h"
#include "core/types.h"
#include "google/protobuf/duration.pb.h"
#include "proto/sherd/v1/common.pb.h"
#include "proto/sherd/v1/job.pb.h"
#include "proto/sherd/v1/shard.pb.h"

namespace sherd {

// Unspecified is `if_unset`, when given.
absl::StatusOr<DType> DTypeFromProto(v1::DType dtype, absl::string_view field);
absl::StatusOr<DType> DTypeFromProto(v1::DType dtype, absl::string_view field, DType if_unset);
v1::DType ToProto(DType dtype);

// As safetensors names it: "F32", "BF16", "F16".
std::string SafetensorsName(DType dtype);

// Checks the hash too, if one is stated.
absl::StatusOr<Layout> LayoutFromProto(const v1::Layout& layout);
void ToProto(const Layout& layout, v1::Layout* out);
void ToProto(const TensorSpec& spec, v1::TensorSpec* out);
void ToProto(const BufferSpec& buffer, v1::Buffer* out);

// The job that a trainer describes, valid as a whole; uuid is empty.
absl::StatusOr<JobSpec> JobSpecFromProto(const v1::AttachRequest& request);
// Fills the fields of the job; not rank, process and token.
void ToProto(const JobSpec& spec, v1::AttachRequest* out);
// The optimizer of a job alone.
void ToProto(const JobSpec& spec, v1::Optimizer* out);
// What the job computes with, as Cluster shows it.
void ToProto(const JobSpec& spec, v1::Precision* out);

// A JobRecord, format and uuid included. JobSpecFromProto: FAILED_PRECONDITION for another format, DATA_LOSS
// for fields that contradict each other.
void ToProto(const JobSpec& spec, v1::JobRecord* out);
absl::StatusOr<JobSpec> JobSpecFromProto(const v1::JobRecord& record);

// A JobRecord as bytes for the store. DecodeJobSpec: DATA_LOSS for bytes that are none, FAILED_PRECONDITION
// for another format.
std::string EncodeJobSpec(const JobSpec& spec);
absl::StatusOr<JobSpec> DecodeJobSpec(absl::string_view bytes);

// No dimensions at all: the whole tensor. OUT_OF_RANGE when it is not within `shape`.
absl::StatusOr<Slice> SliceFromProto(const google::protobuf::RepeatedPtrField<v1::SliceDimension>& dimensions,
                                     const std::vector<int64_t>& shape);

// Its plane, or "param".
std::string PlaneOf(const v1::TensorRef& ref);

absl::Status CheckToken(absl::string_view token);
absl::Status CheckProcess(const v1::Process& process, absl::string_view field);
absl::Status CheckInRange(absl::string_view field, int64_t value, int64_t low, int64_t high);

// `if_unset` for a message that is not there (null). INVALID_ARGUMENT outside low..high.
absl::StatusOr<absl::Duration> DurationFromProto(const google::protobuf::Duration* duration,
                                                 absl::string_view field, absl::Duration if_unset,
                                                 absl::Duration low, absl::Duration high);
void ToProto(absl::Duration duration, google::protobuf::Duration* out);
absl::Duration FromProto(const google::protobuf::Duration& duration);

}  // namespace sherd

#endif  // SHERD_PROTO_CONVERT_H_
