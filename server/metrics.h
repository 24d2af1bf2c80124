// What one server tells Prometheus: asked for at each scrape, nothing is counted in between.
//
//   absl::StatusOr<std::unique_ptr<Metrics>> metrics = Metrics::Start("127.0.0.1:9100", &node);
#ifndef SHERD_SERVER_METRICS_H_
#define SHERD_SERVER_METRICS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/copy_watch.h"
#include "server/node.h"

namespace sherd::server {

class Metrics {
 public:
  // Serves http://ADDRESS/metrics until destroyed. `node` and `copies`, which may be null, are borrowed.
  //   INVALID_ARGUMENT, ALREADY_EXISTS  as RpcServer::Start
  static absl::StatusOr<std::unique_ptr<Metrics>> Start(const std::string& address, bool allow_remote,
                                                        const Node* node, const CopyWatch* copies);
  ~Metrics();

 private:
  struct Impl;
  explicit Metrics(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_METRICS_H_
