// Top-k and top-p without sorting: the cut, by one pass over the row and a sample of it beforehand.
//
// The sample tells about where the lowest kept weight lies. The pass adds up the weights above that
// place and lists those around it, among which it is found exactly. Whether it lies there at all is
// known after the pass; where not, a histogram of all the row narrows the place down.
#pragma once

#include "rows/window.cuh"

constexpr int SAMPLE = 40;            // chunks at least: a turn of the smallest block
constexpr int STRIDE = 12;            // at most: one chunk in as many is sampled
constexpr unsigned FIRST = 87 << 23;  // of 2^-40: below it a sample is not sorted

// exp((l - top) / T) of a logit.
struct Heated {
  float top, scale;  // log2(e) / T
  float whole;       // the sum over the row; 0: not known

  __device__ Heated(float top, float inverse_temperature, float whole = 0)
      : top(top), scale(inverse_temperature * LOG2_E), whole(whole) {}
  __device__ float operator()(float logit, int) const {
    return power_of_two((logit - top) * scale);
  }
};

template <typename Heat>
struct Kept {
  Heat heated;
  Cut cut;

  __device__ float operator()(float logit, int id) const {
    const float weight = heated(logit, id);
    return cut.keeps(weight, id) ? weight : 0.0f;
  }
};

// Weights from a limit on, without a look at ids: it is a chunk's that lies on either side of the last
// id, though not of one that has it.
template <typename Heat>
struct Floored {
  Heat heated;
  Cut cut;

  __device__ float limit(int chunk) const {
    return __uint_as_float(cut.bits + (chunk * CHUNK > cut.last_id));
  }
  __device__ float add(float sum, float logit, int id, float limit) const {
    const float one = heated(logit, id);
    return fmaf(one, one >= limit ? 1.0f : 0.0f, sum);  // one instruction less than a choice
  }
};

template <typename Heat>
struct Adder<Floored<Heat>> {
  const Floored<Heat>& weight;
  float limit;

  __device__ Adder(const Floored<Heat>& weight, int chunk)
      : weight(weight), limit(weight.limit(chunk)) {}
  __device__ void operator()(float& sum, float logit, int id) const {
    sum = weight.add(sum, logit, id, limit);
  }
};

template <typename Logit, typename Heat>
__device__ void sum_chunks(const Row<Logit>& row, float* sums, const Kept<Heat>& weight) {
  const Floored<Heat> floored = {weight.heated, weight.cut};
  sum_some_chunks(row, sums, floored, 0, row.chunks);
  const int chunk = weight.cut.last_id / CHUNK;
  if (chunk < row.chunks) sum_some_chunks(row, sums, weight, chunk, chunk + 1);
}

// 1 for the weights that equal the lowest kept one.
template <typename Heat>
struct Equal {
  Heat heated;
  unsigned bits;

  __device__ float operator()(float logit, int id) const {
    return __float_as_uint(heated(logit, id)) == bits ? 1.0f : 0.0f;
  }
};

// Cuts behind the first `number` of equal weights that are too many for the list.
template <typename Logit, typename Heat>
__device__ Cut cut_ties(const Row<Logit>& row, const Heat& heated, float* sums, unsigned bits,
                        unsigned long long number) {
  const Equal<Heat> same = {heated, bits};
  sum_chunks(row, sums, same);
  return {bits, locate(row, sums, same, 0.0, (double)number - 0.5)};
}

// Where a search stands; in shared memory, so that no register holds it during a pass.
struct Search {
  Window at;                  // where the cut should lie; not above it, surely
  unsigned long long behind;  // the number from its end on
  unsigned long long inside;  // what is wanted of the window just tried; 0: the cut is above it
};

// The window to try first: all of a row that fits the list, else what a sample says.
template <typename Logit, typename Heat>
__device__ Window first_window(const Row<Logit>& row, const Heat& heated, List& list, int count) {
  if (row.chunks * CHUNK <= ROOM) return {1, END};
  const int stride = min(row.chunks / SAMPLE + 1, STRIDE);
  const Histogram some = sort_into_bins(row, heated, list, {FIRST, END}, stride);
  const float whole = list.whole > 0 ? list.whole : some.all * some.stride + 1.0f;
  return choose(list, some, count, (1.0f - (float)row.rows->top_p) * whole);
}

