// Drafts: how many a run confirms, the cache rows of those, and the next ones. A step is four
// launches whose arguments never change: `verify` (one thread block per row behind a draft), `settle`
// (which the host waits for), `append_kept` and `propose` (one thread block per draft to make).
//
// Greedy rows are read once, and so are drawn ones whose draft is kept; for another token a row is
// read once more, with the logits that its draft came from, and a row to draft from likewise. Where
// top-k or top-p count, their passes come on top, and one for the sum of what they leave. Which
// proposal is read is known on the device before the host knows it.
#include "cuda/copy.cuh"
#include "drafts/drawn.cuh"

extern "C" __global__ void __launch_bounds__(512)
begin_drafts(Drafts* states, const Text* texts, long long blocks, long long start,
             long long position) {
  if (threadIdx.x) return;
  Drafts* drafts = behind(states, own_text(texts, blocks)->state);
  *drafts->start = (int)start;
  drafts->position = (int)position;
  drafts->error = 0;
}

// The token behind row `index`, and whether it is the draft there (-1: none stands there). `total`:
// of the row's weights; `summed`: whether `sums` are theirs.
template <typename Stored, typename Logit, typename Weight>
__device__ int verify_drawn(const Row<Logit>& row, const Drafts* drafts, int index, int draft,
                            const Weight& own, double total, bool summed, bool* keeps) {
  __shared__ bool accepted;
  float* sums = drafts->sums + (long long)index * row.chunks;
  const int position = drafts->position + index + 1;
  *keeps = false;
  if (draft >= 0) {
    const Weight weight = *weight_of<Weight>(drafts, index + 1);
    const Drawn<Weight, Stored> drawn = drawn_of<Weight, Stored>(drafts, index + 1, weight);
    const double share = drafts->shares[index + 1];
    if (threadIdx.x == 0) {
      const double u = uniform(drafts, position, drafts->step, DRAW_ACCEPT);
      accepted = u * drawn.at(draft) * total < own(row.at(draft), draft) * share;
    }
    __syncthreads();
    *keeps = accepted;
    if (*keeps) return draft;
    // By every thread, so not in double precision.
    const Residual<Weight, Stored> residual = {own, drawn, 1.0f / (float)total,
                                               1.0f / (float)share};
    if (sum_turns(row, sums, residual)) {
      return locate(row, sums, residual, draw_once(drafts, position, DRAW_TOKEN), 0.0);
    }
    summed = false;
  }
  if (!summed) sum_chunks(row, sums, own);
  return locate(row, sums, own, draw_once(drafts, position, DRAW_TOKEN), 0.0);
}

// The same by one pass over the row where nothing truncates it and the draft is kept.
template <typename Stored, typename Logit>
__device__ int verify_heated(const Row<Logit>& row, const Drafts* drafts, int index, int draft,
                             bool* keeps) {
  const Statistics found = heated_statistics(row, drafts->inverse_temperature * LOG2_E);
  if (!is_sampled(found)) return -1;
  const Heated heated(found.top, drafts->inverse_temperature, found.sum);
  if (!takes_some(drafts)) {
    return verify_drawn<Stored>(row, drafts, index, draft, heated, found.sum, false, keeps);
  }
  float* sums = drafts->sums + (long long)index * row.chunks;
  const Kept<Heated> kept = {heated, truncate(row, drafts, heated, sums)};
  const double total = sum_weights(row, sums, kept);
  return verify_drawn<Stored>(row, drafts, index, draft, kept, total, true, keeps);
}

template <typename Stored, typename Logit>
__device__ void verify(const Row<Logit>& row, Drafts* drafts, int index, int num_rows) {
  const int draft = index + 1 < num_rows ? drafts->ids[index + 1] : -1;
  int token = -1;
  bool keeps = false;
  if (drafts->greedy) {
    const Statistics found = statistics(row, SCORE_NONE);
    if (is_sampled(found)) {
      token = first_highest(row, found);
      keeps = token == draft;
    }
  } else {
    token = verify_heated<Stored>(row, drafts, index, draft, &keeps);
  }
  if (threadIdx.x == 0) {
    drafts->token[index] = token;
    drafts->kept[index] = keeps;
  }
}

template <typename Logit>
__device__ void verify_plain(const Logit* rows, Drafts* states, const Text* texts,
                             long long blocks) {
  const Text* text = own_text(texts, blocks);
  Drafts* drafts = behind(states, text->state);
  const int index = own_block(blocks);
  const Logit* own = behind(rows, text->first) + index * (long long)drafts->vocab;
  verify<Logit>(Row<Logit>(own, drafts, 0), drafts, index, (int)blocks);
}

// Where the first masks count as well.
template <typename Logit>
__device__ void verify_mixed(const Logit* rows, const Logit* first, Drafts* states,
                             const Text* texts, long long blocks, long long stride) {
  const Text* text = own_text(texts, blocks);
  Drafts* drafts = behind(states, text->state);
  const int index = own_block(blocks);
  const long long own = index * (long long)drafts->vocab;
  const Mixture<Logit> both = {behind(rows, text->first) + own,
                               behind(first, text->second) + own * stride, drafts->share,
                               drafts->rest};
  verify<Logit>(Row<Mixed<Logit>>(both, drafts, 0), drafts, index, (int)blocks);
}

__device__ inline bool is_stop(const Drafts* drafts, int token) {
  for (int i = 0; i < drafts->num_stops; ++i) {
    if (drafts->stops[i] == token) return true;
  }
  return false;
}

