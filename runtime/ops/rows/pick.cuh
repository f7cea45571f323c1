// Some weights of a row in shared memory, and which of them is the lowest that is kept.
//
// Weights are in [0, 1], so that their bits as integers keep their order. Amounts are numbers, or
// masses in units of 2^-40: integers, which come to the same in any order.
#pragma once

#include "rows/chunks.cuh"

constexpr int ROOM = 3072;     // weights that can be listed
constexpr int NUM_BINS = 320;  // at most one per thread where a row does not fit the list
constexpr int NUM_DIGITS = 256;
constexpr int SPAN = 4;        // digits of a thread: the smallest block has 64 threads
constexpr int LAST_ID = 0x7fffffff;
constexpr int ID_BITS = 18;
constexpr float MASS = 1099511627776.0f;  // 2^40

// What is kept: weights whose bits are above `bits`, and equal ones up to `last_id`.
struct Cut {
  unsigned bits;
  int last_id;

  __device__ bool keeps(float weight, int id) const {
    return __float_as_uint(weight) + (id <= last_id) > bits;
  }
};

struct List {
  unsigned long long weights[ROOM];  // bits, and the id below them; no bits: none
  unsigned count;           // above ROOM: not all of them are listed
  unsigned bins[NUM_BINS];  // amounts, masses in units of 2^-20 ...
  unsigned rest[NUM_BINS];  // ... and what these leave
  Cut cut;                  // what is left of the row so far
  bool has_all;             // of that
  float whole;              // the sum of that; 0: not known

  __device__ unsigned bits(int i) const { return (unsigned)(weights[i] >> 32); }
  __device__ int id(int i) const { return (int)(unsigned)weights[i]; }
};

__device__ inline unsigned long long mass_of(float weight) {
  const float scaled = weight * 1048576.0f;
  const unsigned high = (unsigned)scaled;
  return ((unsigned long long)high << 20) + (unsigned)((scaled - (float)high) * 1048576.0f);
}

__device__ inline void empty_bins(List& list) {
  for (int bin = threadIdx.x; bin < NUM_BINS; bin += blockDim.x) list.bins[bin] = list.rest[bin] = 0;
  __syncthreads();
}

__device__ inline unsigned long long amount_in(const List& list, int bin) {
  return ((unsigned long long)list.bins[bin] << 20) + list.rest[bin];
}

// The highest key at which the amount from there on upwards reaches what is wanted.
struct Picked {
  unsigned key;              // 0: there is not that much
  unsigned long long above;  // amount of higher keys
  unsigned long long own;    // of this one
};

// Finds it eight bits at a time. key(i) is that of the list's i-th weight, 0 for none; no other is
// below `first`, or `bits` bits or more above.
template <typename Key>
__device__ Picked pick(List& list, const Key& key, bool by_mass, unsigned first, int bits,
                       unsigned long long wanted) {
  __shared__ Picked found;
  const int highest = NUM_DIGITS - 1 - (int)threadIdx.x * SPAN;
  unsigned long long above = 0;
  if (threadIdx.x == 0) found.key = 0;
#pragma unroll 1
  while (bits > 0) {
    const int shift = max(bits - 8, 0);
    const unsigned width = 1u << (bits - shift);  // keys above are counted in `above`
    empty_bins(list);
#pragma unroll 1
    for (int i = threadIdx.x; i < (int)list.count; i += blockDim.x) {
      const unsigned bin = (key(i) - first) >> shift;
      if (bin >= width) continue;
      const unsigned long long amount = by_mass ? mass_of(__uint_as_float(list.bits(i))) : 1;
      if (by_mass) atomicAdd(&list.bins[bin], (unsigned)(amount >> 20));
      atomicAdd(&list.rest[bin], (unsigned)amount & 0xfffff);
    }
    __syncthreads();
    unsigned long long own = 0, all;
    for (int bin = highest; bin > highest - SPAN && bin >= 0; --bin) own += amount_in(list, bin);
    unsigned long long before = above + block_sum_before(own, &all);
    if (before < wanted && before + own >= wanted) {
      int bin = highest;
      for (; before + amount_in(list, bin) < wanted; --bin) before += amount_in(list, bin);
      found = {first + ((unsigned)bin << shift), before, amount_in(list, bin)};
    }
    __syncthreads();
    first = found.key, above = found.above, bits = shift;
    if (first == 0) break;
  }
  const Picked result = found;
  __syncthreads();
  return result;
}

// How many equal weights it takes to reach an amount.
__device__ inline unsigned long long number_of(unsigned bits, bool by_mass,
                                               unsigned long long amount) {
  const unsigned long long each = by_mass ? mass_of(__uint_as_float(bits)) : 1;
  return each ? (amount + each - 1) / each : 1;
}

// Cuts the list where the amount of its highest weights reaches `wanted`: `low` is its lowest one's
// bits at least, `high` more than its highest one's. Cuts at 0 if there is not that much.
__device__ inline Cut cut_list(List& list, bool by_mass, unsigned low, unsigned high,
                               unsigned long long wanted) {
  const int bits = 32 - __clz(high - 1 - low | 1);
  const auto weight = [&](int i) { return list.bits(i); };
  const Picked found = pick(list, weight, by_mass, low, bits, wanted);
  if (found.key == 0) return {0, LAST_ID};
  const unsigned long long number = number_of(found.key, by_mass, wanted - found.above);
  if (number >= number_of(found.key, by_mass, found.own)) return {found.key, LAST_ID};
  const auto rank = [&](int i) {
    return list.bits(i) == found.key ? (1u << ID_BITS) - (unsigned)list.id(i) : 0;
  };
  const Picked last = pick(list, rank, false, 1, ID_BITS, number);
  return {found.key, (1 << ID_BITS) - (int)last.key};
}
