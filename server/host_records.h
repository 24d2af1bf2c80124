// What the other hosts of a job say of a lost one (CheckpointService.FenceHost): its records as they have
// them, and those of their own owners.
//
//   HostRecords records(&memory.spec(), memory.place().count, /*lost=*/1);
//   absl::Status s = records.Add(/*host=*/2, record);     // as they come, mixed or host by host
//   absl::StatusOr<std::vector<Survivor>> survivors = records.Survivors();
//
// Nothing that another host sent is used before it was found to be of this job. Not thread-safe.
#ifndef SHERD_SERVER_HOST_RECORDS_H_
#define SHERD_SERVER_HOST_RECORDS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/host_takeover.h"
#include "core/job_spec.h"
#include "proto/sherd/v1/checkpoint.pb.h"
#include "runtime/records.h"

namespace sherd::server {

class HostRecords {
 public:
  // `spec` is borrowed.
  HostRecords(const JobSpec* spec, int hosts, int lost) : spec_(spec), hosts_(hosts), lost_(lost) {}

  // The next record of a host's answer. DATA_LOSS names the host and what it sent that is not of this job.
  absl::Status Add(int host, v1::HostRecord record);

  // Where slots are: of whichever host spoke first.
  const v1::HostRecord::About& about() const { return about_; }
  // The newest incarnation of the lost host that any of them has met or let in.
  uint64_t newest() const { return newest_; }
  std::vector<int> LostSlots() const;
  // Of each host that has owners: how far they have come, and the lost ones as far as it knows. DATA_LOSS
  // names a host that did not say all of it.
  absl::StatusOr<std::vector<Survivor>> Survivors() const;
  // Pages of a lost slot: all are of one page, in the order in which they were made.
  std::vector<std::string> LostPages(int slot) const;
  // Pages of slots that live, each as its own host has it.
  std::map<int, std::string> OwnPages() const;
  // STEP records, by rank.
  const std::map<int, std::vector<std::string>>& steps() const { return steps_; }

 private:
  struct Page {
    std::string copy;
    OwnerProgress progress;
    runtime::OwnerRecords::Marks marks;
  };

  const JobSpec* spec_;
  int hosts_, lost_;
  v1::HostRecord::About about_;
  uint64_t newest_ = 0;
  std::map<int, std::map<int, Page>> pages_;  // by who said it and slot
  std::map<int, std::vector<std::string>> steps_;
};

// A page of an owner out of the bytes that another host made of it.
class PageCopy {
 public:
  // `spec` is borrowed.
  PageCopy(const JobSpec* spec, const std::string& copy);
  PageCopy(const PageCopy&) = delete;
  PageCopy& operator=(const PageCopy&) = delete;
  // False: the bytes are not of a page of this job.
  bool whole() const { return whole_; }
  const runtime::OwnerRecords& records() const { return records_; }

 private:
  std::vector<char> memory_;
  runtime::OwnerRecords records_;
  bool whole_;
};

}  // namespace sherd::server

#endif  // SHERD_SERVER_HOST_RECORDS_H_