// Finds where the kept drafts end, and goes on to behind them.
extern "C" __global__ void __launch_bounds__(512)
settle(Drafts* states, const Text* texts, long long blocks) {
  if (threadIdx.x) return;
  Drafts* drafts = behind(states, own_text(texts, blocks)->state);
  int count = 0, token;
  bool goes_on, ended;
  do {
    token = drafts->token[count];
    ended = is_stop(drafts, token);
    goes_on = drafts->kept[count] && !ended;
    ++count;
    if (goes_on) drafts->shown[count - 1] = token;
  } while (goes_on);
  drafts->shown[count - 1] = token;
  if (token < 0) drafts->error = count;
  drafts->ids[0] = token;
  drafts->num_kept = count;
  drafts->appended = *drafts->start;
  *drafts->start += count;
  drafts->position += count;
  ++drafts->step;
  __threadfence_system();  // the host reads what is shown once it has read the word
  publish(drafts, count, 0, ended);
}

extern "C" __global__ void __launch_bounds__(512, 1)
append_kept(unsigned char* cache, const unsigned char* rows, Drafts* states, const Text* texts,
            long long blocks, unsigned long long pitch, unsigned long long row_bytes,
            long long capacity) {
  const Text* text = own_text(texts, blocks);
  const Drafts* drafts = behind(states, text->state);
  const int start = drafts->appended;
  const int room = (int)capacity - start;
  const int count = drafts->num_kept < room ? drafts->num_kept : room;
  if (count <= 0) return;
  copy_rows(behind(cache, text->first) + start * pitch, behind(rows, text->second), count,
            row_bytes, pitch, own_block(blocks), (unsigned)blocks);
}

// Draws draft `index`, and keeps what `verify_drawn` is to know of its distribution. `sum`: of the
// weights; 0 if it is to be found.
template <typename Logit, typename Weight>
__device__ int propose_drawn(const Row<Logit>& row, const Drafts* drafts, int index,
                             const Weight& weight, double sum) {
  float* sums = drafts->sums + (long long)index * row.chunks;
  sum_turns(row, sums, drawn_of<Weight, Logit>(drafts, index, weight));
  if (!(sum > 0)) {
    const Running at = run_up(sums, row.chunks);
    sum = threadIdx.x ? 0.0 : at.amount(at.total);
  }
  if (threadIdx.x == 0) {
    *weight_of<Weight>(drafts, index) = weight;
    drafts->shares[index] = sum;
  }
  return locate(row, sums, weight, draw_once(drafts, drafts->position + index, DRAW_DRAFT), 0.0);
}

// Drafts tokens 1, 2, … of the proposal that follows the kept drafts; `all`: of all proposals.
template <typename Logit>
__device__ void propose(const Logit* masks, Drafts* states, const Text* texts, long long blocks,
                        bool all) {
  const Text* text = own_text(texts, blocks);
  Drafts* drafts = behind(states, text->state);
  const int index = own_block(blocks) + 1, block = drafts->block;
  const int begin = all ? (drafts->num_kept - 1) * block : 0;
  const Logit* own = behind(masks, text->first) + (begin + index) * (long long)drafts->vocab;
  const Row<Logit> row(own, drafts, 0);
  const float scale = drafts->inverse_temperature * LOG2_E;
  const bool greedy = drafts->greedy;
  const Statistics found = greedy ? statistics(row, SCORE_NONE) : heated_statistics(row, scale);
  if (!is_sampled(found)) {
    if (threadIdx.x == 0) atomicMax(&drafts->error, index + 1);
    return;
  }
  int token;
  const Heated heated(found.top, drafts->inverse_temperature, found.sum);
  if (greedy) {
    token = first_highest(row, found);
  } else if (takes_some(drafts)) {
    float* sums = drafts->sums + (long long)index * row.chunks;
    const Kept<Heated> kept = {heated, truncate(row, drafts, heated, sums)};
    token = propose_drawn(row, drafts, index, kept, 0.0);
  } else {
    token = propose_drawn(row, drafts, index, heated, found.sum);
  }
  if (threadIdx.x == 0) drafts->ids[index] = token;
}

// There are as few blocks as drafts, so that each has a multiprocessor's registers for itself; they
// are of 384 threads at most (drafts/device.py).
extern "C" __global__ void __launch_bounds__(384, 1)
verify_float32(const float* rows, Drafts* states, const Text* texts, long long blocks) {
  verify_plain(rows, states, texts, blocks);
}

extern "C" __global__ void __launch_bounds__(384, 1)
verify_float16(const unsigned short* rows, Drafts* states, const Text* texts, long long blocks) {
  verify_plain(rows, states, texts, blocks);
}

extern "C" __global__ void __launch_bounds__(384, 1)
verify_mixed_float32(const float* rows, const float* first, Drafts* states, const Text* texts,
                     long long blocks, long long stride) {
  verify_mixed(rows, first, states, texts, blocks, stride);
}

extern "C" __global__ void __launch_bounds__(384, 1)
verify_mixed_float16(const unsigned short* rows, const unsigned short* first, Drafts* states,
                     const Text* texts, long long blocks, long long stride) {
  verify_mixed(rows, first, states, texts, blocks, stride);
}

extern "C" __global__ void __launch_bounds__(384, 1)
propose_float32(const float* masks, Drafts* states, const Text* texts, long long blocks,
                long long all) {
  propose(masks, states, texts, blocks, all != 0);
}

extern "C" __global__ void __launch_bounds__(384, 1)
propose_float16(const unsigned short* masks, Drafts* states, const Text* texts, long long blocks,
                long long all) {
  propose(masks, states, texts, blocks, all != 0);
}
