// One row of logits: processing, and statistics in one pass.
//
// Eight lanes share a chunk of 64. Where the order counts, lane j reads elements j, j + 8, ...: eight
// loads that do not wait for each other; where not, eight neighbours at once if the row's address
// allows. What does not change along a row is read from the state once.
#pragma once

#include "cuda/block.cuh"
#include "cuda/ptx.cuh"
#include "rows/rows.cuh"

// What orders candidates: unmask/contract.py.
enum Score { SCORE_NONE = 0, SCORE_CONFIDENCE = 1, SCORE_ENTROPY = 2, SCORE_MARGIN = 3 };

constexpr int CHUNK = 64;
constexpr float LOWEST = -3.0e38f;   // below any logit that can be sampled
constexpr float NOTHING = -200.0f;   // 2^it is 0, and 0 times it is 0, which does not hold for -inf
__device__ inline float infinite() { return __uint_as_float(0x7f800000u); }

// Divides by the penalty, or multiplies. The quotient's remainder makes it that of a division, to the
// last bit, at a tenth of the code.
__device__ inline float penalise(float logit, float penalty, float inverse) {
  const float quotient = logit * inverse;
  const float divided = fmaf(fmaf(-quotient, penalty, logit), inverse, quotient);
  return logit > 0 ? divided : logit * penalty;
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
  __device__ bool is_wide() const { return false; }
  __device__ Mixture operator+(int id) const {
    return {own + id, other ? other + id : nullptr, share, rest};
  }
};

// Whether a row begins where sixteen bytes can be read at once, and what does so.
template <typename Source>
__device__ bool is_wide(const Source& row) {
  return row.is_wide();
}
__device__ inline bool is_wide(const float* row) { return (unsigned long long)row % 16 == 0; }
__device__ inline bool is_wide(const unsigned short* row) {
  return (unsigned long long)row % 16 == 0;
}

template <typename Logit>
__device__ void read_wide(const Mixture<Logit>&, float (&)[8]) {}  // is never wide
__device__ inline void read_wide(const float* from, float (&values)[8]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint4 words = ((const uint4*)from)[i];
    values[4 * i] = __uint_as_float(words.x), values[4 * i + 1] = __uint_as_float(words.y);
    values[4 * i + 2] = __uint_as_float(words.z), values[4 * i + 3] = __uint_as_float(words.w);
  }
}
__device__ inline void read_wide(const unsigned short* from, float (&values)[8]) {
  const uint4 words = *(const uint4*)from;
  const unsigned pairs[4] = {words.x, words.y, words.z, words.w};
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = half_to_float(pairs[i / 2] >> (16 * (i % 2)));
}

template <typename Logit>
struct Source<Mixed<Logit>> {
  using Type = Mixture<Logit>;
};

template <typename Logit>
struct Row {
  typename Source<Logit>::Type logits;  // (vocab,)
  const unsigned* permitted;            // (2 chunks,), zero behind the vocabulary's end
  const Rows* rows;
  int chunks;
  bool processed;  // whether there is a bias or a penalty
  bool wide;       // whether lanes can read eight elements in a row at once

  // Row `index` of a text.
  __device__ Row(typename Source<Logit>::Type logits, const Rows* rows, int index)
      : logits(logits),
        permitted(rows->permitted + (long long)index * rows->permitted_stride),
        rows(rows),
        chunks(rows->chunks),
        processed(rows->processed),
        wide(is_wide(logits)) {}

  // Adds the bias to elements first, first + step, ..., and applies the repetition penalty.
  template <int COUNT>
  __device__ void process(float (&values)[COUNT], int first, int step) const {
    const float* bias = rows->bias;
    const unsigned char* seen = rows->seen;
    const float penalty = rows->penalty, inverse = rows->inverse_penalty;
#pragma unroll
    for (int i = 0; i < COUNT; ++i) {
      if (!(values[i] > -infinite())) continue;  // not permitted, or NaN
      if (bias) values[i] += bias[first + step * i];
      if (seen && seen[first + step * i]) values[i] = penalise(values[i], penalty, inverse);
    }
  }

  __device__ float at(int id) const {
    if (!(permitted[id / 32] >> (id % 32) & 1)) return -infinite();
    float values[1] = {as_float(logits[id])};
    if (processed) process(values, id, 1);
    return values[0];
  }

  // Reads elements lane, lane + 8, ..., of a chunk; -inf for those not permitted.
  __device__ void read(int chunk, float (&values)[8]) const {
    read_some(chunk, chunk * CHUNK + (int)threadIdx.x % 8, 8, false, values);
  }

  // Reads eight elements of a chunk, in whichever order is quicker; the first is `first(chunk)`, and
  // the others follow it by `step()`.
  __device__ void read_any(int chunk, float (&values)[8]) const {
    read_some(chunk, first(chunk), step(), wide, values);
  }
  __device__ int first(int chunk) const {
    return chunk * CHUNK + (int)threadIdx.x % 8 * (wide ? 8 : 1);
  }
  __device__ int step() const { return wide ? 1 : 8; }

