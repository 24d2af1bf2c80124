// Decides who takes part in a job: the coordinator's mind, without its hands.
//
//   absl::StatusOr<MembershipState> state = MembershipState::Create({"gpt", /*expected_servers=*/2});
//   Outcome outcome = state->Apply(ServerJoined{"s0", "unix:/...", "host", {4711, 99}, "token"}, now);
//   for (const MembershipEffect& effect : outcome.effects) Do(effect);     // in order
//
// A state machine: events come in, effects go out, nothing else happens. It does no I/O and reads no clock,
// so transcripts and simulations drive the very code that runs. Equal events at equal times give equal
// effects.
//
// The rules
// - The first epoch forms when `expected_servers` have joined; slots go by id (s2 before s10), not by
// arrival. Later
//   servers wait as spares until a resize, or a slot whose server left for good, needs them.
// - A place (slot or rank) changes hands only after its last process was *seen* dead. Until then a successor
// waits, and
//   MustBeDead names whom to kill. A trainer that attached again replaces its predecessor so; a server that
//   merely claims the id of a living one is refused.
// - A server that died is awaited under its id and gets its slot back. One that left or is drained is
// replaced by a
//   spare, when there is one.
// - On several hosts the first epoch waits for all of them. Slots and ranks go host by host; a slot stays on
// its host
//   whoever takes it, and no resize leaves a host without one.
// - A resize up waits for spares; then, as a resize down at once, its assignment is proposed: it rides in a
// verdict
//   and takes effect between two steps (RangesApplied). Slots past the new number retire after that.
// - A resize of the trainers goes the same way: up, it waits until every new rank has attached and is ready;
// down, ranks
//   past the new number are not waited for any more once it is applied, and leave by themselves.
// - One operation (resize, drain) at a time. A token that was seen before gets the same answer, not another
// operation.
// - Each commit raises the epoch by one. A death or detach alone commits nothing: nothing may follow from it
// until
//   somebody takes the place.
//
// An event costs no more in a job of 100,000 members than in one of ten, but where it changes all of them
// (the first epoch, many new slots) and for each place that nobody stands in.
//
// Thread-compatible; copyable.
#ifndef SHERD_CORE_MEMBERSHIP_H_
#define SHERD_CORE_MEMBERSHIP_H_

#include <cstdint>
#include <deque>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "absl/types/optional.h"
#include "absl/types/variant.h"
#include "core/epoch_doc.h"
#include "core/member_index.h"
#include "core/types.h"

