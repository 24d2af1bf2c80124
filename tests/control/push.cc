#include "tests/control/push.h"

#include "runtime/crc32c.h"

namespace sherd::tests {

grpc::Status Push(ControlJob& job, const std::string& at, const std::string& token, bool partial,
                  const std::vector<PushedTensor>& tensors, const std::function<void(v1::Chunk&)>& spoil,
                  uint64_t* step) {
  grpc::ClientContext context;
  Prepare(&context);
  v1::PushResponse response;
  const auto writer = job.Stub<v1::CheckpointService>(at)->Push(&context, &response);
  v1::PushRequest message;
  message.mutable_begin()->set_token(token);
  message.mutable_begin()->set_partial(partial);
  std::string bytes;
  for (const PushedTensor& t : tensors) {
    auto* m = message.mutable_begin()->mutable_manifest()->add_tensors();
    m->mutable_tensor()->set_name(t.name);
    m->mutable_tensor()->set_plane(t.plane);
    m->mutable_shape()->Assign(t.shape.begin(), t.shape.end());
    m->set_dtype(v1::DTYPE_FLOAT32);
    bytes.append(reinterpret_cast<const char*>(t.values.data()), t.values.size() * 4);
  }
  bool open = writer->Write(message);
  // Chunks of an odd size, so that elements are cut.
  for (size_t offset = 0; open && offset < bytes.size();) {
    v1::Chunk* chunk = message.mutable_chunk();
    chunk->set_offset(offset);
    chunk->set_data(bytes.substr(offset, 99991));
    chunk->set_crc32c(runtime::Crc32c(chunk->data()));
    offset += chunk->data().size();
    if (spoil) spoil(*chunk);
    open = writer->Write(message);
  }
  message.mutable_commit();
  if (open) writer->Write(message);
  writer->WritesDone();
  const grpc::Status s = writer->Finish();
  if (step != nullptr) *step = response.step();
  return s;
}

}  // namespace sherd::tests
