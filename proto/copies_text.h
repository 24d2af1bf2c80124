// Where copies of a job's state differ, for people.
#ifndef SHERD_PROTO_COPIES_TEXT_H_
#define SHERD_PROTO_COPIES_TEXT_H_

#include <string>

#include "proto/sherd/v1/checkpoint.pb.h"

namespace sherd {

// "h.0.attn.weight exp_avg[5:7]: host 1 differs from hosts 0, 2"
std::string Describe(const v1::CompareCopiesResponse::Difference& difference);

}  // namespace sherd

#endif  // SHERD_PROTO_COPIES_TEXT_H_
