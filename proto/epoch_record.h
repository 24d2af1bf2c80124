// Epoch documents as bytes for a store.
//
//   store->CreateIfAbsent(EpochKey(doc.epoch), EncodeEpochDoc(doc));
//   absl::StatusOr<EpochDoc> doc = DecodeEpochDoc(bytes);
//
// Pure functions; thread-safe.
#ifndef SHERD_PROTO_EPOCH_RECORD_H_
#define SHERD_PROTO_EPOCH_RECORD_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/epoch_doc.h"
#include "proto/sherd/v1/common.pb.h"

namespace sherd {

std::string EncodeEpochDoc(const EpochDoc& doc);
// DATA_LOSS for bytes that are none, or contradict themselves (CheckEpochDoc); FAILED_PRECONDITION for
// another format.
absl::StatusOr<EpochDoc> DecodeEpochDoc(absl::string_view bytes);

// "epoch/00000000000000000007": sorts by epoch.
std::string EpochKey(Epoch epoch);

// Of a process of this host; see CheckProcess for those that a peer sent.
ProcessIdentity FromProto(const v1::Process& process);
void ToProto(const ProcessIdentity& process, v1::Process* out);

}  // namespace sherd

#endif  // SHERD_PROTO_EPOCH_RECORD_H_