namespace sherd {

// ---- Events. `request` names the caller who waits for an Answer (empty: nobody does); of a resize or drain
// it is the token that makes repeating it harmless. A new coordinator that finds a member of its document
// alive lets it join or attach again in its name, with the identity in the document.

// A machine brings its ranks and servers; answered when all have come. The same name may come again, with
// another address.
struct HostJoined {
  HostMember host;
  int32_t index = -1;  // that it is to have, or had when it came before; -1: the next free one
  std::string request;
};
struct ServerJoined {
  std::string id;
  std::string address;
  std::string host;
  ProcessIdentity process;
  std::string request;
};
// The server will do no more work, and exits.
struct ServerLeft {
  std::string id;
  ProcessIdentity process;
  std::string request;
};
// The exit of this process was seen (not: guessed).
struct ServerDead {
  std::string id;
  ProcessIdentity process;
};
struct TrainerAttached {
  Rank rank;
  std::string host;
  ProcessIdentity process;
  int32_t world_size = 0;
  uint64_t layout_hash = 0;
  std::string request;
};
// The trainer gave up its place: it will write nothing more there. `finished`: it does not want to be
// replaced.
struct TrainerDetached {
  Rank rank;
  ProcessIdentity process;
  bool finished = false;
  std::string request;
};
// The exit of this process was seen.
struct TrainerDead {
  Rank rank;
  ProcessIdentity process;
};
// A rank that is to join has mapped everything and waits to be taken in.
struct TrainerReady {
  Rank rank;
  ProcessIdentity process;
};
// One of the two numbers.
struct ResizeRequested {
  int32_t servers = 0;  // 0: as they are
  std::string request;  // not empty
  int32_t trainers = 0;
  Step from_step;  // of trainers: not before this one
  // Of trainers: do not wait for the step in hand, which may wait for one that nobody replaces. It is given
  // up and computed again by the ranks that stay. Only down.
  bool give_up_step = false;
};
// Take this server's slot away so that it may be stopped; its place goes to a spare, or M falls by one.
struct DrainRequested {
  std::string id;
  std::string request;  // not empty
};
// It is certain that the assignment proposed under this name takes effect at a step boundary. May be
// repeated.
struct RangesApplied {
  Epoch ranges_epoch;
};
// First event of a coordinator that was restored from a document: repeats what may have been lost.
struct Recovered {};

using Event =
    absl::variant<HostJoined, ServerJoined, ServerLeft, ServerDead, TrainerAttached, TrainerDetached,
                  TrainerDead, TrainerReady, ResizeRequested, DrainRequested, RangesApplied, Recovered>;

// ---- Effects, to be carried out in order.

// Make this the newest document, durably. If somebody else committed this epoch, this coordinator is deposed:
// drop the remaining effects and the state.
struct CommitEpoch {
  EpochDoc doc;
};
// Kill this process and, when its exit is seen, say so (ServerDead, TrainerDead). May come again; is harmless
// then.
struct MustBeDead {
  std::string server_id;  // a server; empty: the trainer of `rank`
  Rank rank;
  std::string host;
  ProcessIdentity process;
};
// Give the blocks to `servers` owners (SlotHosts of the document says where they are) and sum the gradients
// of `trainers` ranks from the next possible step on, under this name. May come again.
struct ProposeAssignment {
  Epoch ranges_epoch;
  int32_t servers = 0;
  int32_t trainers = 0;  // 0: as many as there are
};
// This server owns nothing any more: tell it to exit.
struct RetireServer {
  std::string id;
  std::string host;
  ProcessIdentity process;
};
// The answer to whoever sent `request`.
struct Answer {
  std::string request;
  absl::Status status;
};

using MembershipEffect = absl::variant<CommitEpoch, MustBeDead, ProposeAssignment, RetireServer, Answer>;

struct Outcome {
  std::vector<MembershipEffect> effects;
  std::string reason;  // what was made of the event, for the log; never empty
};

// What is known of the process in a place.
enum class Liveness {
  kVacant,  // nobody has had this place yet
  kAlive,
  kUnverified,  // was there before this coordinator: neither heard from nor seen dead
  kLeft,        // said that it goes (a trainer: detached)
  kDead,        // seen dead
};

// "alive", "left", ...
absl::string_view Show(Liveness liveness);

class MembershipState {
 public:
  struct Config {
    std::string job;
    int32_t expected_servers = 1;  // 1..kMaxServers
    int32_t world_size = 0;        // 1..kMaxWorldSize; 0: whatever the first trainer says
    int32_t hosts =
        1;  // 1..kMaxHosts. Of several, each HostJoined says how many servers and ranks it brings,
            // and the numbers above do not count
  };

  // A job without members.  INVALID_ARGUMENT: a size is out of range.
  static absl::StatusOr<MembershipState> Create(Config config);

  // A job as its newest document left it. Its members count as unverified until they join or attach again, or
  // are seen dead. Apply Recovered first.  DATA_LOSS: the document contradicts itself.
  static absl::StatusOr<MembershipState> Restore(EpochDoc last);

  // What `event` leads to. Never fails: a caller's mistake becomes an Answer with an error (INVALID_ARGUMENT
  // naming field and value; ALREADY_EXISTS: a living process has the place; FAILED_PRECONDITION: not now, and
  // why; NOT_FOUND; RESOURCE_EXHAUSTED), an event about the past a reason. `now` only dates what Describe
  // says.
  Outcome Apply(const Event& event, absl::Time now);

