// Appends rows to a cache. The rows of one slot of a batch do not follow each other there.
#include "cuda/copy.cuh"

// A launch has a multiple of as many blocks as there are rows, or fewer.
extern "C" __global__ void __launch_bounds__(512)
append_rows(unsigned char* target, const unsigned char* source, unsigned long long row_bytes,
            unsigned long long num_rows, unsigned long long stride) {
  const unsigned rows = (unsigned)num_rows, parts = max(gridDim.x / rows, 1u);
  for (unsigned row = blockIdx.x / parts; row < rows; row += max(gridDim.x / parts, 1u)) {
    copy_bytes(target + row * stride, source + row * stride, row_bytes,
               blockIdx.x % parts, parts);
  }
}
