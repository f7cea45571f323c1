// How the rows of logits of one text are drawn from: the device's form of rows/contract.py.
#pragma once

#include "cuda/state.cuh"

struct Rows : State {
  const unsigned* permitted;  // (1 or block, 2 chunks): bit j of word w admits token 32 w + j
  const float* bias;          // (vocab,) or null
  unsigned char* seen;        // (vocab,) or null
  float* sums;                // (block, chunks): working memory
  double top_p;               // 1: everything
  int block;                  // rows
  int vocab;
  int chunks;                 // ceil(vocab / 64)
  int permitted_stride;       // words from one row's bits to the next one's; 0: shared
  int top_k;                  // 0: everything
  int greedy;
  int processed;              // whether there is `bias` or `seen`
  float inverse_temperature;
  float penalty;
  float inverse_penalty;
};

// A launch has `block` thread blocks per text: the row of this one.
__device__ inline int own_row(const Rows* rows) { return own_block(rows->block); }
