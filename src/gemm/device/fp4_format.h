#pragma once

// FP4 weights as the kernels read them: a layout made at load (fp4.h packs it), shared by the
// packer, the kernels and their tests.
//
// The weight's rows are cut into strips of 64, the M side of one wgmma, and K into blocks of 128. A
// tile, one strip by one block, is one run of fp4_tile_bytes() bytes, so that a plain bulk copy
// brings it; tiles of a strip follow each other along K, strips along n, weights of a group after
// each other. Inside a tile, first 4096 bytes of values, in the order in which a thread holds them
// as wgmma's A operand (PTX ISA, m64nNk32 register fragments): thread t has rows r = 16*(t/32) +
// t%32/4 and r+8 and, in each of four steps of 32 columns, columns c = 4*(t%4)..c+3 and c+16..c+19.
// One 32-bit word holds the eight values of one step and row: magnitude indices in the low three
// bits of each nibble (nibbles 0..3: columns c.., nibbles 4..7: columns c+16..), so that the word,
// its sign bits cleared, is the selector of two byte permutations; signs in bits 7, 15, 23, 31
// (columns c..) and 3, 11, 19, 27 (columns c+16..). The index of a magnitude is its e2m1 code (MX)
// or kNvFp4Index of it (NV: numbers with a half more than a power of two stand last). Then the
// scale codes: for each row one byte for each quant_group, the e4m3 code (exponent and mantissa, no
// sign) by which the group's values are multiplied before the row's float scale.

#include "gemm/device/portable.h"

namespace volley::gemm {

inline constexpr int kFp4StripRows = 64;
inline constexpr int kFp4BlockCols = 128;
inline constexpr int kFp4ValueBytes = kFp4StripRows * kFp4BlockCols / 2;

// The codes that decoding can take: code - 8 must be a normal e4m3 number, and six times the scale
// must fit (MX: 0x7C is 384; NV, whose scale has a mantissa, keeps values up to four times the
// scale and the remainder apart: code + 16 is at most 0x7E, 448).
inline constexpr int kFp4MinCode = 16;
inline constexpr int kMxFp4MaxCode = 104;
inline constexpr int kNvFp4MaxCode = 110;

// 0, 1/2, 1, 3/2, 2, 3, 4, 6 stand at 0, 1, 2, 5, 3, 6, 4, 7.
inline constexpr int kNvFp4Index[8] = {0, 1, 2, 5, 3, 6, 4, 7};

// Quantisation groups of a row in one block: 32 columns wide (MX) or 16 (NV).
VOLLEY_HD constexpr int fp4_groups(bool nv) {
  return nv ? 8 : 4;
}
VOLLEY_HD constexpr int fp4_tile_bytes(bool nv) {
  return kFp4ValueBytes + kFp4StripRows * fp4_groups(nv);
}

// Where the value of `row` (0..63) and `col` (0..127) of a tile lies.
struct Fp4Position {
  int byte;           // of the 32-bit word
  int magnitude_bit;  // the lowest of three
  int sign_bit;
};

VOLLEY_HD constexpr Fp4Position fp4_position(int row, int col) {
  const int thread = 32 * (row / 16) + 4 * (row % 8) + col % 16 / 4;
  const int word = col / 32 * 2 + row % 16 / 8;
  const int quad = col % 32 / 16, in_quad = col % 4;
  return {word / 4 * 2048 + thread * 16 + word % 4 * 4, 16 * quad + 4 * in_quad,
          8 * in_quad + (quad == 0 ? 7 : 3)};
}

// The byte of a row's scale code: rows r and r+8 beside each other, as one thread reads them.
VOLLEY_HD constexpr int fp4_scale_byte(bool nv, int row, int group) {
  const int groups = fp4_groups(nv);
  return kFp4ValueBytes + ((row / 16 * 8 + row % 8) * 2 + row % 16 / 8) * groups + group;
}

}  // namespace volley::gemm
