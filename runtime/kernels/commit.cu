// A block's begin, and the commit of a step: selection, scatter, end of text. One thread block.
#include "block.cuh"
#include "canvas.cuh"
#include "philox.cuh"
#include "progress.cuh"
#include "ptx.cuh"

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

// How many masked positions have a higher score, or an equal one and a lower index. Scores go round
// the warp, so that no lane waits for memory per score; all lanes call it.
__device__ inline int rank_of(const Canvas* canvas, int index, float own) {
  const int block = canvas->block, lane = threadIdx.x % 32;
  int rank = 0;
  for (int first = 0; first < block; first += 32) {
    const bool masked = first + lane < block && canvas->masked[first + lane];
    const float score = masked ? canvas->score[first + lane] : __uint_as_float(0x7fffffffu);
#pragma unroll 8
    for (int other = 0; other < 32; ++other) {
      const float theirs = __shfl_sync(ALL_LANES, score, other);  // NaN is before none
      rank += (theirs > own) | ((theirs == own) & (first + other < index));
    }
  }
  return rank;
}

// Lowers `accepted` to the first rank before which entropies sum to more than the bound. They are
// added up as integers, 2^15 of them at most: to the same in any order, so by all threads at once.
__device__ inline void accept_within_bound(const Canvas* canvas, int count, int* accepted) {
  constexpr float UNITS = 17592186044416.0f;  // 2^44 of a nat
  const int span = (count + (int)blockDim.x - 1) / (int)blockDim.x;
  const int begin = min((int)threadIdx.x * span, count), end = min(begin + span, count);
  unsigned long long own = 0, total;
#pragma unroll 1
  for (int rank = begin; rank < end; ++rank) {
    own += (unsigned long long)(-canvas->sums[rank] * UNITS);
  }
  unsigned long long before = block_sum_before(own, &total);
#pragma unroll 1
  for (int rank = begin; rank < end; ++rank) {
    if ((double)before * (1.0 / UNITS) > canvas->limit) {
      atomicMin(accepted, rank);
      return;
    }
    before += (unsigned long long)(-canvas->sums[rank] * UNITS);
  }
}

// Whether a rule that looks at one score at a time ends before a rank. Double precision, where it is,
// decides as NumPy does at the edge of a bound.
__device__ inline bool ends_before(const Canvas* canvas, int rank, float score) {
  switch (canvas->kind) {
    case KIND_THRESHOLD:
      return rank && !(score >= (float)canvas->limit);
    case KIND_FACTOR:  // score < 1 - factor / (rank + 2), without a division
      return rank && !((1.0 - (double)score) * (rank + 2) <= canvas->limit);
    case KIND_QUOTA:
      return rank >= quota(canvas);
    default:
      return false;
  }
}

// Ranks the masked positions and gives every thread how many of the highest the rule commits.
__device__ inline int count_accepted(Canvas* canvas) {
  __shared__ int accepted;
  const int block = canvas->block, lane = threadIdx.x % 32, count = canvas->num_masked;
  const bool adds = canvas->kind == KIND_ENTROPY_BOUND;
  if (threadIdx.x == 0) accepted = count;
  __syncthreads();
  for (int first = (int)threadIdx.x - lane; first < block; first += blockDim.x) {
    const int index = first + lane;
    const bool masked = index < block && canvas->masked[index];
    const float score = masked ? canvas->score[index] : 0.0f;
    const int rank = rank_of(canvas, index, score);
    if (!masked) continue;
    canvas->rank[index] = rank;
    if (adds) canvas->sums[rank] = score;
    if (ends_before(canvas, rank, score)) atomicMin(&accepted, rank);
  }
  __syncthreads();
  if (adds) {
    accept_within_bound(canvas, count, &accepted);
    __syncthreads();
  }
  return accepted;
}

// Writes accepted candidates into the canvas; returns how many, to every thread.
__device__ inline int scatter(Canvas* canvas) {
  const bool ranked = !canvas->transition && canvas->kind < KIND_RANDOM;
  const int limit = ranked ? count_accepted(canvas) : 0;
  int own = 0;
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
  if (canvas->kind == KIND_FIRST_HITTING && open && !failed && threadIdx.x == 0) {
    // No token depends on it, so that a float's power is enough.
    const unsigned long long draw =
        draw_bits(canvas, canvas->position, canvas->step, DRAW_TIME);
    canvas->time *= power_of_two(log2f((float)draw * (float)UNIT) / (float)before);
  }
  const bool moves = canvas->transition != nullptr;
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
