// Enough of CUDA for the unmodified kernels of runtime/ops to compile as C++ and run on a CPU.
//
// A thread block is a set of fibers on one thread, switched only where threads meet: at barriers
// and at warp operations. Blocks run one after another, so that `__shared__` is static storage.
// One warp runs as far as it can before the next one does, upwards or downwards by index as told, so
// that a missing barrier changes results.
// Threads that would wait for ever end the launch with an error instead of hanging it.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

using std::max;
using std::min;

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define __noinline__ __attribute__((noinline))

struct Index {
  unsigned x = 0, y = 0, z = 0;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

namespace emulation {

constexpr int STACK_BYTES = 64 * 1024;

struct Meeting {
  unsigned arrived = 0, generation = 0;
};

struct Warp {
  Meeting meeting;
  uint64_t values[2][32] = {};
};

struct Fiber {
  ucontext_t start;
  jmp_buf place;
  std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
  bool started = false, done = false;
};

struct Launch {
  std::vector<Fiber>& fibers;
  std::vector<Warp> warps;
  Meeting block;
  unsigned alive = 0;
  unsigned long progress = 0;  // grows whenever a meeting is over or a fiber ends
  void* kernel = nullptr;
  uint64_t arguments[8] = {};
  ucontext_t main;
  jmp_buf scheduler;
};

inline Launch* launch = nullptr;
inline Index thread, block, block_size, grid_size;

inline void switch_to_scheduler() {
  if (!_setjmp(launch->fibers[thread.x].place)) _longjmp(launch->scheduler, 1);
}

inline void wait(const Meeting& meeting) {
  const unsigned generation = meeting.generation;
  while (meeting.generation == generation) switch_to_scheduler();
}

inline void meet(Meeting& meeting, unsigned expected) {
  if (++meeting.arrived < expected) return wait(meeting);
  meeting.arrived = 0;
  ++meeting.generation;
  ++launch->progress;
}

// All lanes of a warp hand in a value; returns what they handed in. Two buffers are enough: a lane
// is at most one operation ahead of the slowest.
inline const uint64_t* exchange(unsigned mask, uint64_t value) {
  Warp& warp = launch->warps[thread.x / 32];
  uint64_t* values = warp.values[warp.meeting.generation % 2];
  values[thread.x % 32] = value;
  meet(warp.meeting, __builtin_popcount(mask));
  return values;
}

inline void run_kernel() {
  const uint64_t* a = launch->arguments;
  using Word = uint64_t;
  // A kernel with fewer arguments does not look at the others, and none has more.
  using Kernel = void (*)(Word, Word, Word, Word, Word, Word, Word, Word);
  reinterpret_cast<Kernel>(launch->kernel)(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7]);
  launch->fibers[thread.x].done = true;
  --launch->alive;
  ++launch->progress;
  _longjmp(launch->scheduler, 1);
}

inline void resume(unsigned index) {
  Fiber& fiber = launch->fibers[index];
  thread.x = index;
  if (_setjmp(launch->scheduler)) return;
  if (fiber.started) _longjmp(fiber.place, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack.get();
  fiber.start.uc_stack.ss_size = STACK_BYTES;
  fiber.start.uc_link = &launch->main;
  makecontext(&fiber.start, run_kernel, 0);
  setcontext(&fiber.start);
}

// Runs the lanes of one warp until they can only wait for another warp.
inline void run_warp(unsigned warp, bool downwards) {
  const unsigned begin = 32 * warp, count = min(block_size.x - begin, 32u);
  for (unsigned long before = launch->progress + 1; before != launch->progress;) {
    before = launch->progress;
    for (unsigned i = 0; i < count; ++i) {
      const unsigned index = begin + (downwards ? count - 1 - i : i);
      if (!launch->fibers[index].done) resume(index);
    }
  }
}

// Runs the fibers of one block to their end; false if they wait for each other.
inline bool run_block(bool downwards) {
  const unsigned count = launch->warps.size();
  while (launch->alive) {
    const unsigned long before = launch->progress;
    for (unsigned i = 0; i < count; ++i) run_warp(downwards ? count - 1 - i : i, downwards);
    if (launch->progress == before) return false;
  }
  return true;
}

}  // namespace emulation

#define threadIdx emulation::thread
#define blockIdx emulation::block
#define blockDim emulation::block_size
#define gridDim emulation::grid_size

// Runs a kernel whose arguments are all pointers or 64-bit integers. Returns 0, or 1 when threads
// wait for each other for ever.
extern "C" int emulate(void* kernel, unsigned grid, unsigned block, const uint64_t* arguments,
                       int num_arguments, int downwards) {
  // A device that works calls off by a thread may still do so when another device's launch comes.
  static std::mutex one_at_a_time;
  const std::lock_guard<std::mutex> held(one_at_a_time);
  static std::vector<emulation::Fiber> fibers;  // their stacks serve every launch
  if (fibers.size() < block) fibers.resize(block);
  emulation::Launch launch{fibers};
  emulation::launch = &launch;
  launch.kernel = kernel;
  if (num_arguments > 8) abort();  // a kernel with more arguments than `run_kernel` passes on
  std::copy(arguments, arguments + num_arguments, launch.arguments);
  emulation::grid_size.x = grid;
  emulation::block_size.x = block;
  for (unsigned index = 0; index < grid; ++index) {
    emulation::block.x = index;
    launch.warps.assign((block + 31) / 32, {});
    launch.block = {};
    launch.alive = block;
    for (auto& fiber : launch.fibers) fiber.started = fiber.done = false;
    if (!emulation::run_block(downwards != 0)) return 1;
  }
  return 0;
}

inline void __syncthreads() { emulation::meet(emulation::launch->block, emulation::launch->alive); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { emulation::exchange(mask, 0); }
inline void __threadfence_system() {}

template <typename Value>
Value __shfl_sync(unsigned mask, Value value, int lane) {
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const uint64_t* all = emulation::exchange(mask, bits);
  std::memcpy(&value, &all[lane % 32], sizeof value);
  return value;
}

template <typename Value>
Value __shfl_xor_sync(unsigned mask, Value value, int lanes) {
  return __shfl_sync(mask, value, (int)(emulation::thread.x % 32) ^ lanes);
}

inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const uint64_t* all = emulation::exchange(mask, predicate != 0);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    if (mask >> lane & 1) votes |= (unsigned)all[lane] << lane;
  }
  return votes;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }

