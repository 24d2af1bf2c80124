#include "client/cli/tensor_list.h"

#include "absl/strings/str_cat.h"

namespace sherd::cli {

absl::StatusOr<TensorList> ListAll(rpc::JobClient& client, const std::string& glob, absl::Time deadline) {
  TensorList list;
  v1::ListTensorsRequest request;
  request.set_glob(glob);
  for (;;) {
    absl::StatusOr<v1::ListTensorsResponse> page = client.ListTensors(request, deadline);
    if (!page.ok()) return page.status();
    for (v1::ListTensorsResponse::Tensor& t : *page->mutable_tensors()) list.tensors.push_back(std::move(t));
    for (v1::Buffer& b : *page->mutable_buffers()) list.buffers.push_back(std::move(b));
    list.epoch = page->epoch();
    list.step = page->step();
    if (page->next_page_token() == 0) return list;
    if (page->next_page_token() <= request.page_token()) {
      return absl::InternalError(absl::StrCat("the server's list of tensors does not end: page ",
                                              page->next_page_token(), " follows ", request.page_token()));
    }
    request.set_page_token(page->next_page_token());
  }
}

std::string EscapeGlob(const std::string& name) {
  std::string glob;
  for (const char c : name) {
    if (c == '*' || c == '?' || c == '[' || c == '\\') glob += '\\';
    glob += c;
  }
  return glob;
}

std::string DTypeText(v1::DType dtype) {
  switch (dtype) {
    case v1::DTYPE_FLOAT32:
      return "fp32";
    case v1::DTYPE_BFLOAT16:
      return "bf16";
    case v1::DTYPE_FLOAT16:
      return "fp16";
    default:
      return absl::StrCat("dtype ", static_cast<int>(dtype));
  }
}

}  // namespace sherd::cli
