// Copies by many threads, sixteen bytes at a time where both ends allow it.
#pragma once

// Part number `part` of `parts` of a copy, by the threads of one block.
__device__ inline void copy_bytes(unsigned char* target, const unsigned char* source,
                                  unsigned long long num_bytes, unsigned part, unsigned parts) {
  const unsigned long long self = (unsigned long long)part * blockDim.x + threadIdx.x;
  const unsigned long long all = (unsigned long long)parts * blockDim.x;
  const unsigned long long ends =
      (unsigned long long)target | (unsigned long long)source | num_bytes;
  if (ends % sizeof(uint4) == 0) {
    for (unsigned long long i = self; i < num_bytes / sizeof(uint4); i += all) {
      ((uint4*)target)[i] = ((const uint4*)source)[i];
    }
    return;
  }
  for (unsigned long long i = self; i < num_bytes; i += all) target[i] = source[i];
}

// Part number `part` of `parts` of a copy of rows, which begin `pitch` bytes apart at both ends.
__device__ inline void copy_rows(unsigned char* target, const unsigned char* source, unsigned rows,
                                 unsigned long long row_bytes, unsigned long long pitch,
                                 unsigned part, unsigned parts) {
  if (pitch == row_bytes) row_bytes *= rows, rows = 1;
  const unsigned per_row = max(parts / rows, 1u);
  for (unsigned row = part / per_row; row < rows; row += max(parts / per_row, 1u)) {
    copy_bytes(target + row * pitch, source + row * pitch, row_bytes, part % per_row, per_row);
  }
}
