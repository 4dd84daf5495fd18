// What the build was made for, where the library itself needs to know.
#pragma once

namespace leanattn {

// There is machine code of sm_90a, whose instructions no other GPU has.
bool built_for_sm90a();

}  // namespace leanattn
