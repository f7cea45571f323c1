// Appends rows to a cache. The rows of one slot of a batch do not follow each other there.
#include "cuda/copy.cuh"

extern "C" __global__ void __launch_bounds__(512)
append_rows(unsigned char* target, const unsigned char* source, unsigned long long num_rows,
            unsigned long long row_bytes, unsigned long long pitch) {
  copy_rows(target, source, (unsigned)num_rows, row_bytes, pitch, blockIdx.x, gridDim.x);
}
