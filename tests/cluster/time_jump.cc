// LD_PRELOAD of it lets the time of day of a process jump: by as many seconds as the file that
// SHERD_TEST_TIME names says, from the moment it says so. CLOCK_MONOTONIC goes on as it is, as in an
// administrator's `date -s`. Waits until a time of day end when that time has come by the clock as it stood
// when they began.
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>

namespace {

template <typename Function>
Function* Next(Function*, const char* name, const char* version = nullptr) {
  void* const found = version != nullptr ? ::dlvsym(RTLD_NEXT, name, version) : ::dlsym(RTLD_NEXT, name);
  if (found == nullptr) ::abort();
  return reinterpret_cast<Function*>(found);
}

// Eight bytes of memory that the test writes.
const std::atomic<int64_t>* Map() {
  static const std::atomic<int64_t> none{0};
  const char* const path = ::getenv("SHERD_TEST_TIME");
  const int fd = path != nullptr ? ::open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (fd < 0) return &none;
  void* const at = ::mmap(nullptr, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
  ::close(fd);
  return at == MAP_FAILED ? &none : static_cast<const std::atomic<int64_t>*>(at);
}

int64_t Jumped() {
  static const std::atomic<int64_t>* const seconds = Map();
  return seconds->load(std::memory_order_relaxed);
}

bool IsTimeOfDay(clockid_t clock) { return clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE; }

// What the kernel takes for a time of day. Others, which count from the start of the machine, stay.
timespec Real(const timespec& at) {
  timespec real = at;
  if (at.tv_sec > 1000000000) real.tv_sec -= Jumped();
  return real;
}

}  // namespace

extern "C" {

int clock_gettime(clockid_t clock, timespec* now) noexcept {
  static const auto next = Next(&clock_gettime, "clock_gettime");
  const int result = next(clock, now);
  if (result == 0 && IsTimeOfDay(clock)) now->tv_sec += Jumped();
  return result;
}

int gettimeofday(timeval* now, void* zone) noexcept {
  static const auto next = Next(&gettimeofday, "gettimeofday");
  const int result = next(now, zone);
  if (result == 0) now->tv_sec += Jumped();
  return result;
}

time_t time(time_t* now) noexcept {
  timespec at;
  clock_gettime(CLOCK_REALTIME, &at);
  if (now != nullptr) *now = at.tv_sec;
  return at.tv_sec;
}

int pthread_cond_timedwait(pthread_cond_t* cond, pthread_mutex_t* mutex, const timespec* until) {
  static const auto next = Next(&pthread_cond_timedwait, "pthread_cond_timedwait", "GLIBC_2.3.2");
  const timespec real = Real(*until);
  return next(cond, mutex, &real);
}

int pthread_cond_clockwait(pthread_cond_t* cond, pthread_mutex_t* mutex, clockid_t clock,
                           const timespec* until) {
  static const auto next = Next(&pthread_cond_clockwait, "pthread_cond_clockwait");
  const timespec real = Real(*until);
  return next(cond, mutex, clock, &real);
}

int sem_timedwait(sem_t* semaphore, const timespec* until) {
  static const auto next = Next(&sem_timedwait, "sem_timedwait");
  const timespec real = Real(*until);
  return next(semaphore, &real);
}

// Abseil's mutexes wait through this.
long syscall(long number, ...) noexcept {
  static const auto next = Next(&syscall, "syscall");
  va_list list;
  va_start(list, number);
  long a[6];
  for (long& argument : a) argument = va_arg(list, long);
  va_end(list);
  const int operation = static_cast<int>(a[1]);
  const bool absolute = (operation & FUTEX_CMD_MASK) == FUTEX_WAIT_BITSET;
  if (number == SYS_futex && absolute && a[3] != 0) {
    const timespec real = Real(*reinterpret_cast<const timespec*>(a[3]));
    return next(number, a[0], a[1], a[2], &real, a[4], a[5]);
  }
  return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

}  // extern "C"
