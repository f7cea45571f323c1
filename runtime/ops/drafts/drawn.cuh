// Drafts that are drawn: the distribution of one, what is kept of it until it is verified, and what
// is left of another where it is rejected.
#pragma once

#include "drafts/drafts.cuh"
#include "cuda/philox.cuh"
#include "rows/truncate.cuh"

// The highest logit of a row that is to be drawn from, and the sum of its weights at the temperature,
// in one pass: `mean`, `second` and temperature 1 are no concern of drafts.
template <typename Logit>
__device__ Statistics heated_statistics(const Row<Logit>& row, float scale) {
  Statistics found = {LOWEST, LOWEST, 0, 0, LOWEST, 0, 0};
  float sum = 0;
#pragma unroll 1
  for (int chunk = threadIdx.x / 8; chunk < row.chunks; chunk += blockDim.x / 8) {
    float values[8];
    row.read_any(chunk, values);
    const float before = found.own;
    float high = before;
#pragma unroll
    for (int i = 0; i < 8; ++i) high = fmaxf(high, values[i]);
    found.own = high;
    sum *= power_of_two((before - high) * scale);
#pragma unroll
    for (int i = 0; i < 8; ++i) sum += power_of_two((values[i] - high) * scale);
  }
  reduce_highest(found);
  found.sum = block_sum(sum * power_of_two((found.own - found.top) * scale));
  return found;
}

// Where a row of kept logits has that of an id: the eight that a lane reads in a turn stand together.
__device__ inline int kept_at(int id) { return id / CHUNK * CHUNK + id % 8 * 8 + id % CHUNK / 8; }

__device__ inline void write_wide(float* to, const float (&values)[8]) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    ((uint4*)to)[i] = {__float_as_uint(values[4 * i]), __float_as_uint(values[4 * i + 1]),
                       __float_as_uint(values[4 * i + 2]), __float_as_uint(values[4 * i + 3])};
  }
}
__device__ inline void write_wide(unsigned short* to, const float (&values)[8]) {
  unsigned pairs[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    pairs[i] = float_to_half(values[2 * i]) | (unsigned)float_to_half(values[2 * i + 1]) << 16;
  }
  *(uint4*)to = {pairs[0], pairs[1], pairs[2], pairs[3]};
}

// What a draft was drawn from, as `propose` keeps it until it is verified.
template <typename Weight, typename Logit>
struct Drawn {
  Weight weight;
  Logit* logits;  // (stride,): see `kept_at`

  __device__ float at(int id) const { return weight(as_float(logits[kept_at(id)]), id); }

  // Keeps eight logits of a row and turns them into weights.
  __device__ void turn(int chunk, float (&values)[8]) const {
    const int lane = (int)threadIdx.x % 8;
    write_wide(logits + chunk * CHUNK + 8 * lane, values);
#pragma unroll
    for (int i = 0; i < 8; ++i) values[i] = weight(values[i], chunk * CHUNK + lane + 8 * i);
  }
};

// What p has more than q, both as shares. Where p is 0, and be it behind the row's end, q may be
// anything, NaN too: the higher of NaN and 0 is 0.
template <typename Weight, typename Logit>
struct Residual {
  Weight own;
  Drawn<Weight, Logit> drawn;
  float own_scale, drawn_scale;

  __device__ float left(float weight, float drafted) const {
    return fmaxf(weight * own_scale - drafted * drawn_scale, 0.0f);
  }
  __device__ float operator()(float logit, int id) const {
    return left(own(logit, id), drawn.at(id));
  }
  __device__ void turn(int chunk, float (&values)[8]) const {
    const int lane = (int)threadIdx.x % 8;
    const Logit* from = drawn.logits + chunk * CHUNK + 8 * lane;
    float drafted[8];
    read_wide(from, drafted);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int id = chunk * CHUNK + lane + 8 * i;
      values[i] = left(own(values[i], id), drawn.weight(drafted[i], id));
    }
  }
};

// `sum_chunks` for weights that take a turn's eight logits at once. Whether any of them is above 0,
// to every thread. Kept rows are as long as may be read.
template <typename Logit, typename Turn>
__device__ bool sum_turns(const Row<Logit>& row, float* sums, const Turn& turn) {
  bool some = false;
#pragma unroll 1
  for (int base = threadIdx.x / 32 * 4; base < row.chunks; base += blockDim.x / 8) {
    const int chunk = base + (int)threadIdx.x % 32 / 8;
    float values[8];
    row.read(chunk, values);
    turn.turn(chunk, values);
    float sum = values[0];
#pragma unroll
    for (int i = 1; i < 8; ++i) sum += values[i];
    for (int offset = 1; offset < 8; offset <<= 1) {
      sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    }
    if (threadIdx.x % 8 == 0 && chunk < row.chunks) sums[chunk] = sum;
    some |= sum > 0;
  }
  return block_max(some) > 0;
}

// What draft `index` was drawn from.
template <typename Weight, typename Logit>
__device__ Drawn<Weight, Logit> drawn_of(const Drafts* drafts, int index, const Weight& weight) {
  return {weight, (Logit*)drafts->logits + (long long)index * drafts->stride};
}
template <typename Weight>
__device__ Weight* weight_of(const Drafts* drafts, int index) {
  static_assert(sizeof(Weight) <= WEIGHT_BYTES, "the host allocates as much");
  return (Weight*)(drafts->weights + index * WEIGHT_BYTES);
}
