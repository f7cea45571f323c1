// A text whose masked positions are committed; the device's form of unmask/contract.py.
#pragma once

#include "canvas/canvas.cuh"

// Which masked positions are committed, and what orders them.
enum Kind {
  KIND_QUOTA = 0,
  KIND_THRESHOLD = 1,
  KIND_FACTOR = 2,
  KIND_ENTROPY_BOUND = 3,
  KIND_RANDOM = 4,  // from here on, positions are chosen before tokens are drawn
  KIND_FIRST_HITTING = 5,
  KIND_ANCESTRAL = 6,
};

struct Unmask : Canvas {
  float* score;                 // (block,)
  float* log_prob;              // (block,)
  const double* unmask_chance;  // (num_chances,) or null
  float* time_input;            // (block,) or null: the share of masks that the next run sees
  const float* times;           // (num_times,) or null: that share by step, where it is not counted
  int* rank;                    // (block,): working memory
  const void* before;           // (vocab,) or null: the row for position 0; row i is then for i + 1
  double time;
  double limit;                 // what the kind compares with
  int kind;
  int score_kind;
  int steps;                    // 0: as many as masked positions
  int num_chances;
  int num_times;
  int num_kept;                 // masks of the block that are never filled
  int sub_block;                // positions of the parts that are filled in turn; 0: the whole block
  int first_alone;              // whether position 0 is committed before all others
  int window;                   // the next step commits before it
  int num_open;                 // masked positions there
};

// Whether the next step may commit a position.
__device__ inline bool is_open(const Unmask* canvas, int index) {
  return canvas->masked[index] && index < canvas->window;
}

// Finds what the next step may commit, `left` positions being masked; all threads call it.
__device__ inline void open_window(Unmask* canvas, int left) {
  int window = canvas->block, num_open = left;
  if (left && (canvas->sub_block || canvas->first_alone)) {
    const int next = find(canvas, 0, canvas->block, canvas->mask_token_id);
    if (canvas->first_alone && next == 0) {
      window = 1;
    } else if (canvas->sub_block) {
      window = min(window, (next / canvas->sub_block + 1) * canvas->sub_block);
    }
    int own = 0;
    for (int index = threadIdx.x; index < window; index += blockDim.x) {
      own += canvas->masked[index] != 0;
    }
    num_open = block_sum(own);
  }
  if (threadIdx.x == 0) canvas->window = window, canvas->num_open = num_open;
}

// The logits that speak for a position.
template <typename Logit>
__device__ const Logit* speaking_logits(const Logit* first, const Text* text, const Unmask* canvas,
                                        int index) {
  if (!canvas->before) return own_logits(first, text, canvas, index);
  if (index) return own_logits(first, text, canvas, index - 1);
  return (const Logit*)canvas->before;
}

// Writes how much is masked for the next run, `left` being what is still to fill; nothing once that
// is 0, as the run is then one over the finished block.
__device__ inline void tell(Unmask* canvas, int step, int left) {
  if (!canvas->time_input) return;
  float share = (float)(left + canvas->num_kept) / (float)canvas->block;
  if (canvas->times) share = canvas->times[min(step, canvas->num_times - 1)];
  for (int index = threadIdx.x; index < canvas->block; index += blockDim.x) {
    canvas->time_input[index] = left ? share : 0.0f;
  }
}

// How many positions a fixed schedule commits in this step: at least 1.
__device__ inline int quota(const Unmask* canvas) {
  if (canvas->steps == 0) return 1;
  const int share = canvas->num_masked_at_start / canvas->steps;
  const int rest = canvas->num_masked_at_start % canvas->steps;
  return max(1, share + (canvas->step < rest ? 1 : 0));
}
