// flock(2) that signals do not interrupt.
//
//   if (Flock(fd, LOCK_EX | LOCK_NB) != 0) ...   // errno says why: EWOULDBLOCK when another holds it
//
// The lock belongs to the open file: it goes when the last descriptor of it is closed, also in children
// forked without exec, and so at the latest with the processes that have it.
#ifndef SHERD_RUNTIME_FLOCK_H_
#define SHERD_RUNTIME_FLOCK_H_

#include <sys/file.h>

#include <cerrno>

namespace sherd::runtime {

// 0, or -1 and errno, as flock. Blocks until the lock is there, unless `operation` has LOCK_NB.
inline int Flock(int fd, int operation) {
  int rc;
  do {
    rc = ::flock(fd, operation);
  } while (rc != 0 && errno == EINTR);
  return rc;
}

}  // namespace sherd::runtime

#endif  // SHERD_RUNTIME_FLOCK_H_
