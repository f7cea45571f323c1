// DDIM steps; arguments are addresses and 64-bit integers. See contract.py.

// Written once per text, but for `step`.
struct Latent {
  float* latents;      // (2, rows, dim)
  float* level;        // (1,)
  int* ids;            // (rows,)
  const float* table;  // (steps, 3)
  int rows;
  int dim;
  int vocab;
  int num_steps;
  int step;
};

constexpr int NO_ID = 0x7fffffff;

extern "C" __global__ void begin(Latent* state) {
  state->step = 0;
  *state->level = state->table[0];
}

// A block of one warp per row.
extern "C" __global__ void __launch_bounds__(32)
step(const float* clean, const float* logits, Latent* state) {
  const float* own = state->table + 3 * state->step;
  const float keep = own[1], pull = own[2];
  const int dim = state->dim, vocab = state->vocab, row = blockIdx.x;
  const size_t half = (size_t)state->rows * dim;
  for (int i = threadIdx.x; i < dim; i += 32) {
    const size_t at = (size_t)row * dim + i;
    const float moved = keep * state->latents[at] + pull * clean[at];
    state->latents[at] = state->latents[half + at] = moved;
  }
  float best = -INFINITY;
  int found = NO_ID;
  for (int i = threadIdx.x; i < vocab; i += 32) {
    const float value = logits[(size_t)row * vocab + i];
    if (value > best) best = value, found = i;
  }
  for (int offset = 16; offset; offset >>= 1) {
    const float other = __shfl_xor_sync(0xffffffffu, best, offset);
    const int id = __shfl_xor_sync(0xffffffffu, found, offset);
    if (other > best || (other == best && id < found)) best = other, found = id;
  }
  if (threadIdx.x == 0) state->ids[row] = found;
}

extern "C" __global__ void advance(Latent* state) {
  if (++state->step < state->num_steps) *state->level = state->table[3 * state->step];
}
