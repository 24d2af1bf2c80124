// Tells of files that come, change their name or go in one directory, without polling (inotify).
//
//   auto watch = DirWatch::Start(dir_fd, path, [](const std::string& file) { ... });
//
// For directories whose files are put in place whole (link, rename): writing into a file in place is not
// reported.
#ifndef SHERD_RUNTIME_DIR_WATCH_H_
#define SHERD_RUNTIME_DIR_WATCH_H_

#include <functional>
#include <memory>
#include <set>
#include <string>
#include <thread>

#include "absl/status/statusor.h"
#include "runtime/unique_fd.h"

namespace sherd::runtime {

class DirWatch {
 public:
  using Callback = std::function<void(const std::string& file)>;

  // Calls `callback` with the name of every file that appears, is replaced or disappears after Start returns,
  // in order, on a thread of the watch. If the kernel drops events (a very slow callback), every file that is
  // or was there is told. Nothing more happens after the directory is removed. RESOURCE_EXHAUSTED at the
  // user's limit of inotify instances (raise fs.inotify.max_user_instances). `path` is for messages.
  static absl::StatusOr<std::unique_ptr<DirWatch>> Start(int dir_fd, const std::string& path,
                                                         Callback callback);

  // Afterwards the callback does not run and never will. Not to be called from the callback.
  ~DirWatch();

 private:
  DirWatch(UniqueFd dir, UniqueFd inotify, UniqueFd stop, std::set<std::string> known, Callback callback);
  void Run();
  // False when the watch ended meanwhile.
  bool ReadEvents();
  void TellAll();

  const UniqueFd dir_;
  const UniqueFd inotify_;
  const UniqueFd stop_;
  std::set<std::string> known_;  // the thread's
  const Callback callback_;
  std::thread thread_;  // last: starts when all the rest is there
};

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_DIR_WATCH_H_
