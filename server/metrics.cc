#include "server/metrics.h"

#include <exception>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "prometheus/collectable.h"
#include "prometheus/exposer.h"
#include "prometheus/metric_family.h"
#include "server/rpc_server.h"
#include "server/snapshots.h"

namespace sherd::server {
namespace {

using prometheus::ClientMetric;
using prometheus::MetricFamily;
using prometheus::MetricType;

class Collector final : public prometheus::Collectable {
 public:
  Collector(const Node* node, const CopyWatch* copies) : node_(node), copies_(copies) {}

  std::vector<MetricFamily> Collect() const override {
    std::vector<MetricFamily> out;
    const auto add = [&](const char* name, const char* help, MetricType type, double value) {
      MetricFamily& family = out.emplace_back();
      family.name = name;
      family.help = help;
      family.type = type;
      ClientMetric& metric = family.metric.emplace_back();
      metric.label = {{"job", node_->options().job}, {"server", node_->options().id}};
      (type == MetricType::Counter ? metric.counter.value : metric.gauge.value) = value;
    };
    const auto gauge = [&](const char* name, const char* help, double v) {
      add(name, help, MetricType::Gauge, v);
    };
    const auto counter = [&](const char* name, const char* help, double v) {
      add(name, help, MetricType::Counter, v);
    };
    const std::shared_ptr<Coordinator> coordinator = node_->coordinator();
    gauge("sherd_coordinator", "1 in the server that coordinates the job", coordinator != nullptr);
    if (coordinator != nullptr) {
      const v1::Cluster view = coordinator->View();
      gauge("sherd_waiting", "1 while the job waits for somebody, whom `sherd status` names",
            view.waiting_for().empty() ? 0 : 1);
      AddStalled(coordinator->stalled(), &out);
    }
    if (const CopyWatch::Found found = copies_ != nullptr ? copies_->last() : CopyWatch::Found();
        found.step > 0) {
      gauge("sherd_copies_compared_step", "Step whose copies of the state were compared last",
            static_cast<double>(found.step));
      gauge("sherd_copies_differences", "Places in which they differed", found.differences);
    }
    if (absl::StatusOr<runtime::JobMemory*> memory = node_->home().Memory(); memory.ok()) {
      const absl::StatusOr<StepId> done = (*memory)->DoneByAll();
      gauge("sherd_step", "Optimizer updates stored by all owners",
            done.ok() ? static_cast<double>(done->step.value()) : 0);
      gauge("sherd_epoch", "Membership generation", static_cast<double>((*memory)->control().epoch.load()));
      const LossScale scale = (*memory)->CurrentLossScale();
      gauge("sherd_loss_scale", "What the next step multiplies its loss by", scale.scale);
      gauge("sherd_skipped_steps", "Steps of the job without an update because a gradient was not finite",
            static_cast<double>(scale.skipped));
      gauge("sherd_snapshots_open", "Snapshots that hold memory",
            static_cast<double>(Snapshots::List(**memory).size()));
    }
    node_->ReadEngine([&](const Engine& engine) {
      const Engine::Progress p = engine.progress();
      const BlockWorkCounters& c = engine.counters();
      gauge("sherd_owned_elements", "Elements of the layout that this server owns",
            static_cast<double>(p.owned_elements));
      counter("sherd_commits_total", "Steps stored", static_cast<double>(p.commits));
      counter("sherd_skips_total", "Steps without an update because a gradient was not finite",
              static_cast<double>(p.skips));
      counter("sherd_rejects_total", "Steps that ranks disagreed on", static_cast<double>(p.rejects));
      counter("sherd_reduce_bytes_total", "Bytes read and written by reductions",
              static_cast<double>(c.reduce_bytes.load()));
      counter("sherd_apply_bytes_total", "Bytes read and written by updates",
              static_cast<double>(c.apply_bytes.load()));
      counter("sherd_reduce_seconds_total", "Time in reductions",
              static_cast<double>(c.reduce_ns.load()) * 1e-9);
      counter("sherd_apply_seconds_total", "Time in updates", static_cast<double>(c.apply_ns.load()) * 1e-9);
    });
    return out;
  }

 private:
  // One metric for each member, named by its labels.
  void AddStalled(const std::vector<StallWatch::Stalled>& stalled, std::vector<MetricFamily>* out) const {
    MetricFamily family;
    family.name = "sherd_stalled_seconds";
    family.help = "For how long a member that others wait for has lived without moving";
    family.type = MetricType::Gauge;
    for (const StallWatch::Stalled& s : stalled) {
      ClientMetric& metric = family.metric.emplace_back();
      metric.label = {{"job", node_->options().job},
                      {"kind", s.trainer ? "trainer" : "server"},
                      {s.trainer ? "rank" : "slot", absl::StrCat(s.place)},
                      {"step", absl::StrCat(s.step.value())},
                      {"unit", s.unit < 0 ? "" : absl::StrCat(s.unit)}};
      metric.gauge.value = absl::ToDoubleSeconds(s.since);
    }
    out->push_back(std::move(family));
  }

  const Node* const node_;
  const CopyWatch* const copies_;
};

}  // namespace

struct Metrics::Impl {
  std::shared_ptr<Collector> collector;
  std::unique_ptr<prometheus::Exposer> exposer;
};

Metrics::Metrics(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Metrics::~Metrics() = default;

absl::StatusOr<std::unique_ptr<Metrics>> Metrics::Start(const std::string& address, bool allow_remote,
                                                        const Node* node, const CopyWatch* copies) {
  if (absl::Status s = CheckTcpAddress(address, allow_remote); !s.ok()) return s;
  auto impl = std::make_unique<Impl>();
  impl->collector = std::make_shared<Collector>(node, copies);
  try {
    impl->exposer = std::make_unique<prometheus::Exposer>(address, /*num_threads=*/1);
    impl->exposer->RegisterCollectable(impl->collector);
  } catch (const std::exception& e) {
    return absl::AlreadyExistsError(absl::StrCat("cannot serve metrics on ", address, ": ", e.what()));
  }
  return std::unique_ptr<Metrics>(new Metrics(std::move(impl)));
}

}  // namespace sherd::server
