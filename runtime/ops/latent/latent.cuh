// A text's canvas of latents: the device's form of latent/contract.py.
#pragma once

#include "cuda/state.cuh"

struct Latent : State {
  float* latents;      // (rows, width)
  float* before;       // (rows, width)
  float* given;        // (rows, width)
  float* known;        // (rows,)
  float* level;        // (1,)
  const float* table;  // (steps, 5)
  const int* staged;   // mapped: position, known flags (rows)
  int rows;
  int width;
  int num_steps;
};
