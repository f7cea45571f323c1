// One row of logits: processing, statistics in one pass, and sums in chunks of 64.
//
// Eight lanes share a chunk: lane j reads elements j, j + 8, ..., so that its sum is the partial
// sum s_j that runtime/ops/base.py documents, and three shuffles join them in the stated order.
#pragma once

#include "block.cuh"
#include "canvas.cuh"
#include "half.cuh"

constexpr int CHUNK = 64;
__device__ inline float infinite() { return __uint_as_float(0x7f800000u); }

// A call of its own: divisions inlined for every element made the kernels several times larger.
__device__ __noinline__ inline float penalise(float logit, float penalty) {
  return logit > 0 ? logit / penalty : logit * penalty;
}

// What a row is read from: an array of logits, or two that are added up.
template <typename Logit>
struct Source {
  using Type = const Logit*;
};

// Logits of type Mixed<Logit> are those of one row and a share of another's.
template <typename Logit>
struct Mixed {};

template <typename Logit>
struct Mixture {
  const Logit* own;
  const Logit* other;  // null: the own row alone
  float share;         // of the own one
  float rest;          // of the other

  __device__ float operator[](int id) const {
    const float value = as_float(own[id]);
    return other ? share * value + rest * as_float(other[id]) : value;
  }
};

template <typename Logit>
struct Source<Mixed<Logit>> {
  using Type = Mixture<Logit>;
};

template <typename Logit>
struct Row {
  typename Source<Logit>::Type logits;  // (vocab,)
  const Canvas* canvas;
  const unsigned* permitted;  // (2 chunks,), zero behind the vocabulary's end

  // Adds the bias and applies the repetition penalty.
  __device__ float process(float logit, int id) const {
    if (canvas->bias) logit += canvas->bias[id];
    if (canvas->seen && canvas->seen[id]) logit = penalise(logit, canvas->penalty);
    return logit;
  }

  __device__ float at(int id) const {
    if (!(permitted[id / 32] >> (id % 32) & 1)) return -infinite();
    return process(as_float(logits[id]), id);
  }

  // Reads elements first, first + 8, ..., of a chunk; -inf for those not permitted.
  __device__ void read(int chunk, float (&values)[8]) const {
    const int lane = threadIdx.x % 8;
    const bool inside = chunk < canvas->chunks;
    const unsigned low = inside ? permitted[2 * chunk] >> lane : 0;
    const unsigned high = inside ? permitted[2 * chunk + 1] >> lane : 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int id = chunk * CHUNK + lane + 8 * i;
      const bool valid = (i < 4 ? low >> (8 * i) : high >> (8 * i - 32)) & 1;
      values[i] = valid ? as_float(logits[id]) : -infinite();
      if (valid && (canvas->bias || canvas->seen)) values[i] = process(values[i], id);
    }
  }
};

// What is known of a row at temperature 1; `sum` and `mean` are relative to `top`.
struct Statistics {
  float top;     // highest logit
  float second;  // second highest, equal to it for a tie
  int id;        // the lowest id of the highest
  double sum;    // of exp(l - top)
  double mean;   // of exp(l - top) (l - top)
};

__device__ inline void join_highest(Statistics& own, float top, float second, int id) {
  if (top > own.top || (top == own.top && id < own.id)) {
    own.second = fmaxf(own.top, second);
    own.top = top;
    own.id = id;
  } else {
    own.second = fmaxf(own.second, top);
  }
}

// Gives the block's first, its id and its second to all threads.
__device__ inline void reduce_highest(Statistics& own) {
  __shared__ float tops[MAX_WARPS], seconds[MAX_WARPS];
  __shared__ int ids[MAX_WARPS];
  for (int offset = 16; offset; offset >>= 1) {
    const float top = __shfl_xor_sync(ALL_LANES, own.top, offset);
    const float second = __shfl_xor_sync(ALL_LANES, own.second, offset);
    const int id = __shfl_xor_sync(ALL_LANES, own.id, offset);
    join_highest(own, top, second, id);
  }
  if (threadIdx.x % 32 == 0) {
    tops[threadIdx.x / 32] = own.top;
    seconds[threadIdx.x / 32] = own.second;
    ids[threadIdx.x / 32] = own.id;
  }
  __syncthreads();
  own.top = tops[0], own.second = seconds[0], own.id = ids[0];
  for (int warp = 1; warp < (int)blockDim.x / 32; ++warp) {
    join_highest(own, tops[warp], seconds[warp], ids[warp]);
  }
  __syncthreads();
}