  // What the job waits for, or that it runs: "waiting for 1 more server to join (1 of 2)". One line.
  std::string Describe(absl::Time now) const;
  // Whether Describe names something that is waited for.
  bool waiting() const;

  // The document in force; its epoch is 0 before the first.
  const EpochDoc& doc() const { return doc_; }
  bool formed() const { return doc_.epoch.value() > 0; }

  // REQUIRES: the place is in doc().
  Liveness server_liveness(Slot slot) const { return slots_[slot.value()].liveness; }
  Liveness trainer_liveness(Rank rank) const { return ranks_[rank.value()].liveness; }
  bool trainer_finished(Rank rank) const { return ranks_[rank.value()].finished; }
  bool trainer_ready(Rank rank) const { return ranks_[rank.value()].ready; }
  // Servers without a slot, in the order in which they would get one.
  std::vector<ServerMember> spares() const;

 private:
  // Who takes a place as soon as its last process is seen dead.
  struct Successor {
    std::string id;  // server's; empty for a trainer
    std::string address;
    std::string host;
    ProcessIdentity process;
    std::string request;  // to be answered; empty: was answered before
  };
  struct Place {
    Liveness liveness = Liveness::kVacant;
    absl::Time since = absl::InfinitePast();  // in this liveness
    absl::optional<Successor> successor;
    bool give_to_spare = false;  // server: left or draining, so a spare may have the slot
    bool finished = false;       // trainer: detached for good
    bool ready = false;          // trainer that is to join: waits to be taken in
  };
  // Ids in the order in which they get slots: by length, then by text, so that s2 comes before s10.
  struct IdOrder {
    bool operator()(const std::string& a, const std::string& b) const {
      return a.size() != b.size() ? a.size() < b.size() : a < b;
    }
  };
  using Spares = std::map<std::string, ServerMember, IdOrder>;

  MembershipState() = default;

  void On(const HostJoined& e, Outcome& out);
  void On(const ServerJoined& e, Outcome& out);
  void On(const ServerLeft& e, Outcome& out);
  void On(const ServerDead& e, Outcome& out);
  void On(const TrainerAttached& e, Outcome& out);
  void On(const TrainerDetached& e, Outcome& out);
  void On(const TrainerDead& e, Outcome& out);
  void On(const TrainerReady& e, Outcome& out);
  void On(const ResizeRequested& e, Outcome& out);
  void On(const DrainRequested& e, Outcome& out);
  void On(const RangesApplied& e, Outcome& out);
  void On(const Recovered& e, Outcome& out);

  // membership.cc
  void Advance(Outcome& out);
  void Form(Outcome& out);
  void Commit(std::string reason, Outcome& out);
  // The successor asked again, as `request`: the earlier call has nobody to hear it any more, or is told to
  // stop.
  static void AskAgain(Successor& successor, const std::string& request, Outcome& out);
  void Set(Place& place, Liveness liveness);
  // Adds to what the event led to.
  static void Note(absl::string_view what, Outcome& out);
  // Answers `request`, if anybody waits: with an error or with OK, which is also what the event led to.
  static void Refuse(const std::string& request, absl::Status status, Outcome& out);
  static void Reply(const std::string& request, absl::Status status, Outcome& out);
  static void Accept(const std::string& request, absl::string_view what, Outcome& out);

