// Kernels that show what others keep to themselves.
#include "cuda/philox.cuh"
#include "cuda/ptx.cuh"

// out[kind, index]: the uniforms of positions 0, 1, ... in the canvas's step.
extern "C" __global__ void uniforms(double* out, const State* canvas, unsigned long long count) {
  for (unsigned long long index = threadIdx.x; index < 4 * count; index += blockDim.x) {
    const unsigned position = canvas->position + (unsigned)(index % count);
    out[index] = uniform(canvas, position, canvas->step, (DrawKind)(index / count));
  }
}

// out[bits]: every half as a float.
extern "C" __global__ void halves(float* out) {
  for (unsigned bits = threadIdx.x; bits < 65536; bits += blockDim.x) {
    out[bits] = half_to_float((unsigned short)bits);
  }
}

// Every operation that the emulation offers but no shipped kernel uses.
extern "C" __global__ void votes(unsigned* out) {
  const unsigned ballot = __ballot_sync(0xffffffffu, threadIdx.x % 3 == 0);
  const int any = __any_sync(0xffffffffu, threadIdx.x == 40);
  out[2 * threadIdx.x] = ballot;
  out[2 * threadIdx.x + 1] = any;
}

// Half the block waits for the other half, which never comes.
extern "C" __global__ void deadlock(unsigned* out) {
  if (threadIdx.x % 2) __shfl_sync(0xffffffffu, out[0], 0);
  __syncthreads();
}

// Neighbours read each other's words without having met.
extern "C" __global__ void race(unsigned* out) {
  __shared__ unsigned words[64];
  words[threadIdx.x] = 0;
  __syncthreads();
  words[threadIdx.x] = threadIdx.x + 1;
  out[threadIdx.x] = words[(threadIdx.x + 1) % 64];
}
