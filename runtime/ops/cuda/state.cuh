// The state of a text: what its draws are keyed by, and the words by which it reports its steps.
// The structures of primitives derive from it; whatever changes from step to step is in them, in
// device memory, so that no launch argument does and a step can be captured once.
// runtime/ops/cuda/state.py reads the layouts from the headers: one member a line, and no gap at
// the end of a structure that others derive from.
#pragma once

struct State {
  unsigned long long* published;  // mapped: the last 4 progress words
  unsigned sequence;              // progress words published
  unsigned seed_low;
  unsigned seed_high;
  unsigned sample_index;
  int position;                   // absolute, of the first row
  int step;
  int num_masked;                 // rows still to commit; 0: no step changes anything
  int error;                      // 1 + a row that cannot be sampled; 0: none
};

// One text of a launch: how far, in bytes, its state and its data lie behind those of the first text,
// which are what the launch is given.
struct Text {
  long long state;
  long long first;   // of the launch's data
  long long second;  // of its other data, if there are two kinds
};

// A launch has as many thread blocks for each text: the text of this one, and its number there.
__device__ inline const Text* own_text(const Text* texts, long long blocks) {
  return texts + blockIdx.x / (unsigned)blocks;
}
__device__ inline int own_block(long long blocks) { return blockIdx.x % (unsigned)blocks; }

// A value that all lanes of a warp have: a shuffle says so to the compiler, which then spends no
// register of each lane on it. All lanes call it.
__device__ inline long long uniform_of(long long value) {
  return __shfl_sync(0xffffffffu, value, 0);
}

template <typename Value>
__device__ Value* behind(Value* first, long long bytes) {
  return (Value*)((char*)first + bytes);
}

static_assert(sizeof(void*) == 8, "device pointers are 64 bits wide");

// Packs what a step changed into one word, which the host reads whole: see cuda/state.py.
__device__ inline void publish(State* state, int num_committed, int num_final, bool ended) {
  const unsigned sequence = ++state->sequence;
  const unsigned long long word = (unsigned long long)state->num_masked |
                                  (unsigned long long)num_committed << 15 |
                                  (unsigned long long)num_final << 30 |
                                  (unsigned long long)ended << 45 |
                                  (unsigned long long)(state->error != 0) << 46 |
                                  (unsigned long long)(sequence & 0x1ffff) << 47;
  *(volatile unsigned long long*)&state->published[sequence % 4] = word;
  __threadfence_system();
}
