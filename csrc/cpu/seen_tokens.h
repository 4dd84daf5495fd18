// Which tokens of a sequence any query sees: all, but for those ahead of a window or of a padding. To the schedule a
// sequence is as long as that; what its first token is, only who reads K and V needs to know.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "kernels/params.h"

namespace leanattn::cpu {

class SeenTokens {
 public:
  explicit SeenTokens(const DecodeParams& p) {
    if (!p.scores.hides_tokens()) return;
    const TileLine line = p.line();
    lengths_.resize(p.batch);
    first_.resize(p.batch);
    for (int32_t seq = 0; seq < p.batch; ++seq) {
      const int32_t tokens = line.tokens(seq);
      const int32_t pad = p.scores.leftpad != nullptr ? std::clamp(p.scores.leftpad[seq], 0, tokens) : 0;
      // The window of the first query token reaches back furthest.
      const int64_t in_window = p.scores.window_left < 0 ? tokens : int64_t{p.scores.window_left} + p.q_len;
      lengths_[seq] = static_cast<int32_t>(std::min<int64_t>(tokens - pad, in_window));
      first_[seq] = tokens - lengths_[seq];
    }
  }

  // Lets a call see just these, while they live.
  void apply(DecodeParams& p) const {
    if (lengths_.empty()) return;
    p.seqlens = lengths_.data();
    p.scores.first_tokens = first_.data();
  }

 private:
  std::vector<int32_t> lengths_, first_;  // [batch]
};

}  // namespace leanattn::cpu
