// Candidates, log-probabilities and scores of the rows to be sampled: one thread block per row.
//
// Greedy rows are read once; drawn rows once more for their chunk sums; each of top-k and top-p
// reads three times more. Nothing is launched differently from step to step.
#include "canvas.cuh"
#include "philox.cuh"
#include "row.cuh"
#include "truncate.cuh"

// How many of a flag's positions stand before a row, among all of a canvas.
template <typename Flag>
__device__ int count_positions(const Canvas* canvas, const Flag& flag) {
  int count = 0;
  for (int index = threadIdx.x; index < canvas->block; index += blockDim.x) {
    if (canvas->masked[index] && flag(index)) ++count;
  }
  return block_sum(count);
}

// Whether a rule that looks at no logits chooses a masked row; every block decides for its own.
__device__ inline bool chooses(const Canvas* canvas, int row) {
  const unsigned position = canvas->position, step = canvas->step;
  switch (canvas->rule) {
    case RULE_RANDOM: {
      const double own = uniform(canvas, position + row, step, DRAW_SELECT);
      const int higher = count_positions(canvas, [&](int index) {
        const double other = uniform(canvas, position + index, step, DRAW_SELECT);
        return other > own || (other == own && index < row);
      });
      return higher < quota(canvas);
    }
    case RULE_FIRST_HITTING: {
      const int before = count_positions(canvas, [&](int index) { return index < row; });
      return before == (int)(uniform(canvas, position, step, DRAW_CHOICE) * canvas->num_masked);
    }
    default: {
      if (canvas->step >= canvas->num_chances - 1) return true;
      return uniform(canvas, position + row, step, DRAW_SELECT) < canvas->unmask_chance[step];
    }
  }
}

__device__ inline void write(Canvas* canvas, int index, int candidate, double log_prob,
                             const Statistics& found) {
  canvas->candidate[index] = candidate;
  canvas->log_prob[index] = (float)log_prob;
  switch (canvas->score_kind) {
    case SCORE_CONFIDENCE:
      canvas->score[index] = (float)exp(log_prob);
      break;
    case SCORE_ENTROPY:
      canvas->score[index] = (float)-fmax(0.0, log(found.sum) - found.mean / found.sum);
      break;
    case SCORE_MARGIN:
      canvas->score[index] = (float)((1.0 - (double)expf(found.second - found.top)) / found.sum);
      break;
    default:
      break;
  }
}

template <typename Logit>
__device__ void sample(const Logit* logits, Canvas* canvas) {
  const int index = blockIdx.x;
  const bool masked = canvas->masked[index];
  const bool first = canvas->rule >= RULE_RANDOM;
  const bool chosen = masked && (!first || chooses(canvas, index));
  if (first && threadIdx.x == 0) canvas->chosen[index] = chosen;
  if (!chosen) return;
  const Row<Logit> row = {logits + (long long)index * canvas->vocab, canvas,
                          canvas->permitted + (long long)index * canvas->permitted_stride};
  const Statistics found = statistics(row);
  if (!(found.sum > 0) || found.top == infinite()) {  // NaN, or nothing above -inf
    if (threadIdx.x == 0) atomicMax(&canvas->error, index + 1);
    return;
  }
  int candidate = found.id;
  double log_prob = -log(found.sum);
  if (!canvas->greedy) {
    const Heated heated = {found.top, canvas->inverse_temperature};
    const double share = uniform(canvas, canvas->position + index, canvas->step, DRAW_TOKEN);
    candidate = draw(row, heated, canvas->sums + (long long)index * canvas->chunks, share);
    log_prob += row.at(candidate) - found.top;
  }
  if (threadIdx.x == 0) write(canvas, index, candidate, log_prob, found);
}

// Two blocks per multiprocessor: the 64 registers a thread then has are enough, nothing spills.
extern "C" __global__ void __launch_bounds__(512, 2)
sample_float32(const float* logits, Canvas* canvas) {
  sample(logits, canvas);
}

extern "C" __global__ void __launch_bounds__(512, 2)
sample_float16(const unsigned short* logits, Canvas* canvas) {
  sample(logits, canvas);
}
