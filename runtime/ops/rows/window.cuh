// Passes over a row's weights: one that sorts some or all of them into bins, from which a window of
// weights is chosen, and one that lists those of a window and adds up the ones above it.
#pragma once

#include "rows/pick.cuh"

constexpr int MARGIN = 1000;                    // weights to be listed on either side of the cut
constexpr int CROWD = ROOM - 2 * MARGIN - 300;  // in a bin, so that they are not
constexpr unsigned END = 0x7f800000;            // above all weights
constexpr unsigned ONE = 0x3f80000f;            // rounding included

// Bits of weights from `low` to below `high`.
struct Window {
  unsigned low, high;
};

// Reads eight weights; 0 for those that are cut off.
template <typename Logit, typename Heat>
__device__ inline void read_weights(const Row<Logit>& row, int chunk, const Heat& heated,
                                    const Cut& cut, float (&values)[8]) {
  row.read_any(chunk, values);
  const int first = row.first(chunk), step = row.step();
#pragma unroll
  for (int i = 0; i < 8; ++i) values[i] = heated(values[i], first + step * i);
  if (cut.bits == 0) return;
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    if (!cut.keeps(values[i], first + step * i)) values[i] = 0.0f;
  }
}

// What a pass found besides, as amounts.
struct Found {
  unsigned long long above;  // of weights from the window's end on
  unsigned long long all;    // masses only
};

// Lists the weights of a window and adds up the others.
template <bool BY_MASS, typename Logit, typename Heat>
__device__ Found collect(const Row<Logit>& row, const Heat& heated, List& list, const Window& at) {
  float above = 0, all = 0;
  if (threadIdx.x == 0) list.count = 0;
  __syncthreads();
#pragma unroll 1
  for (int base = threadIdx.x / 32 * 4; base < row.chunks; base += blockDim.x / 8) {
    const int chunk = base + (int)threadIdx.x % 32 / 8;
    float values[8];
    read_weights(row, chunk, heated, list.cut, values);
    unsigned inside = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const unsigned bits = __float_as_uint(values[i]);
      if (BY_MASS) all += values[i];
      if (bits >= at.high) above += BY_MASS ? values[i] : 1.0f;
      if (bits >= at.low && bits < at.high) inside |= 1 << i;
    }
    if (!__any_sync(ALL_LANES, inside)) continue;
    const unsigned own = __popc(inside), place = atomicAdd(&list.count, own);
    if (place + own > ROOM) inside = 0;
    unsigned long long* next = list.weights + place;
    const unsigned first = row.first(chunk), step = row.step();
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      if (!(inside >> i & 1)) continue;
      *next++ = (unsigned long long)__float_as_uint(values[i]) << 32 | (first + step * i);
    }
  }
  return {block_sum((unsigned long long)(above * (BY_MASS ? MASS : 1.0f))),
          BY_MASS ? block_sum((unsigned long long)(all * MASS)) : 0};
}

// A row's weights in a range, sorted into bins: as many as `stride` asks for.
struct Histogram {
  Window range;
  int shift, stride;
  int last;          // bin
  float below, all;  // masses under the range, and of all that was read
};

template <typename Logit, typename Heat>
__device__ Histogram sort_into_bins(const Row<Logit>& row, const Heat& heated, List& list,
                                    const Window& range, int stride) {
  Histogram found = {range, 0, stride, 0, 0, 0};
  const unsigned width = min(range.high - 1, max(ONE, range.low)) - range.low;
  while (width >> found.shift > NUM_BINS) ++found.shift;
  found.last = min(width >> found.shift, NUM_BINS - 1u);
  empty_bins(list);
#pragma unroll 1
  for (int chunk = threadIdx.x / 8 * stride; chunk < row.chunks;
       chunk += blockDim.x / 8 * stride) {
    float values[8];
    read_weights(row, chunk, heated, list.cut, values);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const unsigned bits = __float_as_uint(values[i]);
      found.all += values[i];
      if (bits < range.low) {
        found.below += values[i];
      } else if (bits < range.high) {
        atomicAdd(&list.bins[min((bits - range.low) >> found.shift, (unsigned)found.last)], 1u);
      }
    }
  }
  found.below = block_sum(found.below), found.all = block_sum(found.all);
  return found;
}

// Chooses the bins around the one in which the cut should be: it has about MARGIN weights on either
// side in the window. By mass, `left` is what is not to be kept of it; otherwise `count` weights of
// the range are. One thread per bin.
__device__ inline Window choose(const List& list, const Histogram& in, int count, float left) {
  __shared__ int cut, lowest, highest;
  __shared__ unsigned long long cut_above, cut_own;
  const int bin = NUM_BINS - 1 - (int)threadIdx.x, stride = in.stride;
  const unsigned long long own = bin < 0 ? 0 : list.bins[bin];
  unsigned long long number, mass;
  const unsigned long long higher = block_sum_before(own, &number);
  bool is_cut;
  if (count) {
    const unsigned needed = (count + stride - 1) / stride;
    if (threadIdx.x == 0) cut = 0;
    is_cut = higher < needed && higher + own >= needed;
  } else {
    const unsigned middle = in.range.low + (2 * bin + 1 << in.shift >> 1);
    const float each = own ? (float)own * __uint_as_float(middle) : 0.0f;
    const unsigned long long heavy = (unsigned long long)(each * MASS);
    const unsigned long long heavier = block_sum_before(heavy, &mass);
    // What is not kept is told well by a sample, even where a few weights are most of the whole.
    left /= stride;
    const float lower = in.below + (float)(mass - heavier - heavy) / MASS;
    if (threadIdx.x == 0) cut = left < in.below ? 0 : in.last;
    is_cut = lower <= left && left < lower + each;
  }
  __syncthreads();
  if (is_cut && bin >= 0) cut = bin;
  __syncthreads();
  if (bin == cut) cut_above = higher, cut_own = own, lowest = highest = cut;
  __syncthreads();
  if (bin >= 0 && cut_own * stride <= CROWD) {
    if (bin > cut && (cut_above - higher) * stride <= MARGIN) atomicMax(&highest, bin);
    const unsigned long long down = higher + own - cut_above - cut_own;
    if (bin < cut && down * stride <= MARGIN) atomicMin(&lowest, bin);
  }
  __syncthreads();
  const Window found = {
      in.range.low + ((unsigned)lowest << in.shift),
      highest >= in.last ? in.range.high : in.range.low + ((highest + 1u) << in.shift)};
  __syncthreads();
  return found;
}
