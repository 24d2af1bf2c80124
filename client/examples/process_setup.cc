#include "client/examples/process_setup.h"

#include <ATen/Parallel.h>
#include <dlfcn.h>
#include <malloc.h>

#include <cstdlib>
#include <limits>

namespace sherd::examples {

void SetUpProcess() {
  if (getenv("OMP_NUM_THREADS") == nullptr) {
    at::set_num_threads(1);
    if (getenv("OPENBLAS_NUM_THREADS") == nullptr) {
      // Looked up at run time: which BLAS stands behind libtorch is the system's choice.
      using SetThreads = void (*)(int);
      const auto set_threads = reinterpret_cast<SetThreads>(dlsym(RTLD_DEFAULT, "openblas_set_num_threads"));
      if (set_threads != nullptr) set_threads(1);
    }
  }
  if (getenv("GLIBC_TUNABLES") == nullptr) {
    mallopt(M_MMAP_THRESHOLD, std::numeric_limits<int>::max());
    mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
  }
}

}  // namespace sherd::examples
