// What a model runs between two decode calls, reduced to what they depend on: Q of this layer and the new tokens of
// every sequence in the cache. A plain launch, as most kernels of a model are.
#include <cuda_runtime.h>

#include <cstdint>

namespace {

constexpr int kThreads = 256;  // of a CTA; a thread copies one word, so that the launch is all that takes time

// Sizes in 16-byte words.
struct Step {
  const uint4* q_source;   // [q_words]
  uint4* q;                // [q_words]
  const uint4* k_source;   // [batch, new_tokens, token_words]
  uint4* k;                // [batch, max_tokens, token_words]
  const uint4* v_source;   // as k_source
  uint4* v;                // as k
  const int32_t* seqlens;  // [batch], at least new_tokens: the new tokens are the last
  int32_t batch, max_tokens, new_tokens, q_words, token_words;
};

__global__ void write_step(Step step) {
  const int32_t thread = int32_t(blockIdx.x * blockDim.x + threadIdx.x);
  if (thread < step.q_words) {
    step.q[thread] = step.q_source[thread];
    return;
  }
  const int32_t word = thread - step.q_words;  // of K's source and of V's
  const int32_t seq_words = step.new_tokens * step.token_words;
  if (word >= step.batch * seq_words) return;
  const int32_t seq = word / seq_words;
  const int64_t first_new = int64_t(seq) * step.max_tokens + step.seqlens[seq] - step.new_tokens;
  const int64_t to = first_new * step.token_words + word % seq_words;
  step.k[to] = step.k_source[word];
  step.v[to] = step.v_source[word];
}

}  // namespace

// Queues a step on `stream`. Returns a cudaError_t, 0 for success.
extern "C" int step_launch(const void* q_source, void* q, const void* k_source, void* k, const void* v_source, void* v,
                           const void* seqlens, int batch, int max_tokens, int new_tokens, int q_words, int token_words,
                           void* stream) {
  const auto in = [](const void* p) { return static_cast<const uint4*>(p); };
  const auto out = [](void* p) { return static_cast<uint4*>(p); };
  const Step step{
      in(q_source), out(q),     in(k_source), out(k),  in(v_source), out(v), static_cast<const int32_t*>(seqlens),
      batch,        max_tokens, new_tokens,   q_words, token_words};
  const int words = q_words + batch * new_tokens * token_words;
  write_step<<<(words + kThreads - 1) / kThreads, kThreads, 0, static_cast<cudaStream_t>(stream)>>>(step);
  return cudaGetLastError();
}