template <typename Value>
Value atomicAdd(Value* place, Value value) {
  const Value before = *place;
  *place += value;
  return before;
}
template <typename Value>
Value atomicMin(Value* place, Value value) {
  const Value before = *place;
  *place = min(before, value);
  return before;
}
template <typename Value>
Value atomicMax(Value* place, Value value) {
  const Value before = *place;
  *place = max(before, value);
  return before;
}

template <typename Value>
Value atomicCAS(Value* place, Value expected, Value value) {
  const Value before = *place;
  if (before == expected) *place = value;
  return before;
}

inline void sincospif(float value, float* sine, float* cosine) {
  *sine = (float)std::sin(value * M_PI);
  *cosine = (float)std::cos(value * M_PI);
}

inline unsigned __float_as_uint(float value) {
  unsigned bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline float __uint_as_float(unsigned bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

inline float half_to_float(unsigned short bits) {
  const unsigned sign = (bits & 0x8000u) << 16, rest = bits & 0x7fffu;
  if (rest >= 0x7c00u) return __uint_as_float(sign | 0x7f800000u | (rest & 0x3ffu) << 13);
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest << 13) * 0x1p112f));
}

inline unsigned short float_to_half(float value) {  // of what was one
  const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u;
  if ((bits & 0x7f800000u) == 0x7f800000u) return sign | 0x7c00u | (bits >> 13 & 0x3ffu);
  return sign | __float_as_uint(fabsf(value) * 0x1p-112f) >> 13;
}

inline float power_of_two(float exponent) {
  const float power = exp2f(exponent);
  return power < 0x1p-126f ? 0.0f : power;
}
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
inline int __clz(unsigned bits) { return bits ? __builtin_clz(bits) : 32; }
