// The word by which a step tells the host what it changed.
#pragma once

#include "canvas.cuh"

// Packs what a commit changed into one word, which the host reads whole: see cuda_state.py.
__device__ inline void publish(Canvas* canvas, int num_committed, int num_final, bool ended) {
  const unsigned sequence = ++canvas->sequence;
  const unsigned long long word = (unsigned long long)canvas->num_masked |
                                  (unsigned long long)num_committed << 15 |
                                  (unsigned long long)num_final << 30 |
                                  (unsigned long long)ended << 45 |
                                  (unsigned long long)(canvas->error != 0) << 46 |
                                  (unsigned long long)(sequence & 0x1ffff) << 47;
  *(volatile unsigned long long*)&canvas->published[sequence % 4] = word;
  __threadfence_system();
}