  __device__ void read_some(int chunk, int first, int step, bool at_once,
                            float (&values)[8]) const {
    unsigned low = 0, high = 0;
    if (chunk < chunks) low = permitted[2 * chunk], high = permitted[2 * chunk + 1];
    const auto from = logits + first;
    if ((low & high) != ALL_LANES) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int at = (first + step * i) % CHUNK;
        values[i] = -infinite();
        if ((at < 32 ? low : high) >> (at % 32) & 1) values[i] = as_float(from[step * i]);
      }
    } else if (at_once) {
      read_wide(from, values);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) values[i] = as_float(from[8 * i]);
    }
    if (processed) process(values, first, step);
  }
};

// What is known of a row at temperature 1; `sum` and `mean` are relative to `top`.
struct Statistics {
  float top;     // highest logit; at least LOWEST
  float second;  // second highest, equal to it for a tie; only for SCORE_MARGIN
  float sum;     // of exp(l - top)
  float mean;    // of exp(l - top) (l - top); only for SCORE_ENTROPY
  float own;     // highest logit that this thread has read
  int chunk;     // the first one in which it was
  float warm;    // sum of exp((l - top) / T); only if asked for
};

// Gives the block's first and second to all threads.
__device__ inline void reduce_highest(Statistics& found) {
  __shared__ float tops[MAX_WARPS], seconds[MAX_WARPS];
  float top = found.own, second = found.second;
  for (int offset = 16; offset; offset >>= 1) {
    const float other = __shfl_xor_sync(ALL_LANES, top, offset);
    second = fmaxf(fmaxf(second, __shfl_xor_sync(ALL_LANES, second, offset)), fminf(top, other));
    top = fmaxf(top, other);
  }
  if (threadIdx.x % 32 == 0) tops[threadIdx.x / 32] = top, seconds[threadIdx.x / 32] = second;
  __syncthreads();
  top = tops[0], second = seconds[0];
  for (int warp = 1; warp < (int)blockDim.x / 32; ++warp) {
    second = fmaxf(fmaxf(second, seconds[warp]), fminf(top, tops[warp]));
    top = fmaxf(top, tops[warp]);
  }
  __syncthreads();
  found.top = top, found.second = second;
}

// One pass over a row. A NaN anywhere permitted makes `sum` NaN. `warmth` is log2(e) / T if `warm` is
// wanted, else 0.
template <typename Logit>
__device__ Statistics statistics(const Row<Logit>& row, int score_kind, float warmth = 0) {
  Statistics found = {LOWEST, LOWEST, 0, 0, LOWEST, 0, 0};
  float sum = 0, mean = 0, warm = 0;
#pragma unroll 1
  for (int chunk = threadIdx.x / 8; chunk < row.chunks; chunk += blockDim.x / 8) {
    float values[8];
    row.read_any(chunk, values);
    const float before = found.own;
    float high = before;
    if (score_kind == SCORE_MARGIN) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        found.second = fmaxf(found.second, fminf(values[i], high));
        high = fmaxf(high, values[i]);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) high = fmaxf(high, values[i]);
    }
    if (high > before) found.chunk = chunk;
    found.own = high;
    const float shift = fmaxf(before - high, NOTHING), scale = power_of_two(shift * LOG2_E);
    mean = scale * (mean + sum * shift);
    sum *= scale;
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] -= high;
    if (warmth > 0) {
      warm *= power_of_two(shift * warmth);
#pragma unroll
      for (int i = 0; i < 8; ++i) warm += power_of_two(values[i] * warmth);
    }
    if (score_kind == SCORE_ENTROPY) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float weight = power_of_two(values[i] * LOG2_E);
        sum += weight;
        mean += weight * fmaxf(values[i], NOTHING);
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) sum += power_of_two(values[i] * LOG2_E);
    }
  }
  reduce_highest(found);
  const float shift = fmaxf(found.own - found.top, NOTHING), scale = power_of_two(shift * LOG2_E);
  if (score_kind == SCORE_ENTROPY) found.mean = block_sum(scale * (mean + sum * shift));
  found.sum = block_sum(scale * sum);
  if (warmth > 0) found.warm = block_sum(power_of_two(shift * warmth) * warm);
  return found;
}

// Whether a row can be sampled: no NaN, and something finite above -inf.
__device__ inline bool is_sampled(const Statistics& found) {
  return found.sum > 0 && found.top != infinite();
}

// The lowest id of the highest logit, to every thread.
template <typename Logit>
__device__ int first_highest(const Row<Logit>& row, const Statistics& found) {
  __shared__ int lowest;
  if (threadIdx.x == 0) lowest = 0x7fffffff;
  __syncthreads();
  if (found.own == found.top) {
    float values[8];
    row.read_any(found.chunk, values);
    int id = 0x7fffffff;
#pragma unroll
    for (int i = 7; i >= 0; --i) {
      if (values[i] == found.top) id = row.first(found.chunk) + row.step() * i;
    }
    atomicMin(&lowest, id);
  }
  __syncthreads();
  const int id = lowest;
  __syncthreads();
  return id;
}