// One pass over a row. A NaN anywhere permitted makes `sum` NaN.
template <typename Logit>
__device__ Statistics statistics(const Row<Logit>& row) {
  Statistics own = {-infinite(), -infinite(), 0x7fffffff, 0, 0};
  float sum = 0, mean = 0;
  for (int chunk = threadIdx.x / 8; chunk < row.canvas->chunks; chunk += blockDim.x / 8) {
    float values[8];
    row.read(chunk, values);
    const float before = own.top;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      own.second = fmaxf(own.second, fminf(values[i], own.top));
      if (values[i] > own.top) {
        own.top = values[i];
        own.id = chunk * CHUNK + (int)threadIdx.x % 8 + 8 * i;
      }
    }
    const float reference = own.top == -infinite() ? 0 : own.top;
    if (before != own.top && before != -infinite()) {
      const float scale = expf(before - own.top);
      mean = scale * (mean + sum * (before - own.top));
      sum *= scale;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float weight = expf(values[i] - reference);
      sum += weight;
      mean += weight * fmaxf(values[i] - reference, -200.0f);  // 0 times -inf would be NaN
    }
  }
  const float mine = own.top;
  reduce_highest(own);
  const float shift = mine == -infinite() ? 0 : mine - own.top;
  const double scale = expf(shift);
  own.mean = block_sum(scale * ((double)mean + (double)sum * shift));
  own.sum = block_sum(scale * sum);
  return own;
}

// Sums weight(logit, id) over every chunk of a row into `sums`; no thread is behind it on return.
template <typename Logit, typename Weight>
__device__ void sum_chunks(const Row<Logit>& row, float* sums, const Weight& weight) {
  for (int base = threadIdx.x / 32 * 4; base < row.canvas->chunks; base += blockDim.x / 8) {
    const int chunk = base + (int)threadIdx.x % 32 / 8;
    float values[8], sum = 0;
    row.read(chunk, values);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float one = weight(values[i], chunk * CHUNK + (int)threadIdx.x % 8 + 8 * i);
      sum = i ? sum + one : one;
    }
    for (int offset = 1; offset < 8; offset <<= 1) {
      sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    }
    if (threadIdx.x % 8 == 0 && chunk < row.canvas->chunks) sums[chunk] = sum;
  }
  __syncthreads();
}

// The first id at which the running sum of weights exceeds `share` of the total plus `offset`.
// Sums of chunks come from `sum_chunks`. A weight of 0 is never taken while another is not.
template <typename Logit, typename Weight>
__device__ int locate(const Row<Logit>& row, const float* sums, const Weight& weight, double share,
                      double offset) {
  __shared__ float within[CHUNK];
  __shared__ int found_chunk, found_id;
  __shared__ double found_before, found_target;
  if (threadIdx.x < 32) {
    const int lane = threadIdx.x, chunks = row.canvas->chunks, span = (chunks + 31) / 32;
    const int begin = min(lane * span, chunks), end = min(begin + span, chunks);
    double own = 0, total;
    for (int chunk = begin; chunk < end; ++chunk) own += sums[chunk];
    const double before = serial_prefix(own, &total);
    const double target = share * total + offset;
    if (before <= target && before + own > target) {
      double running = before;
      for (int chunk = begin; chunk < end; ++chunk) {
        if (sums[chunk] > 0) found_chunk = chunk, found_before = running;
        running += sums[chunk];
        if (running > target) break;
      }
      found_target = target;
    }
    __syncwarp();
    const int base = found_chunk * CHUNK;
    for (int i = lane; i < CHUNK; i += 32) {
      within[i] = base + i < row.canvas->vocab ? weight(row.at(base + i), base + i) : 0.0f;
    }
    __syncwarp();
    if (lane == 0) {
      double running = found_before;
#pragma unroll 4
      for (int i = 0; i < CHUNK; ++i) {
        if (within[i] > 0) found_id = base + i;
        running += within[i];
        if (running > found_target) break;
      }
    }
  }
  __syncthreads();
  const int id = found_id;
  __syncthreads();
  return id;
}