  // membership_hosts.cc
  bool SeveralHosts() const { return expected_hosts_ > 1; }
  absl::Status CheckHost(const HostJoined& e) const;
  void CompleteHosts(Outcome& out);
  // All hosts and servers are there that the first epoch waits for.
  bool MayForm() const;
  // Whom the first epoch waits for, in words.
  std::string AwaitedToForm() const;
  // The spare that would get a slot on `host` next, or spares_.end().
  Spares::iterator SpareOn(const std::string& host);
  int64_t SparesOn(const std::string& host) const;
  // Name of the host of the slot that would be given after `more` others; empty on one host.
  std::string HostOfNextSlot(int64_t more) const;
  // There are spares for so many further slots, each on its host.
  bool SparesFor(int64_t slots) const;
  // OK if a slot of `host` may go to a process on `other`.
  absl::Status CheckStaysOn(const std::string& host, const std::string& id, const std::string& other) const;
  // OK if the server in `slot` can go without anybody to replace it.
  absl::Status CheckCanDrain(int slot) const;

  // membership_servers.cc
  std::string IdOf(const ProcessIdentity& process, const std::string& host) const;  // empty: none
  // The only ways in which slots and spares change: what is found by name, by process and by what is missing
  // follows.
  void AddSlot(ServerMember member, Liveness liveness);
  void DropLastSlot();
  void SetMember(int slot, ServerMember member);
  void SetLiveness(int slot, Liveness liveness);
  void SetSuccessor(int slot, absl::optional<Successor> successor);
  void SetGiveToSpare(int slot, bool give);
  void NoteUnsettled(int slot);
  void AddSpare(ServerMember member);  // REQUIRES: none has its id
  ServerMember TakeSpare(Spares::iterator spare);
  static std::string Ago(const Place& place, absl::Time now);
  // What Describe says of servers that are waited for.
  void DescribeServers(absl::Time now, std::vector<std::string>* waits) const;
  void JoinSlot(int slot, const ServerJoined& e, Outcome& out);
  void JoinAsSpare(const ServerJoined& e, Outcome& out);
  void Succeed(int slot, Successor successor, Outcome& out);
  void InstallServer(int slot, Outcome& out);
  void FillSlots(Outcome& out);

  // membership_operations.cc
  bool AnswerRepeated(const std::string& request, const std::string& what, Outcome& out);
  std::string Operation() const;
  void Begin(int32_t desired, std::string draining, const std::string& request, Outcome& out);
  void ResizeTrainers(const ResizeRequested& e, const std::string& what, Outcome& out);
  bool JoinersReady() const;
  bool GrantSlots();
  void Propose(Outcome& out) const;
  void FinishOperation(std::string request, std::string what, Outcome& out);
  void DropSlotsPastOwners(Outcome& out);

  // membership_trainers.cc
  absl::Status CheckTrainer(const TrainerAttached& e) const;
  void InstallTrainer(int rank, Outcome& out);
  void AdmitTrainer(int rank);
  void ForgetShapeIfUnused();

  int32_t expected_hosts_ = 1;
  std::vector<HostMember> hosts_;  // by index, before the first epoch; without a name: not come yet
  std::map<std::string, std::string> host_requests_;  // of hosts that wait for the others
  int32_t expected_servers_ = 0;
  int32_t configured_world_size_ = 0;
  EpochDoc doc_;              // as last committed; before the first epoch: what it will contain of trainers
  std::vector<Place> slots_;  // of doc_.servers
  std::vector<Place> ranks_;  // of doc_.trainers
  Spares spares_;
  // Of the above, to be found without looking at all.
  MemberIndex index_;
  std::set<int> unsettled_;      // slots with a successor, or whose server is not known to live
  std::set<int> give_to_spare_;  // slots that a spare may have
  std::map<std::string, std::set<std::string, IdOrder>> spares_on_;  // by host
  std::map<std::string, ProcessIdentity> retired_;                   // told to exit, not yet seen dead
  struct Finished {
    std::string request;
    std::string what;  // empty: not known, it ended before this coordinator
  };
  std::deque<Finished> finished_;  // the latest operations, for repeated requests
  absl::Time now_ = absl::InfinitePast();
};

// One line each, for logs and transcripts.
std::string Show(const Event& event);
std::string Show(const MembershipEffect& effect);

}  // namespace sherd

#endif  // SHERD_CORE_MEMBERSHIP_H_
