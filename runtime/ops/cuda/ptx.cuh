// What the compiler of a GPU has and the one of a CPU has not. No header of the toolkit is needed:
// boards may lack them.
#pragma once

#ifdef __CUDACC__
// FP16 logits as they lie in memory.
__device__ inline float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}

// Exact for what was one.
__device__ inline unsigned short float_to_half(float value) {
  unsigned short bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
  return bits;
}

// 2^x by one instruction, to 2^-22 of itself; below 2^-126: 0.
__device__ inline float power_of_two(float exponent) {
  float value;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(value) : "f"(exponent));
  return value;
}
#endif

constexpr float LOG2_E = 1.44269504f;

__device__ inline float as_float(unsigned short bits) { return half_to_float(bits); }
__device__ inline float as_float(float value) { return value; }
