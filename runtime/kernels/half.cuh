// FP16 logits as they lie in memory. No header of the toolkit is needed: boards may lack them.
#pragma once

#ifdef __CUDACC__
__device__ inline float half_to_float(unsigned short bits) {
  float value;
  asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
  return value;
}
#endif

__device__ inline float as_float(unsigned short bits) { return half_to_float(bits); }
__device__ inline float as_float(float value) { return value; }
