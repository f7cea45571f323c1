// A text whose free positions move; the device's form of transition/contract.py.
#pragma once

#include "canvas/canvas.cuh"

struct Transition : Canvas {
  const double* transition;  // (num_steps, 5): sigma, gain, offset, stay, slope
  float* sigma;              // (1,): the noise that the next run sees
  int num_steps;
};

// Whether no position is final before the last step: there is no mask.
__device__ inline bool floats(const Transition* canvas) { return canvas->mask_token_id < 0; }
