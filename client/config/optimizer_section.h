// The sections `optimizer` and `scheduler`: which parameters each kind has, and what they become.
#ifndef SHERD_CLIENT_CONFIG_OPTIMIZER_SECTION_H_
#define SHERD_CLIENT_CONFIG_OPTIMIZER_SECTION_H_

#include "client/config/program_values.h"
#include "client/config/training_config.h"
#include "client/config/value_source.h"

namespace sherd::config {

// Fills out->optimizer and has_optimizer. What is wrong, from.status() tells: a kind that is not there, a
// parameter that the kind does not have.
void ResolveOptimizer(ValueSource& from, const ProgramValues& program, TrainingConfig* out);

// Fills out->schedule; after ResolveOptimizer. `complete`: the program's values are all there, so that a
// value that nobody gave is an error.
void ResolveScheduler(ValueSource& from, const ProgramValues& program, bool complete, TrainingConfig* out);

// The file's schedule would cycle momentum, and its optimizer has no betas.
bool CyclesInVain(const TrainingConfig& asked);

}  // namespace sherd::config

#endif  // SHERD_CLIENT_CONFIG_OPTIMIZER_SECTION_H_
