#pragma once

// Where the elements of a wgmma accumulator lie, and where they go in shared memory. Host and
// device share these functions so that the host's tests can walk every thread of a tile.
//
// Thread t of a warpgroup holds, of a 64 x N tile, for j in [0, N/8): element 4j + 2h + e at row
// 16*(t/32) + 8h + (t%32)/4 and column 8j + 2*(t%4) + e (PTX ISA, wgmma register fragments, D).

#include "gemm/device/gemm_config.h"

namespace volley::gemm {

VOLLEY_HD constexpr int fragment_row(int thread, int element) {
  return 16 * (thread / 32) + 8 * (element / 2 % 2) + thread % 32 / 4;
}
VOLLEY_HD constexpr int fragment_col(int thread, int element) {
  return 8 * (element / 4) + 2 * (thread % 4) + element % 2;
}

// The byte at which 16-byte chunk `chunk` (0..7) of 128-byte row `row` lies under the 128-byte
// swizzle, from a base aligned to 1024: chunks of a row are permuted by the row's last three bits.
VOLLEY_HD constexpr int swizzled(int row, int chunk) {
  return row * 128 + ((chunk ^ (row & 7)) << 4);
}

// stmatrix.x4 writes four 8x8 matrices of bf16; lane l names the address of row l%8 of matrix l/8,
// and matrix i is made of every lane's i-th register. Here register i of column pair j (columns
// 16j..16j+15 of the fragment) holds elements 8j + 2i, 8j + 2i + 1: rows +8*(i%2), columns
// +8*(i/2).

// Unswapped: the chunk is [64 rows][64 columns]; row of the fragment = row of memory.
VOLLEY_HD constexpr int store_offset(int warp, int lane, int col_pair) {
  const int matrix = lane / 8;
  const int row = 16 * warp + 8 * (matrix % 2) + lane % 8;
  return swizzled(row, 2 * col_pair + matrix / 2);
}

// Unswapped floats: the chunk is [64 rows][32 columns]; elements `element` and the next of a
// thread.
VOLLEY_HD constexpr int store_offset_f32(int thread, int element) {
  const int col = fragment_col(thread, element);
  return swizzled(fragment_row(thread, element), col / 4) + col % 4 * 4;
}

// Swapped: the chunk is [tile_m tokens][64 weights], written eight columns at a time by stmatrix.x2
// with .trans: column of the fragment = row of memory. Lanes 0..15 name the addresses.
VOLLEY_HD constexpr int store_offset_swapped(int warp, int lane, int octet) {
  return swizzled(8 * octet + lane % 8, 2 * warp + lane / 8 % 2);
}

// The cluster rank that adds up and stores columns 8j..8j+7 of a split tile.
VOLLEY_HD constexpr int split_owner(int column_octet, int segments) {
  return column_octet % segments;
}

}  // namespace volley::gemm
