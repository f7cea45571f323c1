// Drafts that are drawn: the distribution of one, what is kept of it until it is verified, and what
// is left of another where it is rejected.
#pragma once

#include "drafts.cuh"
#include "philox.cuh"
#include "truncate.cuh"

// A uniform for thread 0, which alone needs it: no board is quick at double precision.
__device__ inline double draw_once(const Canvas* canvas, int position, DrawKind kind) {
  return threadIdx.x ? 0.0 : uniform(canvas, position, canvas->step, kind);
}

// Whether top-k or top-p leave some weights out.
__device__ inline bool takes_some(const Canvas* canvas) {
  return (canvas->top_k > 0 && canvas->top_k < canvas->vocab) || canvas->top_p < 1.0;
}

// The highest logit of a row that is to be drawn from, and the sum of its weights at the temperature,
// in one pass: `mean`, `second` and temperature 1 are no concern of drafts.
template <typename Logit>
__device__ Statistics heated_statistics(const Row<Logit>& row, float scale) {
  Statistics found = {LOWEST, LOWEST, 0, 0, LOWEST, 0};
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

// What draft `index` was drawn from, as `propose` keeps it: logits, weights, and the sum of these.
template <typename Logit>
__device__ Logit* logits_of(const Drafts* drafts, int index) {
  return (Logit*)drafts->logits + (long long)index * drafts->stride;
}
template <typename Weight>
__device__ Weight* weight_of(const Drafts* drafts, int index) {
  static_assert(sizeof(Weight) <= WEIGHT_BYTES, "the host allocates as much");
  return (Weight*)(drafts->weights + index * WEIGHT_BYTES);
}

// Copies a row, eight logits at once where that can be.
template <typename Logit>
__device__ void keep_row(const Row<Logit>& row, Logit* target) {
  constexpr int WORDS = 8 * sizeof(Logit) / sizeof(uint4);
  const int size = row.canvas->vocab, groups = row.wide ? size / 8 : 0;
#pragma unroll 1
  for (int group = threadIdx.x; group < groups; group += blockDim.x) {
#pragma unroll
    for (int i = WORDS * group; i < WORDS * (group + 1); ++i) {
      ((uint4*)target)[i] = ((const uint4*)row.logits)[i];
    }
  }
#pragma unroll 1
  for (int i = 8 * groups + (int)threadIdx.x; i < size; i += blockDim.x) target[i] = row.logits[i];
}

// What p has more than q, both as shares. Where p is 0, and be it behind the row's end, q may be
// anything, NaN too: the higher of NaN and 0 is 0.
template <typename Weight, typename Logit>
struct Residual {
  Weight own, drafted;
  const Logit* logits;  // (stride,): those drafted from
  float own_scale, drafted_scale;

  __device__ float operator()(float logit, int id) const {
    const float less = drafted(as_float(logits[id]), id) * drafted_scale;
    return fmaxf(own(logit, id) * own_scale - less, 0.0f);
  }
};
