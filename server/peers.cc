#include "server/peers.h"

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "grpcpp/create_channel.h"
#include "grpcpp/security/credentials.h"
#include "runtime/clock.h"

namespace sherd::server {

std::shared_ptr<grpc::Channel> Peers::To(const std::string& address) {
  runtime::MutexLock lock(mu_);
  std::shared_ptr<grpc::Channel>& channel = channels_[address];
  if (channel != nullptr) return channel;
  grpc::ChannelArguments arguments;
  arguments.SetMaxReceiveMessageSize(kMaxMessageBytes);
  arguments.SetMaxSendMessageSize(kMaxMessageBytes);
  // A coordinator that was replaced is to be tried again soon.
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 500);
  std::shared_ptr<grpc::ChannelCredentials> credentials = grpc::InsecureChannelCredentials();
  if (!options_.tls.empty() && !absl::StartsWith(address, "unix:")) {
    grpc::SslCredentialsOptions ssl;
    ssl.pem_root_certs = options_.tls.ca;
    ssl.pem_private_key = options_.tls.key;
    ssl.pem_cert_chain = options_.tls.certificate;
    credentials = grpc::SslCredentials(ssl);
  }
  channel = grpc::CreateCustomChannel(address, credentials, arguments);
  return channel;
}

void Peers::Prepare(grpc::ClientContext* context, absl::Time deadline) const {
  context->set_deadline(runtime::ToTimeOfDay(deadline));
  if (options_.to_coordinator) context->AddMetadata(kForwardedKey, "1");
  if (!options_.token.empty()) context->AddMetadata(kTokenKey, absl::StrCat("Bearer ", options_.token));
}

}  // namespace sherd::server
