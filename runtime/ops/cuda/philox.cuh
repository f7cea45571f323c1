// Philox4x32-10, bit for bit what runtime/noise/philox.py computes; the layout of key and counter stands
// there. Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011).
#pragma once

#include "cuda/state.cuh"

enum DrawKind {
  DRAW_TOKEN = 0,
  DRAW_SELECT = 1,
  DRAW_TIME = 2,
  DRAW_CHOICE = 3,
  DRAW_ACCEPT = 7,
  DRAW_DRAFT = 8,
  DRAW_LATENT = 9,
};

constexpr double UNIT = 1.1102230246251565e-16;  // 2^-53

// The four output words of (position, step, kind); the kind's higher bits may say more.
__device__ inline uint4 draw_words(const State* state, unsigned position, unsigned step,
                                   unsigned kind) {
  unsigned key0 = state->seed_low, key1 = state->sample_index;
  unsigned word0 = position, word1 = step, word2 = kind, word3 = state->seed_high;
  for (int round = 0; round < 10; ++round) {
    const unsigned long long product0 = 0xD2511F53ull * word0;
    const unsigned long long product1 = 0xCD9E8D57ull * word2;
    word0 = (unsigned)(product1 >> 32) ^ word1 ^ key0;
    word2 = (unsigned)(product0 >> 32) ^ word3 ^ key1;
    word1 = (unsigned)product1;
    word3 = (unsigned)product0;
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {word0, word1, word2, word3};
}

// The uniform of (position, step, kind), in units of 2^-53.
__device__ inline unsigned long long draw_bits(const State* state, unsigned position,
                                               unsigned step, DrawKind kind) {
  const uint4 words = draw_words(state, position, step, (unsigned)kind);
  return (words.x | ((unsigned long long)words.y << 32)) >> 11;
}

// The same as a number in [0, 1).
__device__ inline double uniform(const State* state, unsigned position, unsigned step,
                                 DrawKind kind) {
  return (double)draw_bits(state, position, step, kind) * UNIT;
}

// A uniform for thread 0, which alone needs it: no board is quick at double precision.
__device__ inline double draw_once(const State* state, int position, DrawKind kind) {
  return threadIdx.x ? 0.0 : uniform(state, position, state->step, kind);
}
