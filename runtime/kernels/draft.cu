// Drafts: how many a run confirms, the cache rows of those, and the next ones. A step is four
// launches whose arguments never change: `verify` (one thread block per row behind a draft), `settle`
// (which the host waits for), `append_kept` and `propose` (one thread block per draft to make).
//
// Greedy rows are read once. Drawn rows are read once more for their chunk sums, and a rejected one
// once more for the residual's; each of top-k and top-p reads three times more where what is left
// then fits a list. Which proposal is read is known on the device before the host knows it.
#include "copy.cuh"
#include "drafts.cuh"
#include "philox.cuh"
#include "progress.cuh"
#include "truncate.cuh"

extern "C" __global__ void __launch_bounds__(512) begin_drafts(Drafts* drafts, long long start,
                                                               long long position) {
  if (threadIdx.x) return;
  *drafts->start = (int)start;
  drafts->canvas->position = (int)position;
  drafts->canvas->error = 0;
}

// What p has more than q, both as shares.
template <typename Weight>
struct Residual {
  Weight own;
  const float* drafted;
  float own_scale, drafted_scale;

  __device__ float operator()(float logit, int id) const {
    return fmaxf(own(logit, id) * own_scale - drafted[id] * drafted_scale, 0.0f);
  }
};

// A weight, written down as it is read. Rows of notes are as long as `sum_chunks` may read.
template <typename Weight>
struct Noted {
  Weight own;
  float* notes;

  __device__ float operator()(float logit, int id) const {
    const float value = own(logit, id);
    notes[id] = value;
    return value;
  }
};

// A uniform for thread 0, which alone needs it: no board is quick at double precision.
__device__ inline double draw_once(const Canvas* canvas, int position, DrawKind kind) {
  return threadIdx.x ? 0.0 : uniform(canvas, position, canvas->step, kind);
}

// The token behind row `index`, and whether it is the draft there (-1: none stands there).
template <typename Logit>
__device__ int verify_drawn(const Row<Logit>& row, const Drafts* drafts, int index, int draft,
                            float top, bool* keeps) {
  __shared__ bool accepted;
  const Canvas* canvas = drafts->canvas;
  float* sums = canvas->sums + (long long)index * row.chunks;
  const Heated heated(top, canvas->inverse_temperature);
  const Kept<Heated> kept = {heated, truncate(row, canvas, heated, sums)};
  const double total = sum_weights(row, sums, kept);
  const int position = canvas->position + index + 1;
  *keeps = false;
  if (draft >= 0) {
    const float* drafted = drafts->weights + (index + 1LL) * drafts->stride;
    const double share = drafts->shares[index + 1];
    if (threadIdx.x == 0) {
      const double u = uniform(canvas, position, canvas->step, DRAW_ACCEPT);
      accepted = u * drafted[draft] * total < kept(row.at(draft), draft) * share;
    }
    __syncthreads();
    *keeps = accepted;
    if (*keeps) return draft;
    const Residual<Kept<Heated>> residual = {kept, drafted, (float)(1.0 / total),
                                             (float)(1.0 / share)};
    if (sum_weights(row, sums, residual) > 0) {
      return locate(row, sums, residual, draw_once(canvas, position, DRAW_TOKEN), 0.0);
    }
    sum_chunks(row, sums, kept);
  }
  return locate(row, sums, kept, draw_once(canvas, position, DRAW_TOKEN), 0.0);
}

template <typename Logit>
__device__ void verify(const Logit* rows, const Logit* first, long long stride, Drafts* drafts) {
  const Canvas* canvas = drafts->canvas;
  const int index = blockIdx.x;
  const Logit* other = drafts->rest > 0 ? first + index * stride * canvas->vocab : nullptr;
  const Row<Mixed<Logit>> row(
      {rows + (long long)index * canvas->vocab, other, drafts->share, drafts->rest}, canvas, 0);
  const int draft = index + 1 < (int)gridDim.x ? drafts->ids[index + 1] : -1;
  const Statistics found = statistics(row, SCORE_NONE);
  int token = -1;
  bool keeps = false;
  if (is_sampled(found) && canvas->greedy) {
    token = first_highest(row, found);
    keeps = token == draft;
  } else if (is_sampled(found)) {
    token = verify_drawn(row, drafts, index, draft, found.top, &keeps);
  }
  if (threadIdx.x == 0) {
    drafts->token[index] = token;
    drafts->kept[index] = keeps;
  }
}

