// An append call on the CPU, token by token.
#pragma once

#include "kernels/append.h"

namespace leanattn::cpu {

// Writes new token `token` of a sequence, in any thread and in any order; one of padding it leaves alone. Every place
// must be one that is written, or padding: the caller has looked at all of them.
void append_token(const AppendParams& params, int32_t seq, int32_t token);

}  // namespace leanattn::cpu
