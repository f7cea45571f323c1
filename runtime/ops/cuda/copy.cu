// Appends rows to caches: of one text, or of slots of a batch, whose rows do not follow each other.
#include "cuda/copy.cuh"
#include "cuda/state.cuh"

// A text has no state here: `state` in its table is how far its cache lies behind the first.
extern "C" __global__ void __launch_bounds__(512)
append_rows(const unsigned char* rows, unsigned char* caches, const Text* texts, long long blocks,
            unsigned long long num_rows, unsigned long long row_bytes, unsigned long long pitch) {
  const Text* text = own_text(texts, blocks);
  copy_rows(behind(caches, text->state), behind(rows, text->first), (unsigned)num_rows, row_bytes,
            pitch, own_block(blocks), (unsigned)blocks);
}
