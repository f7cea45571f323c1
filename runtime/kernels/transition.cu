// Where every free position goes in a step of score-based diffusion: one thread block per row.
//
// A row's log-ratios are read once for their sum, once more where the step has an offset, and again
// by the rows that move only. The formulas stand in runtime/transition.py.
#include "canvas.cuh"
#include "philox.cuh"
#include "row.cuh"
#include "truncate.cuh"

// exp(l) but for the token that stands there; keeps NaN.
struct Ratio {
  int own;

  __device__ float operator()(float logit, int id) const { return id == own ? 0.0f : expf(logit); }
};

struct Lowered {
  Ratio ratio;
  float floor;

  __device__ float operator()(float logit, int id) const {
    return id == ratio.own ? 0.0f : fmaxf(ratio(logit, id) - floor, 0.0f);
  }
};

// A call of its own: inlined for every element it made the kernels several times larger.
__device__ __noinline__ inline float power(float base, float exponent) {
  return powf(base, exponent);
}

// A lowered ratio as a share of the highest one, to the power 1 / T: in [0, 1].
struct Sharpened {
  Lowered lowered;
  float scale, inverse_temperature;

  __device__ float operator()(float logit, int id) const {
    const float share = lowered(logit, id) * scale;
    return inverse_temperature == 1.0f ? share : power(share, inverse_temperature);
  }
};

template <typename Logit, typename Weight>
__device__ double sum_weights(const Row<Logit>& row, float* sums, const Weight& weight) {
  sum_chunks(row, sums, weight);
  double own = 0;
  for (int chunk = threadIdx.x; chunk < row.canvas->chunks; chunk += blockDim.x) own += sums[chunk];
  return block_sum(own);
}

// The highest weight and the lowest id that has it, to every thread.
template <typename Logit, typename Weight>
__device__ Statistics highest(const Row<Logit>& row, const Weight& weight) {
  Statistics own = {-infinite(), -infinite(), 0x7fffffff, 0, 0};
  for (int chunk = threadIdx.x / 8; chunk < row.canvas->chunks; chunk += blockDim.x / 8) {
    float values[8];
    row.read(chunk, values);
    for (int i = 0; i < 8; ++i) {
      const int id = chunk * CHUNK + (int)threadIdx.x % 8 + 8 * i;
      const float value = weight(values[i], id);
      if (value > own.top) own.top = value, own.id = id;
    }
  }
  reduce_highest(own);
  return own;
}

// The token that a moving row takes; `sums` holds the chunk sums of `lowered`.
template <typename Logit>
__device__ int destination(const Row<Logit>& row, const Lowered& lowered, float* sums,
                           double share) {
  const Canvas* canvas = row.canvas;
  const bool whole = canvas->top_k == 0 && canvas->top_p >= 1.0;
  if (whole && !canvas->greedy && canvas->inverse_temperature == 1.0f) {
    return locate(row, sums, lowered, share, 0.0);
  }
  const Statistics top = highest(row, lowered);
  if (canvas->greedy) return top.id;
  return draw(row, Sharpened{lowered, 1.0f / top.top, canvas->inverse_temperature}, sums, share);
}

template <typename Logit>
__device__ void transit(const Logit* logits, Canvas* canvas) {
  const int index = blockIdx.x, step = canvas->step;
  const bool free = canvas->masked[index] && step < canvas->num_steps;
  if (!free) {
    if (threadIdx.x == 0) canvas->chosen[index] = 0;
    return;
  }
  const Row<Logit> row = {logits + (long long)index * canvas->vocab, canvas,
                          canvas->permitted + (long long)index * canvas->permitted_stride};
  float* sums = canvas->sums + (long long)index * canvas->chunks;
  const double* numbers = canvas->transition + 5 * step;
  const double gain = numbers[1], offset = numbers[2], stay = numbers[3], slope = numbers[4];
  Lowered lowered = {{canvas->ids[index]}, 0.0f};
  const double total = sum_weights(row, sums, lowered.ratio);
  const double limit = (double)infinite();
  double mass = total;
  if (offset > 0 && total < limit) {
    lowered.floor = (float)(offset * (1.0 + total));
    mass = sum_weights(row, sums, lowered);
  }
  const double move = gain * mass, all = move + fmax(stay - slope * total, 0.0);
  if (!(all > 0) || !(all < limit)) {  // NaN, overflow, or nowhere to be
    if (threadIdx.x == 0) atomicMax(&canvas->error, index + 1);
    return;
  }
  const double target = uniform(canvas, canvas->position + index, step, DRAW_TOKEN) * all;
  const bool goes = target < move;
  int token = 0;
  if (goes) token = destination(row, lowered, sums, target / move);
  if (threadIdx.x == 0) {
    canvas->chosen[index] = goes;
    if (goes) canvas->candidate[index] = token;
  }
}

extern "C" __global__ void __launch_bounds__(512, 2)
transit_float32(const float* logits, Canvas* canvas) {
  transit(logits, canvas);
}

extern "C" __global__ void __launch_bounds__(512, 2)
transit_float16(const unsigned short* logits, Canvas* canvas) {
  transit(logits, canvas);
}