// Cuts behind `count` weights or, if that is 0, where the share of all reaches top_p.
template <typename Logit, typename Heat>
__device__ Cut cut_row(const Row<Logit>& row, const Heat& heated, float* sums, List& list,
                       int count) {
  __shared__ Search search;
  const bool by_mass = count == 0;
  if (threadIdx.x == 0) search.at = {1, END}, search.behind = 0;
  Window tried = first_window(row, heated, list, count);
#pragma unroll 1
  for (;;) {
    const Found found = by_mass ? collect<true>(row, heated, list, tried)
                                : collect<false>(row, heated, list, tried);
    if (threadIdx.x == 0) {
      const double share = ceil(row.rows->top_p * (double)found.all);
      const unsigned long long amount = by_mass ? max((unsigned long long)share, 1ull) : count;
      search.inside = amount > found.above ? amount - found.above : 0;
      if (search.inside) search.behind = found.above;
    }
    __syncthreads();
    const unsigned long long inside = search.inside;
    if (inside == 0) {
      if (threadIdx.x == 0) search.at.low = tried.high;
    } else if (list.count > ROOM) {
      if (tried.high - tried.low == 1) {
        const unsigned long long number = number_of(tried.low, by_mass, inside);
        return cut_ties(row, heated, sums, tried.low, min(number, list.count + 0ull));
      }
      if (threadIdx.x == 0) search.at = tried;
    } else {
      const Cut cut = cut_list(list, by_mass, tried.low, min(tried.high, ONE + 1), inside);
      if (cut.bits || tried.low == 1) {
        if (threadIdx.x == 0) list.has_all = tried.high == END;
        return cut;
      }
      // What the list has not reached lies below it, and below what was thought when it overflowed.
      if (threadIdx.x == 0) {
        search.at = {tried.low > search.at.low ? search.at.low : 1, tried.low};
        search.behind = found.above + list.count;
      }
    }
    __syncthreads();
    if (search.at.low >= search.at.high) return {search.at.low, LAST_ID};  // sums differ by rounding
    const Histogram all = sort_into_bins(row, heated, list, search.at, 1);
    tried = choose(list, all, by_mass ? 0 : count - (int)search.behind,
                   (1.0f - (float)row.rows->top_p) * all.all);
  }
}

// Cuts what the list has left at a share of it.
__device__ inline Cut cut_listed(List& list, double share) {
  __shared__ unsigned long long part;
  unsigned long long own = 0;
#pragma unroll 1
  for (int i = threadIdx.x; i < (int)list.count; i += blockDim.x) {
    const float weight = __uint_as_float(list.bits(i));
    if (list.cut.keeps(weight, list.id(i))) {
      own += mass_of(weight);
    } else {
      list.weights[i] = 0;
    }
  }
  const unsigned long long all = block_sum(own);
  if (threadIdx.x == 0) part = max((unsigned long long)ceil(share * (double)all), 1ull);
  __syncthreads();
  return cut_list(list, true, max(list.cut.bits, 1u), ONE + 1, part);
}

// The top k weights and, within them, the nucleus of share top_p.
template <typename Logit, typename Heat>
__device__ Cut truncate(const Row<Logit>& row, const Rows* rows, const Heat& heated,
                        float* sums) {
  __shared__ List list;
  if (threadIdx.x == 0) {
    list.cut = {0, LAST_ID}, list.has_all = false, list.whole = heated.whole;
  }
  __syncthreads();
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {
    const int count = turn || rows->top_k >= rows->vocab ? 0 : rows->top_k;
    if (turn ? rows->top_p >= 1.0 : count <= 0) continue;
    const Cut next = list.has_all ? cut_listed(list, rows->top_p)
                                  : cut_row(row, heated, sums, list, count);
    if (threadIdx.x == 0) {
      if (next.bits == list.cut.bits) list.cut.last_id = min(list.cut.last_id, next.last_id);
      if (next.bits > list.cut.bits) list.cut = next;
      list.whole = 0;
    }
    __syncthreads();
  }
  return list.cut;
}

// Whether top-k or top-p leave some weights out.
__device__ inline bool takes_some(const Rows* rows) {
  return (rows->top_k > 0 && rows->top_k < rows->vocab) || rows->top_p < 1.0;
}

// A row's working memory. Not kept in registers through a search.
__device__ inline float* sums_of(const Rows* rows, int index) {
  return rows->sums + (long long)index * rows->chunks;
}

// Draws an id by its weight, restricted to top-k and top-p if the text has them. share() is asked
// for last, for the same reason.
template <typename Logit, typename Heat, typename Share>
__device__ int draw(const Row<Logit>& row, const Rows* rows, const Heat& heated, int index,
                    const Share& share) {
  if (takes_some(rows)) {
    const Kept<Heat> kept = {heated, truncate(row, rows, heated, sums_of(rows, index))};
    sum_chunks(row, sums_of(rows, index), kept);
    return locate(row, sums_of(rows, index), kept, share(), 0.0);
  }
  sum_chunks(row, sums_of(rows, index), heated);
  return locate(row, sums_of(rows, index), heated, share(), 0.0);
}