__device__ inline bool is_stop(const Drafts* drafts, int token) {
  for (int i = 0; i < drafts->num_stops; ++i) {
    if (drafts->stops[i] == token) return true;
  }
  return false;
}

// Finds where the kept drafts end, and goes on to behind them.
extern "C" __global__ void __launch_bounds__(512) settle(Drafts* drafts) {
  if (threadIdx.x) return;
  Canvas* canvas = drafts->canvas;
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
  if (token < 0) canvas->error = count;
  drafts->ids[0] = token;
  drafts->num_kept = count;
  drafts->appended = *drafts->start;
  *drafts->start += count;
  canvas->position += count;
  ++canvas->step;
  __threadfence_system();  // the host reads what is shown once it has read the word
  publish(canvas, count, 0, ended);
}

extern "C" __global__ void __launch_bounds__(512, 1)
append_kept(unsigned char* cache, const unsigned char* rows, const Drafts* drafts,
            unsigned long long row_bytes, long long capacity) {
  const int start = drafts->appended;
  const int room = (int)capacity - start;
  const int count = drafts->num_kept < room ? drafts->num_kept : room;
  if (count > 0) copy_bytes(cache + start * row_bytes, rows, count * row_bytes);
}

// Drafts tokens 1, 2, … of the proposal that follows the kept drafts; `all`: of all proposals.
template <typename Logit>
__device__ void propose(const Logit* masks, bool all, Drafts* drafts) {
  Canvas* canvas = drafts->canvas;
  const int index = blockIdx.x + 1, block = drafts->block;
  const int begin = all ? (drafts->num_kept - 1) * block : 0;
  const Row<Logit> row(masks + (long long)(begin + index) * canvas->vocab, canvas, 0);
  const Statistics found = statistics(row, SCORE_NONE);
  if (!is_sampled(found)) {
    if (threadIdx.x == 0) atomicMax(&canvas->error, index + 1);
    return;
  }
  int token;
  if (canvas->greedy) {
    token = first_highest(row, found);
  } else {
    float* sums = canvas->sums + (long long)index * row.chunks;
    const Heated heated(found.top, canvas->inverse_temperature);
    const Kept<Heated> kept = {heated, truncate(row, canvas, heated, sums)};
    const Noted<Kept<Heated>> noted = {
        kept, drafts->weights + (long long)index * drafts->stride};
    const double share = sum_weights(row, sums, noted);
    if (threadIdx.x == 0) drafts->shares[index] = share;
    const double u = draw_once(canvas, canvas->position + index, DRAW_DRAFT);
    token = locate(row, sums, kept, u, 0.0);
  }
  if (threadIdx.x == 0) drafts->ids[index] = token;
}

// There are as few blocks as drafts, so that each has a multiprocessor's registers for itself.
extern "C" __global__ void __launch_bounds__(512, 1)
verify_float32(const float* rows, const float* first, long long stride, Drafts* drafts) {
  verify(rows, first, stride, drafts);
}

extern "C" __global__ void __launch_bounds__(512, 1)
verify_float16(const unsigned short* rows, const unsigned short* first, long long stride,
               Drafts* drafts) {
  verify(rows, first, stride, drafts);
}

extern "C" __global__ void __launch_bounds__(512, 1)
propose_float32(const float* masks, unsigned long long all, Drafts* drafts) {
  propose(masks, all != 0, drafts);
}

extern "C" __global__ void __launch_bounds__(512, 1)
propose_float16(const unsigned short* masks, unsigned long long all, Drafts* drafts) {
  propose(masks, all != 0, drafts);
}
