// Guidance: logits of conditional slots, moved away from those of their unconditional twins.
#include "cuda/ptx.cuh"

__device__ inline void store(float* to, float value) { *to = value; }
__device__ inline void store(unsigned short* to, float value) { *to = float_to_half(value); }

// Element by element, u + scale (c - u), over the conditional ones.
template <typename Logit>
__device__ void guide(Logit* conditional, const Logit* unconditional, unsigned long long count,
                      float scale) {
  const unsigned long long all = (unsigned long long)gridDim.x * blockDim.x;
  for (unsigned long long i = blockIdx.x * (unsigned long long)blockDim.x + threadIdx.x; i < count;
       i += all) {
    const float without = as_float(unconditional[i]);
    store(conditional + i, without + scale * (as_float(conditional[i]) - without));
  }
}

extern "C" __global__ void __launch_bounds__(512)
guide_float32(float* conditional, const float* unconditional, unsigned long long count,
              unsigned long long scale_bits) {
  guide(conditional, unconditional, count, __uint_as_float((unsigned)scale_bits));
}

extern "C" __global__ void __launch_bounds__(512)
guide_float16(unsigned short* conditional, const unsigned short* unconditional,
              unsigned long long count, unsigned long long scale_bits) {
  guide(conditional, unconditional, count, __uint_as_float((unsigned)scale_bits));
}
