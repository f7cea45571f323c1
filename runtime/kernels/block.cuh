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

// The sum of all lower lanes' values, added in the order of lanes: lane n + 1 has exactly lane n's
// result plus lane n's value, so that the results never fall. `total` is that of a 33rd lane.
template <typename Value>
__device__ Value serial_prefix(Value value, Value* total) {
  Value before = 0, running = 0;
#pragma unroll 4
  for (int lane = 0; lane < 32; ++lane) {
    if (lane == (int)threadIdx.x % 32) before = running;
    running += __shfl_sync(ALL_LANES, value, lane);
  }
  *total = running;
  return before;
}
