// Reductions over a thread block of whole warps; every thread calls them and gets the result.
#pragma once

constexpr unsigned ALL_LANES = 0xffffffffu;
constexpr int MAX_WARPS = 32;

template <typename Value>
__device__ Value block_sum(Value value) {
  __shared__ Value partial[MAX_WARPS];
  for (int offset = 16; offset; offset >>= 1) value += __shfl_xor_sync(ALL_LANES, value, offset);
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  Value total = 0;
  for (int warp = 0; warp < (int)blockDim.x / 32; ++warp) total += partial[warp];
  __syncthreads();
  return total;
}

__device__ inline unsigned block_max(unsigned value) {
  __shared__ unsigned partial[MAX_WARPS];
  for (int offset = 16; offset; offset >>= 1) {
    value = max(value, __shfl_xor_sync(ALL_LANES, value, offset));
  }
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  for (int warp = 0; warp < (int)blockDim.x / 32; ++warp) value = max(value, partial[warp]);
  __syncthreads();
  return value;
}

// The sum of all lower lanes' values.
template <typename Value>
__device__ Value warp_sum_before(Value value) {
  const int lane = threadIdx.x % 32;
  Value before = 0;
  for (int offset = 1; offset < 32; offset <<= 1) {
    const Value other = __shfl_sync(ALL_LANES, before + value, max(lane - offset, 0));
    if (lane >= offset) before += other;
  }
  return before;
}

// The sum of all lower threads' values, and of all.
__device__ inline unsigned long long block_sum_before(unsigned long long value,
                                                      unsigned long long* total) {
  __shared__ unsigned long long partial[MAX_WARPS];
  const int own = threadIdx.x / 32;
  unsigned long long before = warp_sum_before(value), all = 0;
  if (threadIdx.x % 32 == 31) partial[own] = before + value;
  __syncthreads();
  for (int warp = 0; warp < (int)blockDim.x / 32; ++warp) {
    if (warp == own) before += all;
    all += partial[warp];
  }
  __syncthreads();
  *total = all;
  return before;
}
