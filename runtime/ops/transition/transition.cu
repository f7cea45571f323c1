// Where every free position goes in a step of score-based diffusion: one thread block per row.
//
// A row's log-ratios are read once for their sum, once more where the step has an offset, and again
// by the rows that move only. The formulas stand in runtime/noise/transition.py.
#include "cuda/philox.cuh"
#include "rows/truncate.cuh"
#include "transition/transition.cuh"

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

// A lowered ratio as a share of the highest one, to the power 1 / T: in [0, 1].
struct Sharpened {
  Lowered lowered;
  float scale, inverse_temperature;
  float whole = 0;  // the sum is not known

  __device__ float operator()(float logit, int id) const {
    const float share = lowered(logit, id) * scale;
    return inverse_temperature == 1.0f ? share
                                       : power_of_two(inverse_temperature * log2f(share));
  }
};

// The highest of some weights and the lowest id that has it, to every thread.
struct Highest {
  float weight;
  int id;
};

template <typename Logit, typename Weight>
__device__ Highest highest(const Row<Logit>& row, const Weight& weight) {
  __shared__ int lowest;
  if (threadIdx.x == 0) lowest = 0x7fffffff;
  float top = -1.0f;
  int first = 0x7fffffff;
#pragma unroll 1
  for (int chunk = threadIdx.x / 8; chunk < row.chunks; chunk += blockDim.x / 8) {
    float values[8];
    row.read(chunk, values);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const int id = chunk * CHUNK + (int)threadIdx.x % 8 + 8 * i;
      const float value = weight(values[i], id);
      if (value > top) top = value, first = id;
    }
  }
  const unsigned bits = block_max(__float_as_uint(fmaxf(top, 0.0f)));
  if (__float_as_uint(top) == bits) atomicMin(&lowest, first);
  __syncthreads();
  return {__uint_as_float(bits), lowest};
}

// The token that a moving row takes; `sums` holds the chunk sums of `lowered`. `share` stands in shared memory.
template <typename Logit>
__device__ int destination(const Row<Logit>& row, const Rows* canvas, const Lowered& lowered,
                           float* sums, const double& share) {
  const bool whole = canvas->top_k == 0 && canvas->top_p >= 1.0;
  if (whole && !canvas->greedy && canvas->inverse_temperature == 1.0f) {
    return locate(row, sums, lowered, share, 0.0);
  }
  const Highest top = highest(row, lowered);
  if (canvas->greedy) return top.id;
  const Sharpened sharpened = {lowered, 1.0f / top.weight, canvas->inverse_temperature};
  return draw(row, canvas, sharpened, own_row(canvas), [&] { return share; });
}

// What a row does in a step.
struct Move {
  double share;  // of the moving mass that lies below the draw
  bool goes;
  bool fails;  // NaN, overflow, or nowhere to be
};

__device__ inline Move decide(const Transition* canvas, int index, double total, double mass) {
  const double* numbers = canvas->transition + 5 * canvas->step;
  const double gain = numbers[1], stay = numbers[3], slope = numbers[4];
  const double move = gain * mass, all = move + fmax(stay - slope * total, 0.0);
  if (!(all > 0) || !(all < (double)infinite())) return {0, false, true};
  const double draw = uniform(canvas, canvas->position + index, canvas->step, DRAW_TOKEN);
  return {draw * all / move, draw * all < move, false};
}

template <typename Logit>
__device__ void transit(const Logit* logits, Transition* states, const Text* texts,
                        long long blocks) {
  __shared__ Move move;
  const Text* text = own_text(texts, blocks);
  Transition* canvas = behind(states, uniform_of(text->state));
  const int index = own_row(canvas), step = canvas->step;
  const bool free = canvas->masked[index] && step < canvas->num_steps;
  if (!free) {
    if (threadIdx.x == 0) canvas->chosen[index] = 0;
    return;
  }
  const Row<Logit> row(own_logits(logits, text, canvas, index), canvas, index);
  float* sums = sums_of(canvas, index);
  Lowered lowered = {{canvas->ids[index]}, 0.0f};
  const double total = sum_weights(row, sums, lowered.ratio);
  double mass = total;
  const double offset = canvas->transition[5 * step + 2];
  if (offset > 0 && total < (double)infinite()) {
    lowered.floor = (float)(offset * (1.0 + total));
    mass = sum_weights(row, sums, lowered);
  }
  if (threadIdx.x == 0) {
    move = decide(canvas, index, total, mass);
    if (move.fails) {
      atomicMax(&canvas->error, index + 1);
    } else {
      canvas->chosen[index] = move.goes;
    }
  }
  __syncthreads();
  if (!move.goes) return;
  const int token = destination(row, canvas, lowered, sums, move.share);
  if (threadIdx.x == 0) canvas->candidate[index] = token;
}

// Ten warps, so that two blocks fit a multiprocessor with the registers that the powers of sharpened
// weights take (transition/device.py launches as many).
extern "C" __global__ void __launch_bounds__(320, 2)
transit_float32(const float* logits, Transition* states, const Text* texts, long long blocks) {
  transit(logits, states, texts, blocks);
}

extern "C" __global__ void __launch_bounds__(320, 2)
transit_float16(const unsigned short* logits, Transition* states, const Text* texts,
                long long blocks) {
  transit(logits, states, texts, blocks);
}

extern "C" __global__ void __launch_bounds__(512)
begin_block(Transition* states, const Text* texts, long long blocks) {
  Transition* canvas = behind(states, own_text(texts, blocks)->state);
  begin(canvas);
  if (threadIdx.x == 0) *canvas->sigma = (float)canvas->transition[0];
}

// Moves what was chosen, and goes on to the next step's noise. One thread block per text.
extern "C" __global__ void __launch_bounds__(512)
commit(Transition* states, const Text* texts, long long blocks) {
  Transition* canvas = behind(states, own_text(texts, blocks)->state);
  if (is_idle(canvas)) return;
  if (canvas->error) {
    if (threadIdx.x == 0) publish(canvas, 0, 0, false);
    return;
  }
  const int before = canvas->num_masked, step = canvas->step + 1;
  const bool last = step >= canvas->num_steps, moves_on = floats(canvas) && !last;
  int own = 0;
  for (int index = threadIdx.x; index < canvas->block; index += blockDim.x) {
    if (!canvas->masked[index] || !canvas->chosen[index]) continue;
    canvas->ids[index] = canvas->candidate[index];
    if (!floats(canvas)) canvas->masked[index] = 0;
    ++own;
  }
  const int num_committed = block_sum(own);
  int num_final = 0;
  bool ended = false;
  if (!moves_on) num_final = find_end(canvas, &ended);
  if (ended || last) clear_masked(canvas);
  if (threadIdx.x == 0 && !last) *canvas->sigma = (float)canvas->transition[5 * step];
  const int left = ended || last ? 0 : before - (floats(canvas) ? 0 : num_committed);
  report(canvas, left, num_committed, num_final, ended);
}
