// The hosts of a job of several, as `sherd status` tells of them.
#ifndef SHERD_BENCH_JOB_HOSTS_H_
#define SHERD_BENCH_JOB_HOSTS_H_

#include <string>

namespace sherd::bench {

// Until all have joined, before which no trainer may attach. `endpoint`: any server of the job. This and the
// next end the process with a line on any error, and after half a minute.
void AwaitHosts(const std::string& endpoint);

// Payload that the hosts have sent each other since the job began: of one, on average.
struct SentBytes {
  double gradients = 0, parameters = 0, gathered = 0;
  double all() const { return gradients + parameters + gathered; }
};

// Waits until all hosts tell of step `step`.
SentBytes ReadSentBytes(const std::string& endpoint, int step);

}  // namespace sherd::bench

#endif  // SHERD_BENCH_JOB_HOSTS_H_
