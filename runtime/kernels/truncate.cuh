// Top-k and top-p without sorting: the lowest kept weight is found digit by digit of its bits.
//
// Weights are in [0, 1], so that their bits as integers keep their order and fit 30 bits: three
// digits of ten. Masses are summed as integers (2^-44 units), in whatever order, to one result.
#pragma once

#include "row.cuh"

constexpr int NUM_BINS = 1024;

// exp((l - top) / T) of a logit.
struct Heated {
  float top, inverse_temperature;

  __device__ float operator()(float logit, int) const {
    return expf((logit - top) * inverse_temperature);
  }
};

// What is kept: weights whose bits are above `bits`, and equal ones up to `last_id`.
struct Cut {
  unsigned bits;
  int last_id;

  __device__ bool keeps(float weight, int id) const {
    const unsigned own = __float_as_uint(weight);
    return own > bits || (own == bits && id <= last_id);
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

__device__ inline unsigned long long mass_of(float weight) {
  return (unsigned long long)(weight * 17592186044416.0f);
}

struct Bins {
  unsigned counts[NUM_BINS];
  unsigned long long masses[NUM_BINS];
};

// Where a selection stands; `count` and `mass` are those of all weights above the bits so far.
struct Selection {
  unsigned bits;
  unsigned count;
  unsigned equal;  // weights in the bin
  unsigned long long mass;
  unsigned long long wanted;
  bool found;
};

// Sorts the weights whose leading digits are `bits` into bins by their next digit.
template <typename Logit, typename Heat>
__device__ void fill_bins(const Row<Logit>& row, const Heat& heated, Bins& bins, unsigned bits,
                          int level) {
  for (int bin = threadIdx.x; bin < NUM_BINS; bin += blockDim.x) {
    bins.counts[bin] = 0;
    bins.masses[bin] = 0;
  }
  __syncthreads();
  const int shift = 20 - 10 * level;
  for (int chunk = threadIdx.x / 8; chunk < row.canvas->chunks; chunk += blockDim.x / 8) {
    float values[8];
    row.read(chunk, values);
    for (int i = 0; i < 8; ++i) {
      const float weight = heated(values[i], chunk * CHUNK + (int)threadIdx.x % 8 + 8 * i);
      const unsigned own = __float_as_uint(weight);
      if (own == 0 || own >> (shift + 10) != bits) continue;
      atomicAdd(&bins.counts[own >> shift & (NUM_BINS - 1)], 1u);
      atomicAdd(&bins.masses[own >> shift & (NUM_BINS - 1)], mass_of(weight));
    }
  }
  __syncthreads();
}

// Descends into the bin, from the highest, at which `wanted` (weights or mass) is reached. One
// warp: lane n looks at bins [1023 - 32 n - 31, 1023 - 32 n].
__device__ inline void descend(const Bins& bins, Selection& at, bool by_mass, double share) {
  const int high = NUM_BINS - 1 - 32 * (int)threadIdx.x;
  unsigned long long mass = 0, total_mass;
  unsigned count = 0, total_count;
#pragma unroll 4
  for (int i = 0; i < 32; ++i) {
    count += bins.counts[high - i];
    mass += bins.masses[high - i];
  }
  unsigned count_above = at.count + serial_prefix(count, &total_count);
  unsigned long long mass_above = at.mass + serial_prefix(mass, &total_mass);
  const unsigned long long wanted =
      share > 0 ? max((unsigned long long)ceil(share * (double)total_mass), 1ull) : at.wanted;
  const bool found =
      by_mass ? at.mass + total_mass >= wanted : at.count + total_count >= wanted;
  const unsigned bits = at.bits;
  __syncwarp();
  if (threadIdx.x == 0) {
    at.wanted = wanted;
    at.found = found;
  }
  const bool before = (by_mass ? mass_above : count_above) < wanted;
  const bool behind = (by_mass ? mass_above + mass : count_above + count) >= wanted;
  if (before && behind) {
    for (int bin = high;; --bin) {
      const unsigned long long reached =
          by_mass ? mass_above + bins.masses[bin] : count_above + bins.counts[bin];
      if (reached >= wanted) {
        at.bits = bits << 10 | bin;
        at.count = count_above;
        at.mass = mass_above;
        at.equal = bins.counts[bin];
        break;
      }
      count_above += bins.counts[bin];
      mass_above += bins.masses[bin];
    }
  }
}

// Cuts behind the `wanted` highest weights, or behind the highest ones that reach a mass: `wanted`,
// or `share` of all where that is above 0. `mass` becomes the kept one's; untouched if all is kept.
template <typename Logit, typename Heat>
__device__ __noinline__ Cut cut_behind(const Row<Logit>& row, const Heat& heated, float* sums,
                                       bool by_mass, unsigned long long wanted, double share,
                                       unsigned long long* mass) {
  __shared__ Bins bins;
  __shared__ Selection at;
  __syncthreads();  // whoever still reads an earlier selection
  if (threadIdx.x == 0) at = {0, 0, 0, 0, wanted, true};
  __syncthreads();
#pragma unroll 1
  for (int level = 0; level < 3; ++level) {
    fill_bins(row, heated, bins, at.bits, level);
    if (threadIdx.x < 32) descend(bins, at, by_mass, level == 0 ? share : 0.0);
    __syncthreads();
    if (!at.found) return {0, 0x7fffffff};
  }
  const unsigned long long each = mass_of(__uint_as_float(at.bits));
  unsigned long long needed = at.wanted - at.count;
  if (by_mass) needed = each ? (at.wanted - at.mass + each - 1) / each : at.equal;
  needed = min(max(needed, 1ull), (unsigned long long)at.equal);
  Cut cut = {at.bits, 0x7fffffff};
  *mass = at.mass + needed * each;
  const bool all = needed == at.equal;
  __syncthreads();
  if (!all) {
    const Equal<Heat> equal = {heated, cut.bits};
    sum_chunks(row, sums, equal);
    cut.last_id = locate(row, sums, equal, 0.0, (double)needed - 0.5);
  }
  return cut;
}

// The top k weights and, within them, the nucleus of share top_p.
template <typename Logit, typename Heat>
__device__ Cut truncate(const Row<Logit>& row, const Heat& heated, float* sums) {
  const Canvas* canvas = row.canvas;
  Cut cut = {0, 0x7fffffff};
  unsigned long long mass = 0;
  if (canvas->top_k > 0 && canvas->top_k < canvas->vocab) {
    cut = cut_behind(row, heated, sums, false, (unsigned long long)canvas->top_k, 0.0, &mass);
  }
  if (canvas->top_p < 1.0) {
    const unsigned long long wanted =
        max((unsigned long long)ceil(canvas->top_p * (double)mass), 1ull);
    cut = cut_behind(row, heated, sums, true, wanted, mass ? 0.0 : canvas->top_p, &mass);
  }
  return cut;
}

// Draws an id by its weight, restricted to top-k and top-p if the canvas has them.
template <typename Logit, typename Heat>
__device__ int draw(const Row<Logit>& row, const Heat& heated, float* sums, double share) {
  const Canvas* canvas = row.canvas;
  if ((canvas->top_k > 0 && canvas->top_k < canvas->vocab) || canvas->top_p < 1.0) {
    const Kept<Heat> kept = {heated, truncate(row, heated, sums)};
    sum_chunks(row, sums, kept);
    return locate(row, sums, kept, share, 0.0);
  }
  sum_chunks(row, sums, heated);
  return locate(row, sums, heated, share, 0.0);
}
