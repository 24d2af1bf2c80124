// Finds the servers of a membership by name and by process, however many there are (core/membership.h).
//
//   index.Add(MemberIndex::Role::kHolds, 3, "s3", "host-a", process);
//   index.SlotOf("s3");                          // 3
//   index.Find(process, "host-a", [](const MemberIndex::Entry& e) { ... });
//
// Thread-compatible; copyable.
#ifndef SHERD_CORE_MEMBER_INDEX_H_
#define SHERD_CORE_MEMBER_INDEX_H_

#include <cstdint>
#include <functional>
#include <map>
#include <string>

#include "core/epoch_doc.h"
#include "core/splitmix.h"

namespace sherd {

class MemberIndex {
 public:
  enum class Role {
    kHolds,  // a slot
    kSeeks,  // is to have a slot as soon as its last process is seen dead
    kWaits,  // has none: a spare
  };
  struct Entry {
    Role role;
    int slot;  // -1: of a spare
    std::string id;
    std::string host;
  };

  void Add(Role role, int slot, const std::string& id, const std::string& host,
           const ProcessIdentity& process) {
    if (role == Role::kHolds) slots_[id] = slot;
    if (role == Role::kSeeks) sought_[id] = slot;
    processes_.emplace(Key(process, host), Process{process, {role, slot, id, host}});
  }

  // REQUIRES: as it was added.
  void Remove(Role role, int slot, const std::string& id, const std::string& host,
              const ProcessIdentity& process) {
    if (role == Role::kHolds) slots_.erase(id);
    if (role == Role::kSeeks) sought_.erase(id);
    const auto same = processes_.equal_range(Key(process, host));
    for (auto it = same.first; it != same.second; ++it) {
      const Entry& e = it->second.entry;
      if (e.role != role || e.slot != slot || e.id != id) continue;
      processes_.erase(it);
      return;
    }
  }

  // The slot that `id` holds, or is to have; -1: none.
  int SlotOf(const std::string& id) const { return Get(slots_, id); }
  int SlotSoughtBy(const std::string& id) const { return Get(sought_, id); }

  // Calls fn(const Entry&) for every place in which `process` of `host` stands.
  template <typename Fn>
  void Find(const ProcessIdentity& process, const std::string& host, Fn fn) const {
    const auto same = processes_.equal_range(Key(process, host));
    for (auto it = same.first; it != same.second; ++it) {
      if (it->second.process == process && it->second.entry.host == host) fn(it->second.entry);
    }
  }

 private:
  struct Process {
    ProcessIdentity process;
    Entry entry;
  };

  // In containers many processes have one pid.
  static uint64_t Key(const ProcessIdentity& process, const std::string& host) {
    return SplitMix64(SplitMix64(SplitMix64(process.pid) ^ process.start) ^ std::hash<std::string>()(host));
  }

  static int Get(const std::map<std::string, int>& map, const std::string& id) {
    const auto it = map.find(id);
    return it == map.end() ? -1 : it->second;
  }

  // Trees: a hash table that grows takes its time, at one event.
  std::map<std::string, int> slots_, sought_;   // by id
  std::multimap<uint64_t, Process> processes_;  // by Key()
};

}  // namespace sherd

#endif  // SHERD_CORE_MEMBER_INDEX_H_
