// Sums of weights in chunks of 64, their running sum, and where it exceeds a share of the total.
//
// Lane j of the eight that share a chunk has the partial sum s_j of unmask/contract.py; three shuffles
// join them in the stated order. Sums of chunks are added up as integers, units of
// 2^-46 of the highest one: to the same in any order, and without arithmetic in double precision,
// of which a board's GPU does a 64th as much.
#pragma once

#include "rows/row.cuh"

constexpr int LIFT = 22;  // below a float's significand; 2^18 chunks can be added up

// What adds up a chunk's weights; some are quicker than one by one.
template <typename Weight>
struct Adder {
  const Weight& weight;

  __device__ Adder(const Weight& weight, int) : weight(weight) {}
  __device__ void operator()(float& sum, float logit, int id) const { sum += weight(logit, id); }
};

// Sums weight(logit, id) over some chunks of a row into `sums`; no thread is behind it on return.
template <typename Logit, typename Weight>
__device__ void sum_some_chunks(const Row<Logit>& row, float* sums, const Weight& weight, int begin,
                                int end) {
#pragma unroll 1
  for (int base = begin + threadIdx.x / 32 * 4; base < end; base += blockDim.x / 8) {
    const int chunk = base + (int)threadIdx.x % 32 / 8;
    float values[8], sum = 0;
    row.read(chunk, values);
    const Adder<Weight> add(weight, chunk);
#pragma unroll
    for (int i = 0; i < 8; ++i) add(sum, values[i], chunk * CHUNK + (int)threadIdx.x % 8 + 8 * i);
    for (int offset = 1; offset < 8; offset <<= 1) {
      sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    }
    if (threadIdx.x % 8 == 0 && chunk < end) sums[chunk] = sum;
  }
  __syncthreads();
}

template <typename Logit, typename Weight>
__device__ void sum_chunks(const Row<Logit>& row, float* sums, const Weight& weight) {
  sum_some_chunks(row, sums, weight, 0, row.chunks);
}

// A weight of at most 2^(exponent - 126) as an integer.
__device__ inline unsigned long long fixed(float weight, unsigned exponent) {
  const unsigned bits = __float_as_uint(weight), down = exponent - (bits >> 23);
  if (bits == 0 || down > 63) return 0;
  return (unsigned long long)((bits & 0x7fffff) | 0x800000) << LIFT >> down;
}

// Where a thread's span of chunks lies in the running sum.
struct Running {
  unsigned long long before, own, total;
  unsigned exponent;  // of the highest chunk sum; 255: one is not finite
  int begin, end;     // of the span

  // A sum as a number. Double precision: for one thread.
  __device__ double amount(unsigned long long sum) const {
    if (exponent == 255) return (double)infinite();
    return ldexp((double)sum, (int)exponent - 150 - LIFT);
  }
};

__device__ inline Running run_up(const float* sums, int chunks) {
  Running at;
  const int span = (chunks + (int)blockDim.x - 1) / (int)blockDim.x;
  at.begin = min((int)threadIdx.x * span, chunks), at.end = min(at.begin + span, chunks);
  unsigned high = 0;
#pragma unroll 1  // few turns, and what unrolling needs would be held all along
  for (int chunk = at.begin; chunk < at.end; ++chunk) {
    high = max(high, __float_as_uint(sums[chunk]));
  }
  at.exponent = min(block_max(high) >> 23, 255u);  // NaN may have a sign
  at.own = 0;
#pragma unroll 1
  for (int chunk = at.begin; chunk < at.end; ++chunk) at.own += fixed(sums[chunk], at.exponent);
  at.before = block_sum_before(at.own, &at.total);
  return at;
}

// The sum of all weights: infinite if one is, or NaN. Leaves the chunks' in `sums`.
template <typename Logit, typename Weight>
__device__ double sum_weights(const Row<Logit>& row, float* sums, const Weight& weight) {
  __shared__ double amount;
  sum_chunks(row, sums, weight);
  const Running at = run_up(sums, row.chunks);
  if (threadIdx.x == 0) amount = at.amount(at.total);
  __syncthreads();
  const double result = amount;
  __syncthreads();
  return result;
}

// The first id in a chunk at which the running sum exceeds `target`; the last weight above 0 where
// none does, since the chunk's own sum was rounded. One warp.
template <typename Logit, typename Weight>
__device__ int locate_within(const Row<Logit>& row, int chunk, const Weight& weight,
                             unsigned long long before, unsigned long long target,
                             unsigned exponent) {
  const int lane = threadIdx.x % 32, id = chunk * CHUNK + 2 * lane;
  const float one = id < row.rows->vocab ? weight(row.at(id), id) : 0.0f;
  const float two = id + 1 < row.rows->vocab ? weight(row.at(id + 1), id + 1) : 0.0f;
  const unsigned long long first = fixed(one, exponent), both = first + fixed(two, exponent);
  before += warp_sum_before(both);
  const unsigned reached = __ballot_sync(ALL_LANES, before + both > target);
  const unsigned some = __ballot_sync(ALL_LANES, one > 0 || two > 0);
  // The lowest lane that reached it, or the highest one that has a weight.
  const int source = reached ? 31 - __clz(reached & -reached) : 31 - __clz(some | 1);
  const bool is_first = reached ? before + first > target : !(two > 0);
  return __shfl_sync(ALL_LANES, is_first ? id : id + 1, source);
}

// The first id at which the running sum of weights exceeds `share` of the total plus `offset`, which
// are thread 0's. Sums of chunks come from `sum_chunks`. A weight of 0 is never taken while another
// is not.
template <typename Logit, typename Weight>
__device__ int locate(const Row<Logit>& row, const float* sums, const Weight& weight, double share,
                      double offset) {
  __shared__ int found_chunk, found_id;
  __shared__ unsigned long long found_before, found_target;
  const Running at = run_up(sums, row.chunks);
  if (threadIdx.x == 0) {
    const double target = share * (double)at.total + offset / at.amount(1);
    found_target = min((unsigned long long)target, at.total - 1);
    found_chunk = 0, found_before = 0;
  }
  __syncthreads();
  const unsigned long long target = found_target;
  if (at.before <= target && at.before + at.own > target) {
    unsigned long long running = at.before;
    for (int chunk = at.begin; chunk < at.end; ++chunk) {
      const unsigned long long own = fixed(sums[chunk], at.exponent);
      if (running + own > target) {
        found_chunk = chunk, found_before = running;
        break;
      }
      running += own;
    }
  }
  __syncthreads();
  if (threadIdx.x < 32) {
    const int id = locate_within(row, found_chunk, weight, found_before, target, at.exponent);
    if (threadIdx.x == 0) found_id = id;
  }
  __syncthreads();
  const int id = found_id;
  __syncthreads();
  return id;
}
