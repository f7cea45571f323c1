// A block's begin, and the commit of a step: selection, scatter, end of text. One thread block per
// text.
#include "cuda/philox.cuh"
#include "cuda/ptx.cuh"
#include "unmask/unmask.cuh"

extern "C" __global__ void __launch_bounds__(512)
begin_block(Unmask* states, const Text* texts, long long blocks) {
  Unmask* canvas = behind(states, own_text(texts, blocks)->state);
  const int num_masked = begin(canvas);
  int own = 0;
  for (int index = threadIdx.x; index < canvas->block; index += blockDim.x) {
    canvas->log_prob[index] = 0;
    own += !canvas->masked[index] && canvas->ids[index] == canvas->mask_token_id;
  }
  const int num_kept = block_sum(own);
  if (threadIdx.x == 0) {
    canvas->time = 1.0;
    canvas->num_kept = num_kept;
  }
  __syncthreads();
  open_window(canvas, num_masked);
  tell(canvas, 0, num_masked);
}

// How many masked positions have a higher score, or an equal one and a lower index. Scores go round
// the warp, so that no lane waits for memory per score; all lanes call it.
__device__ inline int rank_of(const Unmask* canvas, int index, float own) {
  const int block = canvas->block, lane = threadIdx.x % 32;
  int rank = 0;
  for (int first = 0; first < block; first += 32) {
    const bool masked = first + lane < block && is_open(canvas, first + lane);
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
__device__ inline void accept_within_bound(const Unmask* canvas, int count, int* accepted) {
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
__device__ inline bool ends_before(const Unmask* canvas, int rank, float score) {
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
__device__ inline int count_accepted(Unmask* canvas) {
  __shared__ int accepted;
  const int block = canvas->block, lane = threadIdx.x % 32, count = canvas->num_open;
  const bool adds = canvas->kind == KIND_ENTROPY_BOUND;
  if (threadIdx.x == 0) accepted = count;
  __syncthreads();
  for (int first = (int)threadIdx.x - lane; first < block; first += blockDim.x) {
    const int index = first + lane;
    const bool masked = index < block && is_open(canvas, index);
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
__device__ inline int scatter(Unmask* canvas) {
  const bool ranked = canvas->kind < KIND_RANDOM;
  const int limit = ranked ? count_accepted(canvas) : 0;
  int own = 0;
  for (int index = threadIdx.x; index < canvas->block; index += blockDim.x) {
    if (!is_open(canvas, index)) continue;
    if (ranked ? canvas->rank[index] >= limit : !canvas->chosen[index]) continue;
    const int token = canvas->candidate[index];
    canvas->ids[index] = token;
    canvas->masked[index] = 0;
    if (canvas->seen) canvas->seen[token] = 1;
    ++own;
  }
  return block_sum(own);
}

extern "C" __global__ void __launch_bounds__(512)
commit(Unmask* states, const Text* texts, long long blocks) {
  Unmask* canvas = behind(states, own_text(texts, blocks)->state);
  if (is_idle(canvas)) return;
  if (canvas->error) {
    if (threadIdx.x == 0) publish(canvas, 0, 0, false);
    return;
  }
  const int before = canvas->num_masked;
  if (canvas->kind == KIND_FIRST_HITTING && threadIdx.x == 0) {
    // No token depends on it, so that a float's power is enough.
    const unsigned long long draw =
        draw_bits(canvas, canvas->position, canvas->step, DRAW_TIME);
    canvas->time *= power_of_two(log2f((float)draw * (float)UNIT) / (float)canvas->num_open);
  }
  const int num_committed = scatter(canvas);
  bool ended;
  const int num_final = find_end(canvas, &ended);
  if (ended) clear_masked(canvas);
  const int left = ended ? 0 : before - num_committed;
  open_window(canvas, left);
  tell(canvas, canvas->step + 1, left);
  report(canvas, left, num_committed, num_final, ended);
}
