// Steps of latents: one pass over them, four components a thread. See latent/contract.py.
#include "cuda/philox.cuh"
#include "latent/latent.cuh"

// Two of a vector's components from two of Philox's words.
__device__ inline void normal_pair(unsigned first, unsigned second, float* pair) {
  const float radius = sqrtf(-2.0f * logf((float)((first >> 8) + 1) * 0x1p-24f));
  float sine, cosine;
  sincospif((float)(second >> 8) * 0x1p-23f, &sine, &cosine);
  pair[0] = radius * cosine;
  pair[1] = radius * sine;
}

// Components 4 group to 4 group + 3 of a row's noise in a step.
__device__ inline void normal_four(const Latent* canvas, int position, int step, int group,
                                   float (&values)[4]) {
  const uint4 words = draw_words(canvas, position, step, DRAW_LATENT + 256u * group);
  normal_pair(words.x, words.y, values);
  normal_pair(words.z, words.w, values + 2);
}

__device__ inline bool is_finite(float value) { return fabsf(value) < __uint_as_float(0x7f800000u); }

extern "C" __global__ void __launch_bounds__(128)
begin_latents(Latent* states, const Text* texts, long long blocks) {
  Latent* canvas = behind(states, own_text(texts, blocks)->state);
  const int row = own_block(blocks), width = canvas->width, position = canvas->staged[0];
  for (int group = threadIdx.x; 4 * group < width; group += blockDim.x) {
    float noise[4];
    normal_four(canvas, position + row, 0, group, noise);
    for (int i = 0; i < 4 && 4 * group + i < width; ++i) {
      const long long at = (long long)row * width + 4 * group + i;
      canvas->latents[at] = noise[i];
      canvas->before[at] = 0.0f;
    }
  }
  if (threadIdx.x) return;
  canvas->known[row] = (float)canvas->staged[1 + row];
  if (row) return;
  canvas->position = position;
  canvas->step = canvas->error = 0;
  *canvas->level = canvas->table[0];
}

extern "C" __global__ void __launch_bounds__(128)
give_latents(const float* embedded, Latent* states, const Text* texts, long long blocks) {
  const Text* text = own_text(texts, blocks);
  Latent* canvas = behind(states, text->state);
  const int row = own_block(blocks);
  if (canvas->known[row] == 0.0f) return;
  const float* source = behind(embedded, text->first);
  for (int i = threadIdx.x; i < canvas->width; i += blockDim.x) {
    const long long at = (long long)row * canvas->width + i;
    canvas->given[at] = canvas->latents[at] = source[at];
  }
}

extern "C" __global__ void __launch_bounds__(128)
move_latents(const float* estimates, Latent* states, const Text* texts, long long blocks) {
  const Text* text = own_text(texts, blocks);
  Latent* canvas = behind(states, text->state);
  if (canvas->step >= canvas->num_steps) return;
  const float* estimate = behind(estimates, text->first);
  const float* numbers = canvas->table + 5 * canvas->step;
  const float keep = numbers[1], pull = numbers[2], pull_before = numbers[3], noise = numbers[4];
  const int row = own_block(blocks), width = canvas->width;
  const bool known = canvas->known[row] != 0.0f;
  bool finite = true;
  for (int group = threadIdx.x; 4 * group < width; group += blockDim.x) {
    float drawn[4] = {0, 0, 0, 0};
    if (noise != 0.0f && !known) {
      normal_four(canvas, canvas->position + row, canvas->step + 1, group, drawn);
    }
    for (int i = 0; i < 4 && 4 * group + i < width; ++i) {
      const long long at = (long long)row * width + 4 * group + i;
      const float value = estimate[at];
      finite &= is_finite(value);
      const float moved = keep * canvas->latents[at] + pull * value +
                          pull_before * canvas->before[at] + noise * drawn[i];
      canvas->latents[at] = known ? canvas->given[at] : moved;
      canvas->before[at] = value;
    }
  }
  if (!finite) atomicCAS(&canvas->error, 0, canvas->step + 1);
}

// Goes on to the next step's noise. One thread block per text.
extern "C" __global__ void __launch_bounds__(32)
advance_latents(Latent* states, const Text* texts, long long blocks) {
  Latent* canvas = behind(states, own_text(texts, blocks)->state);
  if (threadIdx.x || canvas->step >= canvas->num_steps) return;
  if (++canvas->step < canvas->num_steps) *canvas->level = canvas->table[5 * canvas->step];
}
