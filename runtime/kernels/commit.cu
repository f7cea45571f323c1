// A block's begin, and the commit of a step: selection, scatter, end of text. One thread block.
#include "block.cuh"
#include "canvas.cuh"
#include "philox.cuh"
#include "progress.cuh"

extern "C" __global__ void __launch_bounds__(512) begin_block(Canvas* canvas) {
  const int block = canvas->block;
  int own = 0, kept = 0;
  for (int index = threadIdx.x; index < block; index += blockDim.x) {
    const bool masked = canvas->staged[2 + block + index] != 0;
    canvas->ids[index] = canvas->staged[2 + index];
    canvas->masked[index] = masked;
    canvas->chosen[index] = 0;
    canvas->log_prob[index] = 0;
    own += masked;
    kept += !masked && canvas->ids[index] == canvas->mask_token_id;
  }
  const int num_masked = block_sum(own), num_kept = block_sum(kept);
  if (threadIdx.x == 0) {
    canvas->position = canvas->staged[0];
    canvas->first = canvas->staged[1];
    canvas->step = 0;
    canvas->time = 1.0;
    canvas->error = 0;
    canvas->num_masked = canvas->num_masked_at_start = num_masked;
    canvas->num_kept = num_kept;
    if (canvas->transition) *canvas->sigma = (float)canvas->transition[0];
    publish(canvas, 0, 0, false);
  }
  __syncthreads();
  tell(canvas, 0, num_masked);
}

// Ranks the masked positions by score, highest first, equal ones by position.
__device__ inline void rank_positions(Canvas* canvas) {
  for (int index = threadIdx.x; index < canvas->block; index += blockDim.x) {
    if (!canvas->masked[index]) continue;
    const float own = canvas->score[index];
    int rank = 0;
    for (int other = 0; other < canvas->block; ++other) {
      if (!canvas->masked[other]) continue;
      const float score = canvas->score[other];
      rank += score > own || (score == own && other < index);
    }
    canvas->rank[index] = rank;
  }
}

// Adds up entropies, ascending, while the sum before an item is within the bound.
__device__ inline int count_within(const float* scores, int count, double bound) {
  double running = 0;
  for (int item = 0; item < count; ++item) {
    const double entropy = -(double)scores[item];
    running += entropy;
    if (item && running - entropy > bound) return item;
  }
  return count;
}

// How many of the highest ranks a rule commits. Every thread gets it; begins with a barrier.
__device__ inline int count_accepted(Canvas* canvas) {
  __shared__ int accepted;
  const int block = canvas->block;
  if (threadIdx.x == 0) accepted = canvas->num_masked;
  __syncthreads();
  for (int index = threadIdx.x; index < block; index += blockDim.x) {
    if (!canvas->masked[index]) continue;
    const int rank = canvas->rank[index];
    const float score = canvas->score[index];
    if (canvas->rule == RULE_THRESHOLD && rank && !(score >= canvas->threshold)) {
      atomicMin(&accepted, rank);
    } else if (canvas->rule == RULE_FACTOR && rank &&
               !((double)score >= 1.0 - canvas->factor / (rank + 2))) {
      atomicMin(&accepted, rank);
    } else if (canvas->rule == RULE_ENTROPY_BOUND) {
      canvas->sums[rank] = score;
    }
  }
  __syncthreads();
  if (threadIdx.x == 0 && canvas->rule == RULE_ENTROPY_BOUND) {
    accepted = count_within(canvas->sums, canvas->num_masked, canvas->entropy_bound);
  } else if (threadIdx.x == 0 && canvas->rule == RULE_HIGHEST) {
    accepted = quota(canvas);
  }
  __syncthreads();
  return accepted;
}

// Writes accepted candidates into the canvas; returns how many, to every thread.
__device__ inline int scatter(Canvas* canvas) {
  const bool ranked = canvas->rule < RULE_RANDOM;
  int limit = 0, own = 0;
  if (ranked) {
    rank_positions(canvas);
    limit = count_accepted(canvas);
  }
  for (int index = threadIdx.x; index < canvas->block; index += blockDim.x) {
    if (!canvas->masked[index]) continue;
    if (ranked ? canvas->rank[index] >= limit : !canvas->chosen[index]) continue;
    const int token = canvas->candidate[index];
    canvas->ids[index] = token;
    if (!floats(canvas)) canvas->masked[index] = 0;
    if (canvas->seen) canvas->seen[token] = 1;
    ++own;
  }
  return block_sum(own);
}

// The lowest index in [begin, end) that holds an id; `end` if none does.
__device__ inline int find(const Canvas* canvas, int begin, int end, int id) {
  __shared__ int found;
  if (threadIdx.x == 0) found = end;
  __syncthreads();
  for (int index = begin + (int)threadIdx.x; index < end; index += blockDim.x) {
    if (canvas->ids[index] == id) atomicMin(&found, index);
  }
  __syncthreads();
  const int result = found;
  __syncthreads();
  return result;
}

extern "C" __global__ void __launch_bounds__(512) commit(Canvas* canvas) {
  const int before = canvas->num_masked;
  const bool failed = canvas->error != 0, open = before > 0;
  if (canvas->rule == RULE_FIRST_HITTING && open && !failed && threadIdx.x == 0) {
    const double draw = uniform(canvas, canvas->position, canvas->step, DRAW_TIME);
    canvas->time *= pow(draw, 1.0 / before);
  }
  const bool moves = canvas->rule == RULE_TRANSITION;
  const bool last = moves && open && canvas->step + 1 >= canvas->num_steps;
  int num_committed = 0, num_final = 0;
  bool ended = false;
  if (!failed && open) num_committed = scatter(canvas);
  if (!failed && !(floats(canvas) && open && !last)) {
    num_final = find(canvas, 0, canvas->block, canvas->mask_token_id);
    const int stop = find(canvas, canvas->first, num_final, canvas->eos_token_id);
    ended = stop < num_final;
    num_final = stop;
    if (ended || last) {
      for (int index = threadIdx.x; index < canvas->block; index += blockDim.x) {
        canvas->masked[index] = 0;
      }
    }
  }
  const int left = ended || last ? 0 : before - (floats(canvas) ? 0 : num_committed);
  if (open && !failed) tell(canvas, canvas->step + 1, left);
  __syncthreads();
  if (open && !failed && left == 0) {  // the host reads these once it has read the word below
    for (int index = threadIdx.x; index < canvas->block; index += blockDim.x) {
      canvas->shown[index] = canvas->ids[index];
    }
    __threadfence_system();
    __syncthreads();
  }
  if (threadIdx.x) return;
  if (open && !failed) {
    ++canvas->step;
    canvas->num_masked = left;
    if (moves && !last) *canvas->sigma = (float)canvas->transition[5 * canvas->step];
  }
  publish(canvas, num_committed, num_final, ended);
}
