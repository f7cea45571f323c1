// Top-k and top-p without sorting: the lowest kept weight is found four bits at a time.
//
// Weights are in [0, 1], so that their bits as integers keep their order. In each pass every thread
// adds the weights whose leading bits are those found so far to 16 bins of its own, by their next
// bits: no two threads ever add to the same word, and integers come to the same in any order. The
// third pass also lists what is left, so that those after it need not read the row.
#pragma once

#include "chunks.cuh"

constexpr int NUM_BINS = 16;
constexpr int MAX_THREADS = 512;
constexpr int SLOTS = 6;              // weights that a thread can list
constexpr unsigned TOP_BINADE = 127;  // of 1
constexpr int EXPONENT_SHIFT = 23;

// exp((l - top) / T) of a logit.
struct Heated {
  float top, scale;  // log2(e) / T

  __device__ Heated(float top, float inverse_temperature)
      : top(top), scale(inverse_temperature * LOG2_E) {}
  __device__ float operator()(float logit, int) const {
    return power_of_two((logit - top) * scale);
  }
};

// What is kept: weights whose bits are above `bits`, and equal ones up to `last_id`.
struct Cut {
  unsigned bits;
  int last_id;

  __device__ bool keeps(float weight, int id) const {
    return __float_as_uint(weight) + (id <= last_id) > bits;
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

// 1 for the weights that equal the lowest kept one.
template <typename Heat>
struct Equal {
  Heat heated;
  unsigned bits;

  __device__ float operator()(float logit, int id) const {
    return __float_as_uint(heated(logit, id)) == bits ? 1.0f : 0.0f;
  }
};

// A weight's significand; two bits less than a float has, so that 1,024 of them fit a word.
__device__ inline unsigned significand(unsigned bits) {
  return ((bits & 0x7fffff) | 0x800000) >> 2;
}

// A sum of significands under one exponent, in units of 2^-44.
__device__ inline unsigned long long mass_of(unsigned long long sum, unsigned binade) {
  const int up = (int)binade - 104;
  if (up >= 0) return sum << up;
  return up > -64 ? sum >> -up : 0;
}

// Where a search stands.
struct Search {
  bool by_mass;              // or by number
  int shift;                 // bits that are not looked at yet
  unsigned first;            // leading bits of the lowest bin
  unsigned width;            // bins
  int listed;                // weights that this thread has listed; -1: read the row
  bool lists;                // whether the next pass does
  unsigned long long above;  // mass or number of all weights above the bins
};

struct Bins {
  unsigned words[NUM_BINS * MAX_THREADS];
  unsigned lists[SLOTS * MAX_THREADS];
  unsigned long long totals[NUM_BINS];
  unsigned long long wanted;
};

// Adds a weight to this thread's bins.
__device__ inline void put(Bins& bins, const Search& at, unsigned bits) {
  const unsigned bin = (bits >> at.shift) - at.first;
  unsigned* word = &bins.words[bin * blockDim.x + threadIdx.x];
  if (bin < at.width) *word += at.by_mass ? significand(bits) : 1;
}

// Lists a weight that was put into a bin.
__device__ inline void list(Bins& bins, Search& at, unsigned bits) {
  if ((bits >> at.shift) - at.first >= at.width) return;
  if (at.listed < SLOTS) bins.lists[at.listed * blockDim.x + threadIdx.x] = bits;
  ++at.listed;
}

// Sums every thread's bins: a warp per bin.
__device__ inline void reduce_bins(Bins& bins) {
  __syncthreads();
  const int lane = threadIdx.x % 32;
  for (int bin = threadIdx.x / 32; bin < NUM_BINS; bin += blockDim.x / 32) {
    unsigned long long sum = 0;
    for (int i = lane; i < (int)blockDim.x; i += 32) sum += bins.words[bin * blockDim.x + i];
    for (int offset = 16; offset; offset >>= 1) sum += __shfl_xor_sync(ALL_LANES, sum, offset);
    if (lane == 0) bins.totals[bin] = sum;
  }
  __syncthreads();
}

// Sorts weights into bins; returns the sum of those that this thread has read.
template <typename Logit, typename Heat>
__device__ float fill_bins(const Row<Logit>& row, const Heat& heated, Bins& bins, Search& at) {
  for (int bin = 0; bin < NUM_BINS; ++bin) bins.words[bin * blockDim.x + threadIdx.x] = 0;
  float total = 0;
  if (at.listed >= 0) {
    for (int i = 0; i < at.listed; ++i) put(bins, at, bins.lists[i * blockDim.x + threadIdx.x]);
  } else {
    if (at.lists) at.listed = 0;
#pragma unroll 1
    for (int chunk = threadIdx.x / 8; chunk < row.chunks; chunk += blockDim.x / 8) {
      float values[8];
      row.read_any(chunk, values);
      const int first = row.first(chunk), step = row.step();
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        values[i] = heated(values[i], first + step * i);
        total += values[i];
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) put(bins, at, __float_as_uint(values[i]));
      if (at.lists) {
#pragma unroll
        for (int i = 0; i < 8; ++i) list(bins, at, __float_as_uint(values[i]));
      }
    }
    // Every thread's list must be whole, or none is of use.
    if (at.lists && block_max(at.listed) > SLOTS) at.listed = -1;
    at.lists = false;
  }
  reduce_bins(bins);
  return total;
}

// Mass or number of the weights in a bin.
__device__ inline unsigned long long amount_in(const Bins& bins, const Search& at, unsigned bin) {
  const unsigned binade = (at.first + bin) << at.shift >> EXPONENT_SHIFT;
  return at.by_mass ? mass_of(bins.totals[bin], binade) : bins.totals[bin];
}

// Descends, from the highest bin, to the one in which `wanted` is reached, and passes those above
// it; false if none is.
__device__ inline bool descend(const Bins& bins, Search& at, unsigned* found) {
  for (int bin = (int)at.width - 1; bin >= 0; --bin) {
    if (at.first + bin == 0) continue;  // weights of 0
    const unsigned long long amount = amount_in(bins, at, bin);
    if (at.above + amount >= bins.wanted) {
      *found = bin;
      return true;
    }
    at.above += amount;
  }
  return false;
}

// `own` is what this thread has read of all weights.
__device__ inline void set_wanted(Bins& bins, float own, int count, double share) {
  const unsigned long long total = block_sum((unsigned long long)(own * 17592186044416.0f));
  if (threadIdx.x == 0) {
    const double part = ceil(share * (double)total);
    bins.wanted = count ? (unsigned long long)count : max((unsigned long long)part, 1ull);
  }
  __syncthreads();
}

// Cuts behind the `count` highest weights, or, if that is 0, behind the highest ones whose share of
// all reaches `share`.
template <typename Logit, typename Heat>
__device__ Cut cut_behind(const Row<Logit>& row, const Heat& heated, float* sums, int count,
                          double share) {
  __shared__ Bins bins;
  Search at = {count == 0, EXPONENT_SHIFT, TOP_BINADE - NUM_BINS + 1, NUM_BINS, -1, false, 0};
  unsigned bin = 0;
  bool begins = true;
#pragma unroll 1
  for (;;) {
    const float own = fill_bins(row, heated, bins, at);
    if (begins) set_wanted(bins, own, count, share);
    begins = false;
    if (!descend(bins, at, &bin)) {
      if (at.shift < EXPONENT_SHIFT || at.first == 0) return {0, 0x7fffffff};
      at.first -= NUM_BINS;  // all of them are kept
      continue;
    }
    if (at.shift == 0) break;
    const int step = min(at.shift, 4);
    at.first = (at.first + bin) << step;
    at.width = 1 << step;
    at.shift -= step;
    at.lists = at.shift < EXPONENT_SHIFT - 4 && at.listed < 0;
  }
  const unsigned bits = at.first + bin;
  const unsigned long long sum = bins.totals[bin];
  const unsigned long long equal = at.by_mass ? sum / significand(bits) : sum;
  unsigned long long needed = bins.wanted - at.above;
  if (at.by_mass) {
    const unsigned long long each = mass_of(significand(bits), bits >> EXPONENT_SHIFT);
    needed = each ? (needed + each - 1) / each : equal;
  }
  needed = min(max(needed, 1ull), equal);
  __syncthreads();  // whoever still reads the bins
  Cut cut = {bits, 0x7fffffff};
  if (needed < equal) {
    const Equal<Heat> same = {heated, bits};
    sum_chunks(row, sums, same);
    cut.last_id = locate(row, sums, same, 0.0, (double)needed - 0.5);
  }
  return cut;
}

// The top k weights and, within them, the nucleus of share top_p.
template <typename Logit, typename Heat>
__device__ Cut truncate(const Row<Logit>& row, const Canvas* canvas, const Heat& heated,
                        float* sums) {
  Cut cut = {0, 0x7fffffff};
  const int count = canvas->top_k > 0 && canvas->top_k < canvas->vocab ? canvas->top_k : 0;
#pragma unroll 1
  for (int turn = 0; turn < 2; ++turn) {
    if (turn ? canvas->top_p < 1.0 : count > 0) {
      const Kept<Heat> kept = {heated, cut};
      cut = cut_behind(row, kept, sums, turn ? 0 : count, canvas->top_p);
    }
  }
  return cut;
}

// Draws an id by its weight, restricted to top-k and top-p if the canvas has them.
template <typename Logit, typename Heat>
__device__ int draw(const Row<Logit>& row, const Canvas* canvas, const Heat& heated, float* sums,
                    double share) {
  if ((canvas->top_k > 0 && canvas->top_k < canvas->vocab) || canvas->top_p < 1.0) {
    const Kept<Heat> kept = {heated, truncate(row, canvas, heated, sums)};
    sum_chunks(row, sums, kept);
    return locate(row, sums, kept, share, 0.0);
  }
  sum_chunks(row, sums, heated);
  return locate(row, sums, heated, share, 0.0);
}
