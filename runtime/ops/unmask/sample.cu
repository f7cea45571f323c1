// Candidates, log-probabilities and scores of the rows to be sampled: one thread block per row.
//
// Greedy rows are read once; drawn rows once more for their chunk sums; top-k or top-p, or both, read
// them a third time, and a twelfth of them beforehand. Nothing is launched differently from step to
// step.
#include "cuda/philox.cuh"
#include "rows/row.cuh"
#include "rows/truncate.cuh"
#include "unmask/unmask.cuh"

// How many of a flag's positions stand before a row, among all of a canvas.
template <typename Flag>
__device__ int count_positions(const Unmask* canvas, const Flag& flag) {
  int count = 0;
  for (int index = threadIdx.x; index < canvas->block; index += blockDim.x) {
    if (is_open(canvas, index) && flag(index)) ++count;
  }
  return block_sum(count);
}

// The floor of a uniform in units of 2^-53 times a small number.
__device__ inline int part_of(unsigned long long draw, int number) {
  const unsigned long long low = (draw & 0x1fffff) * number >> 21;
  return (int)(((draw >> 21) * number + low) >> 32);
}

// Whether a rule that looks at no logits chooses a masked row; every block decides for its own.
__device__ inline bool chooses(const Unmask* canvas, int row) {
  __shared__ bool unmasked;
  const unsigned position = canvas->position, step = canvas->step;
  switch (canvas->kind) {
    case KIND_RANDOM: {
      const unsigned long long own = draw_bits(canvas, position + row, step, DRAW_SELECT);
      const int higher = count_positions(canvas, [&](int index) {
        const unsigned long long other = draw_bits(canvas, position + index, step, DRAW_SELECT);
        return other > own || (other == own && index < row);
      });
      return higher < quota(canvas);
    }
    case KIND_FIRST_HITTING: {
      const int before = count_positions(canvas, [&](int index) { return index < row; });
      const unsigned long long draw = draw_bits(canvas, position, step, DRAW_CHOICE);
      return before == part_of(draw, canvas->num_open);
    }
    default: {
      if (canvas->step >= canvas->num_chances - 1) return true;
      if (threadIdx.x == 0) {
        const double draw = uniform(canvas, position + row, step, DRAW_SELECT);
        unmasked = draw < canvas->unmask_chance[step];
      }
      __syncthreads();
      return unmasked;
    }
  }
}

// `above` is the candidate's logit, less the highest one.
__device__ inline void write(Unmask* canvas, int index, int candidate, float above,
                             const Statistics& found) {
  const float log_sum = logf(found.sum);
  canvas->candidate[index] = candidate;
  canvas->log_prob[index] = above - log_sum;
  switch (canvas->score_kind) {
    case SCORE_CONFIDENCE:
      canvas->score[index] = expf(above) / found.sum;
      break;
    case SCORE_ENTROPY:
      canvas->score[index] = -fmaxf(0.0f, log_sum - found.mean / found.sum);
      break;
    case SCORE_MARGIN:
      canvas->score[index] = (1.0f - expf(found.second - found.top)) / found.sum;
      break;
    default:
      break;
  }
}

template <typename Logit>
__device__ void sample(const Logit* logits, Unmask* states, const Text* texts, long long blocks) {
  __shared__ Statistics known;  // to thread 0, at the end: no register holds it until then
  const Text* text = own_text(texts, blocks);
  Unmask* canvas = behind(states, uniform_of(text->state));
  const int index = own_block(blocks);
  const bool masked = is_open(canvas, index);
  const bool first = canvas->kind >= KIND_RANDOM;
  const bool chosen = masked && (!first || chooses(canvas, index));
  if (first && threadIdx.x == 0) canvas->chosen[index] = chosen;
  if (!chosen) return;
  const Row<Logit> row(speaking_logits(logits, text, canvas, index), canvas, index);
  const bool is_tempered = !canvas->greedy && canvas->inverse_temperature != 1.0f;
  const float warmth = is_tempered && canvas->top_p < 1.0 ? canvas->inverse_temperature * LOG2_E : 0;
  const Statistics found = statistics(row, canvas->score_kind, warmth);
  if (!is_sampled(found)) {
    if (threadIdx.x == 0) atomicMax(&canvas->error, own_block(blocks) + 1);
    return;
  }
  if (threadIdx.x == 0) known = found;
  int candidate;
  if (canvas->greedy) {
    candidate = first_highest(row, found);
  } else {
    const float whole = is_tempered ? found.warm : found.sum;
    const Heated heated(found.top, canvas->inverse_temperature, whole);
    candidate = draw(row, canvas, heated, own_block(blocks), [&] {
      return draw_once(canvas, canvas->position + own_block(blocks), DRAW_TOKEN);
    });
  }
  if (threadIdx.x == 0) {
    write(canvas, own_block(blocks), candidate, row.at(candidate) - known.top, known);
  }
}

// unmask/device.py launches as many threads. Two blocks of twelve warps on a multiprocessor leave 80
// registers per thread. Rows of float32 need more and would spill (4 bytes on sm_87, 8 on sm_90, nvcc
// 13.0), so they take ten warps, which leave 96; rows of float16 fit.
extern "C" __global__ void __launch_bounds__(320, 2)
sample_float32(const float* logits, Unmask* states, const Text* texts, long long blocks) {
  sample(logits, states, texts, blocks);
}

extern "C" __global__ void __launch_bounds__(384, 2)
sample_float16(const unsigned short* logits, Unmask* states, const Text* texts, long long blocks) {
  sample(logits, states, texts, blocks);
}
