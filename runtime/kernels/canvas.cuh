// The state of one canvas, in device memory: whatever changes from step to step stands here, so
// that no launch argument does and a step can be captured once. runtime/ops/cuda_state.py reads
// the layout from here: one member a line.
#pragma once

// Which masked positions are committed, and what orders them: runtime/ops/unmask/contract.py.
enum Kind {
  KIND_QUOTA = 0,
  KIND_THRESHOLD = 1,
  KIND_FACTOR = 2,
  KIND_ENTROPY_BOUND = 3,
  KIND_RANDOM = 4,  // from here on, positions are chosen before tokens are drawn
  KIND_FIRST_HITTING = 5,
  KIND_ANCESTRAL = 6,
};

enum Score { SCORE_NONE = 0, SCORE_CONFIDENCE = 1, SCORE_ENTROPY = 2, SCORE_MARGIN = 3 };

struct Canvas {
  int* ids;                        // (block,)
  unsigned char* masked;           // (block,)
  unsigned char* chosen;           // (block,)
  int* candidate;                  // (block,)
  float* score;                    // (block,)
  float* log_prob;                 // (block,)
  const double* unmask_chance;     // (num_chances,) or null
  const double* transition;        // (num_steps, 5) or null: sigma, gain, offset, stay, slope
  float* sigma;                    // (1,) or null: the noise that the next run is told
  float* told;                     // (block,) or null: the share of masks that the next run is told
  const float* times;              // (num_times,) or null: that share by step, where it is not counted
  const float* bias;               // (vocab,) or null
  const unsigned* permitted;       // (1 or block, 2 chunks): bit j of word w admits token 32 w + j
  unsigned char* seen;             // (vocab,) or null
  float* sums;                     // (block, chunks): working memory
  int* rank;                       // (block,): working memory
  const int* staged;               // mapped: position, first, ids (block), masked flags (block)
  unsigned long long* published;   // mapped: the last 4 progress words
  int* shown;                      // mapped (block,): the ids, once a block is finished
  double time;
  double top_p;                    // 1: everything
  double limit;                    // what the kind compares with
  int block;
  int vocab;
  int chunks;                      // ceil(vocab / 64)
  int permitted_stride;            // words from one row's bits to the next one's; 0: shared
  int kind;
  int score_kind;
  int steps;                       // 0: as many as masked positions
  int num_chances;
  int top_k;                       // 0: everything
  int mask_token_id;
  int eos_token_id;
  unsigned seed_low;
  unsigned seed_high;
  unsigned sample_index;
  int greedy;
  float inverse_temperature;
  float penalty;
  int position;
  int first;
  int step;
  int num_masked;
  int num_masked_at_start;
  int error;                       // 1 + a row without a finite highest logit; 0: none
  unsigned sequence;               // progress words published
  int num_steps;                   // rows of `transition`
  float inverse_penalty;
  int processed;                   // whether there is `bias` or `seen`
  int num_times;
  int num_kept;                    // masks of the block that are never filled
};

static_assert(sizeof(void*) == 8, "device pointers are 64 bits wide");

// Whether no position is final before the last step: a transition without a mask.
__device__ inline bool floats(const Canvas* canvas) {
  return canvas->transition && canvas->mask_token_id < 0;
}

// Tells the next run how much is masked, `left` being what is still to fill; nothing once that is 0,
// as the run is then one over the finished block.
__device__ inline void tell(Canvas* canvas, int step, int left) {
  if (!canvas->told) return;
  float share = (float)(left + canvas->num_kept) / (float)canvas->block;
  if (canvas->times) share = canvas->times[min(step, canvas->num_times - 1)];
  for (int index = threadIdx.x; index < canvas->block; index += blockDim.x) {
    canvas->told[index] = left ? share : 0.0f;
  }
}

// How many positions a fixed schedule commits in this step: at least 1.
__device__ inline int quota(const Canvas* canvas) {
  if (canvas->steps == 0) return 1;
  const int share = canvas->num_masked_at_start / canvas->steps;
  const int rest = canvas->num_masked_at_start % canvas->steps;
  return max(1, share + (canvas->step < rest ? 1 : 0));
}
