// A block of ids that a text commits, which `unmask` and `transition` share: its begin, where its
// text ends, and what the host is shown of it. One thread block per text.
#pragma once

#include "cuda/block.cuh"
#include "rows/rows.cuh"

constexpr int MAX_ENDS = 6;

struct Canvas : Rows {
  int* ids;               // (block,)
  unsigned char* masked;  // (block,)
  unsigned char* chosen;  // (block,)
  int* candidate;         // (block,)
  const int* staged;      // mapped: position, first, ids (block), masked flags (block)
  int* shown;             // mapped (block,): the ids, once a block is finished
  int mask_token_id;
  int num_ends;
  int ends[MAX_ENDS];     // ids that end a text
  int first;              // of the generated positions
  int num_masked_at_start;
  int num_final;          // as last published
  int ended;              // likewise
};

// The logits of a row of a text's block.
template <typename Logit>
__device__ const Logit* own_logits(const Logit* first, const Text* text, const Canvas* canvas,
                                   int row) {
  const long long row_bytes = canvas->vocab * (long long)sizeof(Logit);
  return behind(first, uniform_of(text->first + row * row_bytes));
}

// Takes what the host staged; returns how many positions are masked, to every thread.
__device__ inline int begin(Canvas* canvas) {
  const int block = canvas->block;
  const int* ids = canvas->staged + 2;
  int own = 0;
  for (int index = threadIdx.x; index < block; index += blockDim.x) {
    const bool masked = ids[block + index] != 0;
    canvas->ids[index] = ids[index];
    canvas->masked[index] = masked;
    canvas->chosen[index] = 0;
    own += masked;
  }
  const int num_masked = block_sum(own);
  if (threadIdx.x == 0) {
    canvas->position = canvas->staged[0];
    canvas->first = canvas->staged[1];
    canvas->step = 0;
    canvas->error = 0;
    canvas->num_masked = canvas->num_masked_at_start = num_masked;
    canvas->num_final = canvas->ended = 0;
    publish(canvas, 0, 0, false);
  }
  __syncthreads();
  return num_masked;
}

// Whether a commit has nothing to do: it reports what the last one did, at once.
__device__ inline bool is_idle(Canvas* canvas) {
  if (canvas->num_masked) return false;
  if (threadIdx.x == 0) publish(canvas, 0, canvas->num_final, canvas->ended);
  return true;
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

// How many leading positions are final, and whether the text ends behind them.
__device__ inline int find_end(const Canvas* canvas, bool* ended) {
  const int num_final = find(canvas, 0, canvas->block, canvas->mask_token_id);
  int stop = num_final;
  for (int i = 0; i < canvas->num_ends; ++i) {
    stop = find(canvas, canvas->first, stop, canvas->ends[i]);
  }
  *ended = stop < num_final;
  return stop;
}

__device__ inline void clear_masked(Canvas* canvas) {
  for (int index = threadIdx.x; index < canvas->block; index += blockDim.x) {
    canvas->masked[index] = 0;
  }
}

// Ends a step: shows the ids of a finished block and reports what was changed.
__device__ inline void report(Canvas* canvas, int left, int num_committed, int num_final,
                              bool ended) {
  if (left == 0) {  // the host reads these once it has read the word below
    __syncthreads();
    for (int index = threadIdx.x; index < canvas->block; index += blockDim.x) {
      canvas->shown[index] = canvas->ids[index];
    }
    __threadfence_system();
  }
  __syncthreads();
  if (threadIdx.x) return;
  ++canvas->step;
  canvas->num_masked = left;
  canvas->num_final = num_final;
  canvas->ended = ended;
  publish(canvas, num_committed, num_final, ended);
}
