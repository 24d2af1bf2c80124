// What the example programs fix about their process before any tensor exists.
#ifndef SHERD_CLIENT_EXAMPLES_PROCESS_SETUP_H_
#define SHERD_CLIENT_EXAMPLES_PROCESS_SETUP_H_

namespace sherd::examples {

// One thread for libtorch unless OMP_NUM_THREADS says otherwise, and for OpenBLAS, which libtorch's setting
// does not reach, unless OPENBLAS_NUM_THREADS or OMP_NUM_THREADS does: results depend on the number of
// threads, so it is not left to the machine's size. Also keeps freed memory in the process, where malloc
// would give every large gradient back to the system and fault it in again, unless GLIBC_TUNABLES is set.
// Call first in main.
void SetUpProcess();

}  // namespace sherd::examples

#endif  // SHERD_CLIENT_EXAMPLES_PROCESS_SETUP_H_
