#pragma once

// bf16 to e4m3 and e2m1 with the scales that the matrix kernels take, and scales to their layout.
//
// The problem. Each is one pass over memory: 2 bytes in and 1 (e4m3) or 1/2 (e2m1) out for every
// value, scales 1/32 of that or less. So what counts is 16-byte loads, several of them in flight
// in every thread, and stores that fill sectors. NV's float of a whole weight takes a pass of its
// own.
//
// Who does what. A group of 128 columns is 16 threads of 8 values each; of 32 (MX) four, of 16 (NV)
// two: a group's largest magnitude is found by shuffles. A 128x128 quant_group is a CTA, as is a
// tile of 128 tokens by 64 features of the transposing quantiser, which meets in shared memory.
//
// Bits. Divisions and roundings are those of quantize.cc and fp4.cc, one for one: amax / 448 (or
// 6), x / scale, both IEEE, then nearest even. So are NaN (e4m3 0x7F; e2m1 6) and infinity.

#include "gemm/device/fp4_format.h"
#include "gemm/device/quantize_params.h"
#include "gemm/device/sm90/ptx.h"

namespace volley::gemm {

inline constexpr float kQuantizeMinAmax = 1e-4f;
inline constexpr float kQuantizeMaxFloat = 3.402823466e+38f;

// Eight bf16 values.
struct Octet {
  float v[8];
};
__device__ __forceinline__ Octet unpack_bf16(const uint4& raw) {
  const u32 words[4] = {raw.x, raw.y, raw.z, raw.w};
  Octet octet;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    octet.v[2 * i] = __uint_as_float(words[i] << 16);
    octet.v[2 * i + 1] = __uint_as_float(words[i] & 0xFFFF0000u);
  }
  return octet;
}

// A NaN counts for nothing.
__device__ __forceinline__ float larger(float amax, float value) {
  return amax < value ? value : amax;
}
__device__ __forceinline__ float amax_of(const Octet& octet) {
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < 8; ++i) amax = larger(amax, fabsf(octet.v[i]));
  return amax;
}
// Over kLanes neighbouring lanes; all lanes of the warp call it.
template <int kLanes>
__device__ __forceinline__ float amax_over(float amax) {
#pragma unroll
  for (int lanes = kLanes / 2; lanes > 0; lanes /= 2) {
    amax = larger(amax, __shfl_xor_sync(0xffffffffu, amax, lanes));
  }
  return amax;
}

__device__ __forceinline__ float e4m3_scale(float amax, int power_of_two) {
  const float scale = __fdiv_rn(larger(kQuantizeMinAmax, amax), 448.0f);
  if (power_of_two == 0) return scale;
  const u32 bits = __float_as_uint(scale);
  return __uint_as_float((bits & 0x7F800000u) + ((bits & 0x7FFFFFu) != 0 ? 0x800000u : 0u));
}
__device__ __forceinline__ u32 pack_four(float a, float b, float c, float d) {
  return pack_e4m3(a, b) | pack_e4m3(c, d) << 16;
}
__device__ __forceinline__ uint2 to_e4m3(const Octet& octet, float scale) {
  float q[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) q[i] = __fdiv_rn(octet.v[i], scale);
  return {pack_four(q[0], q[1], q[2], q[3]), pack_four(q[4], q[5], q[6], q[7])};
}

// e4m3, a scale for each 1x128 -------------------------------------------------------------------

__device__ __forceinline__ void quantize_rows(const QuantizeParams& p) {
  const int blocks = p.cols / 128;
  const int col_tiles = ceil_div(blocks, kQuantizeRowGroups);
  const int row_tiles = ceil_div(p.rows, kQuantizeRows);
  const int cta = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int first_block = cta % col_tiles * kQuantizeRowGroups;
  const int row = cta / col_tiles % row_tiles * kQuantizeRows + thread / 16, lane = thread % 16;
  const long long slab = cta / col_tiles / row_tiles;
  const u16* x = static_cast<const u16*>(p.x) + (slab * p.rows + row) * p.x_stride;
  uint4 raw[kQuantizeRowGroups];
#pragma unroll
  for (int i = 0; i < kQuantizeRowGroups; ++i) {
    raw[i] = {0, 0, 0, 0};
    if (row < p.rows && first_block + i < blocks) {
      raw[i] = *reinterpret_cast<const uint4*>(x + (first_block + i) * 128 + lane * 8);
    }
  }
#pragma unroll
  for (int i = 0; i < kQuantizeRowGroups; ++i) {
    const int block = first_block + i;
    const Octet octet = unpack_bf16(raw[i]);
    const float scale = e4m3_scale(amax_over<16>(amax_of(octet)), p.power_of_two);
    if (row >= p.rows || block >= blocks) continue;
    *reinterpret_cast<uint2*>(p.values + (slab * p.rows + row) * p.cols + block * 128 + lane * 8) =
        to_e4m3(octet, scale);
    if (lane == 0) {
      static_cast<float*>(p.scales)[(slab * blocks + block) * p.scale_stride + row] = scale;
    }
  }
}

// The same of the transposed matrix --------------------------------------------------------------

// x [rows tokens, cols features] to values [cols, rows rounded up to 128], zeros past the last
// token. A warp holds 16 tokens of 64 features, two features a lane.
__device__ __forceinline__ void quantize_columns(const QuantizeParams& p, u32 smem) {
  constexpr int kTokens = 16, kRowBytes = 144;  // of a feature's values; 16 more than it needs
  const int token_tiles = ceil_div(p.rows, kQuantizeTokens);
  const int feature_tiles = ceil_div(p.cols, kQuantizeFeatures);
  const int cta = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int warp = thread / 32, lane = thread % 32;
  const int first_feature = cta % feature_tiles * kQuantizeFeatures;
  const int token_tile = cta / feature_tiles % token_tiles;
  const long long slab = cta / feature_tiles / token_tiles;
  const int token = token_tile * kQuantizeTokens + warp * kTokens;
  const int feature = first_feature + 2 * lane;
  const u16* x = static_cast<const u16*>(p.x) + (slab * p.rows + token) * p.x_stride + feature;
  u32 raw[kTokens];
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    raw[i] = 0;
    if (token + i < p.rows && feature < p.cols) {
      raw[i] = *reinterpret_cast<const u32*>(x + i * p.x_stride);
    }
  }
  float amax[2] = {0.0f, 0.0f};
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    amax[0] = larger(amax[0], fabsf(__uint_as_float(raw[i] << 16)));
    amax[1] = larger(amax[1], fabsf(__uint_as_float(raw[i] & 0xFFFF0000u)));
  }
  store_shared_2(smem + (warp * kQuantizeFeatures + 2 * lane) * 4, amax[0], amax[1]);
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kQuantizeTokens / kTokens; ++w) {
    const float2 other = load_shared_2(smem + (w * kQuantizeFeatures + 2 * lane) * 4);
    amax[0] = larger(amax[0], other.x);
    amax[1] = larger(amax[1], other.y);
  }
  const u32 values = smem + kQuantizeTokens / kTokens * kQuantizeFeatures * 4;
#pragma unroll
  for (int f = 0; f < 2; ++f) {
    const float scale = e4m3_scale(amax[f], p.power_of_two);
    u32 packed[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float q[4];
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const u32 word = raw[4 * i + j];
        q[j] = __fdiv_rn(__uint_as_float(f == 0 ? word << 16 : word & 0xFFFF0000u), scale);
      }
      packed[i] = pack_four(q[0], q[1], q[2], q[3]);
    }
    store_shared_16(values + (2 * lane + f) * kRowBytes + warp * kTokens,
                    {packed[0], packed[1], packed[2], packed[3]});
    if (warp == 0 && feature + f < p.cols) {
      static_cast<float*>(
          p.scales)[(slab * token_tiles + token_tile) * p.scale_stride + feature + f] = scale;
    }
  }
  __syncthreads();
  const long long row_bytes = 1LL * token_tiles * kQuantizeTokens;
#pragma unroll
  for (int i = thread; i < kQuantizeFeatures * 8; i += kQuantizeThreads) {
    const int in_tile = i / 8;
    if (first_feature + in_tile >= p.cols) continue;
    *reinterpret_cast<uint4*>(p.values + (slab * p.cols + first_feature + in_tile) * row_bytes +
                              token_tile * kQuantizeTokens + i % 8 * 16) =
        load_shared_16(values + in_tile * kRowBytes + i % 8 * 16);
  }
}

// e4m3, a scale for each 128x128 -----------------------------------------------------------------

__device__ __forceinline__ void quantize_blocks(const QuantizeParams& p, u32 smem) {
  constexpr int kRows = 128 * 16 / kQuantizeThreads;  // of a thread, 16 apart
  const int blocks = p.cols / 128, row_tiles = ceil_div(p.rows, 128);
  const int cta = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int block = cta % blocks, row_tile = cta / blocks % row_tiles;
  const long long slab = cta / blocks / row_tiles;
  const int row = row_tile * 128 + thread / 16, col = block * 128 + thread % 16 * 8;
  const u16* x = static_cast<const u16*>(p.x) + (slab * p.rows + row) * p.x_stride + col;
  uint4 raw[kRows];
  float amax = 0.0f;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    raw[i] = {0, 0, 0, 0};
    if (row + 16 * i < p.rows) raw[i] = *reinterpret_cast<const uint4*>(x + 16 * i * p.x_stride);
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) amax = larger(amax, amax_of(unpack_bf16(raw[i])));
  amax = amax_over<32>(amax);
  if (thread % 32 == 0) store_shared_1(smem + thread / 32 * 4, amax);
  __syncthreads();
#pragma unroll
  for (int w = 0; w < kQuantizeThreads / 32; ++w) amax = larger(amax, load_shared(smem + w * 4));
  const float scale = e4m3_scale(amax, p.power_of_two);
  if (thread == 0) {
    static_cast<float*>(p.scales)[(slab * row_tiles + row_tile) * blocks + block] = scale;
  }
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    if (row + 16 * i >= p.rows) continue;
    *reinterpret_cast<uint2*>(p.values + (slab * p.rows + row + 16 * i) * p.cols + col) =
        to_e4m3(unpack_bf16(raw[i]), scale);
  }
}

// e2m1 -------------------------------------------------------------------------------------------

// Ties to the even code; beyond 6, and NaN, 6.
__device__ __forceinline__ u32 to_e2m1(float value) {
  // Below 1 the codes are multiples of a half: the last bit of floats around 3 * 2^21. From there
  // on they are exponent and one bit of mantissa, rounded as whole numbers.
  const float x = fabsf(value);
  const u32 small = __float_as_uint(__fadd_rn(x, 6291456.0f)) - 0x4AC00000u;
  const u32 bits = __float_as_uint(fminf(x, 6.0f));
  const u32 large = ((bits + 0x1FFFFFu + (bits >> 22 & 1u)) >> 22) - 252u;
  const u32 code = x < 1.0f ? small : large;
  // A NaN's sign is whatever made it.
  return value != value ? code : code | (__float_as_uint(value) >> 28 & 8u);
}

// Of a code without its sign.
__device__ __forceinline__ float e2m1_magnitude(u32 code) {
  return code < 2 ? 0.5f * static_cast<float>(code) : __uint_as_float((code + 252u) << 22);
}

__device__ __forceinline__ float finite(float amax) {
  return amax < kQuantizeMaxFloat ? amax : kQuantizeMaxFloat;
}
__device__ __forceinline__ float nv_tensor_scale(float amax) {
  return __fdiv_rn(larger(kQuantizeMinAmax, finite(amax)), 6.0f * 448.0f);
}
// Of a byte without a sign that is no NaN.
__device__ __forceinline__ float e4m3_value(u32 byte) {
  if (byte >= 8) return __uint_as_float((byte << 20) + (120u << 23));
  return static_cast<float>(byte) * (1.0f / 512);
}

// Each thread takes 8 columns kQuantizeChunks times, kQuantizeThreads * 8 apart. Whole numbers are
// of 32 bits where they are divided.
template <class Visit>
__device__ __forceinline__ void for_each_octet(const QuantizeParams& p, Visit&& visit) {
  const u32 ctas = quantize_fp4_ctas(p);
  const u32 slab = blockIdx.x / ctas, cta = blockIdx.x % ctas;
  const u32 row_octets = p.cols / 8, octets = p.rows * row_octets;
  const u32 first = cta * kQuantizeThreads * kQuantizeChunks + threadIdx.x;
  const u16* x = static_cast<const u16*>(p.x) + 1LL * slab * p.rows * p.x_stride;
  uint4 raw[kQuantizeChunks];
#pragma unroll
  for (int i = 0; i < kQuantizeChunks; ++i) {
    const u32 octet = first + i * kQuantizeThreads;
    raw[i] = {0, 0, 0, 0};
    if (octet < octets) {
      const u32 row = octet / row_octets;
      raw[i] =
          *reinterpret_cast<const uint4*>(x + row * p.x_stride + (octet - row * row_octets) * 8);
    }
  }
#pragma unroll
  for (int i = 0; i < kQuantizeChunks; ++i) {
    const u32 octet = first + i * kQuantizeThreads;
    visit(static_cast<int>(slab), octet + 1LL * slab * octets, octet < octets, unpack_bf16(raw[i]));
  }
}

// [.., cols/2] values, the even column in the low nibble; [.., cols/32] UE8M0 scales.
__device__ __forceinline__ void quantize_mxfp4(const QuantizeParams& p) {
  for_each_octet(p, [&](int, long long octet, bool live, const Octet& values) {
    const float amax = finite(amax_over<4>(amax_of(values)));
    const u32 bits = __float_as_uint(__fdiv_rn(larger(kQuantizeMinAmax, amax), 6.0f));
    const u32 exponent = (bits >> 23) + ((bits & 0x7FFFFFu) != 0 ? 1u : 0u);
    if (!live) return;
    // A power of two from 2^-15 to 2^126: to multiply by its inverse is to divide.
    const float inverse = __uint_as_float((254 - exponent) << 23);
    u32 word = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) word |= to_e2m1(__fmul_rn(values.v[i], inverse)) << (4 * i);
    reinterpret_cast<u32*>(p.values)[octet] = word;
    if (octet % 4 == 0) {
      static_cast<unsigned char*>(p.scales)[octet / 4] = static_cast<unsigned char>(exponent);
    }
  });
}

// [.., cols/16] e4m3 scales beside the slab's float.
__device__ __forceinline__ void quantize_nvfp4(const QuantizeParams& p) {
  for_each_octet(p, [&](int slab, long long octet, bool live, const Octet& values) {
    const float tensor = nv_tensor_scale(p.tensor_scales[slab]);
    const float amax = finite(amax_over<2>(amax_of(values)));
    const u32 byte = pack_e4m3(__fdiv_rn(__fdiv_rn(amax, 6.0f), tensor), 0.0f);
    const float scale = __fmul_rn(e4m3_value(byte), tensor);
    if (!live) return;
    u32 word = 0;
    if (scale > 0.0f) {
#pragma unroll
      for (int i = 0; i < 8; ++i) word |= to_e2m1(__fdiv_rn(values.v[i], scale)) << (4 * i);
    }
    reinterpret_cast<u32*>(p.values)[octet] = word;
    if (octet % 2 == 0) {
      static_cast<unsigned char*>(p.scales)[octet / 2] = static_cast<unsigned char>(byte);
    }
  });
}

// The largest magnitude of each slab, to tensor_scales, zero before.
__device__ __forceinline__ void slab_amax(const QuantizeParams& p) {
  float amax = 0.0f;
  int of_slab = 0;
  for_each_octet(p, [&](int slab, long long, bool, const Octet& values) {
    of_slab = slab;
    amax = larger(amax, amax_of(values));
  });
  amax = amax_over<32>(amax);
  // Floats that are not negative are ordered as their bits. Most warps need not be heard.
  if (threadIdx.x % 32 == 0 && amax > __ldcg(p.tensor_scales + of_slab)) {
    atomicMax(reinterpret_cast<unsigned int*>(p.tensor_scales) + of_slab, __float_as_uint(amax));
  }
}
__device__ __forceinline__ void finish_tensor_scales(const QuantizeParams& p) {
  const int slab = static_cast<int>(blockIdx.x) * kQuantizeThreads + static_cast<int>(threadIdx.x);
  if (slab < p.num_slabs) p.tensor_scales[slab] = nv_tensor_scale(p.tensor_scales[slab]);
}

// e2m1 to the matrix kernels' tiles ---------------------------------------------------------------

// A scale as fp4.cc counts it: 8 * exponent + three bits of mantissa, exponents as e4m3 has them
// but without an end.
template <bool kNv>
__device__ __forceinline__ int wide_code(int scale) {
  if constexpr (!kNv) return 8 * (scale - 127 + 7);
  if (scale >= 8) return scale;
  const int top = scale >= 4 ? 2 : scale >= 2 ? 1 : 0;  // of a denormal's mantissa
  return 8 * (top - 2) + ((scale << (3 - top)) & 7);
}

// Four columns of a packed word, and the code that their group's scale becomes.
struct PackedQuad {
  u32 word;
  int code;
  int num_rounded;
};

// `nibbles`: four e2m1 values; `has_values`: whether any of their group is not 0.
template <bool kNv>
__device__ __forceinline__ PackedQuad pack_quad(u32 nibbles, int scale, bool has_values, int shift,
                                                int quad) {
  const bool lives = has_values && !(kNv && scale == 0);
  const int wide = wide_code<kNv>(scale) - 8 * shift;
  const int doublings = max_of(0, (kFp4MinCode - wide + 7) / 8);
  PackedQuad out = {0, lives ? wide + 8 * doublings : kFp4MinCode, 0};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    u32 value = nibbles >> (4 * i) & 15u;
    const u32 sign = value >> 3;
    u32 magnitude = lives ? value & 7u : 0u;
    if (doublings > 0 && magnitude > 0) {
      const float wanted = ldexpf(e2m1_magnitude(magnitude), -doublings);
      magnitude = to_e2m1(wanted);
      out.num_rounded += e2m1_magnitude(magnitude) != wanted;
    }
    // kNvFp4Index, a nibble each.
    const u32 index = kNv ? 0x74635210u >> (4 * magnitude) & 7u : magnitude;
    out.word |= index << (16 * quad + 4 * i) | sign << (8 * i + (quad == 0 ? 7 : 3));
  }
  return out;
}

// A warp packs a row. Half a warp has a block of 128 columns, a lane the 32-bit word of one step of
// 32 columns that thread `quarter` of a row's four will hold (fp4_format.h).
template <bool kNv>
__device__ __forceinline__ void pack_fp4(const PackFp4Params& p) {
  constexpr int kCols = kNv ? 16 : 32, kGroups = 128 / kCols, kGroupWords = kCols / 8;
  constexpr int kMaxCode = kNv ? kNvFp4MaxCode : kMxFp4MaxCode;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % 32;
  const long long padded = blockIdx.x * (kQuantizeThreads / 32) + thread / 32;
  const int rows = round_up(p.n, kFp4StripRows), blocks = p.k / kFp4BlockCols;
  const int row = static_cast<int>(padded % rows), in_strip = row % kFp4StripRows;
  const long long group = padded / rows, source = group * p.n + row;
  const bool real = row < p.n;
  const u32* words = reinterpret_cast<const u32*>(p.values) + source * (p.k / 8);
  const unsigned char* scales = p.scales + source * (p.k / kCols);

  // The row's largest scale, of groups that have values.
  int top = -(1 << 20);
  for (int g = lane; real && g < p.k / kCols; g += 32) {
    u32 any = 0;
#pragma unroll
    for (int i = 0; i < kGroupWords; ++i) any |= words[g * kGroupWords + i] & 0x77777777u;
    if (any != 0 && !(kNv && scales[g] == 0)) top = max_of(top, wide_code<kNv>(scales[g]));
  }
#pragma unroll
  for (int lanes = 16; lanes > 0; lanes /= 2) {
    top = max_of(top, static_cast<int>(__shfl_xor_sync(0xffffffffu, top, lanes)));
  }
  // By whole powers of two, up or down, to where it just fits: rounded up.
  const int shift = top > -(1 << 20) ? (top - kMaxCode + 7) >> 3 : 0;
  if (lane == 0) {
    const float tensor = kNv && real ? p.tensor_scales[group] : 1.0f;
    p.row_scales[padded] = real ? ldexpf(tensor, shift) : 0.0f;
  }

  const int step = lane % 16 / 4, quarter = lane % 4;
  unsigned char* strip = p.tiles + padded / kFp4StripRows * blocks * fp4_tile_bytes(kNv);
  const int word = step * 2 + in_strip % 16 / 8;
  const int at =
      word / 4 * 2048 + (32 * (in_strip / 16) + 4 * (in_strip % 8) + quarter) * 16 + word % 4 * 4;
  int num_rounded = 0;
  for (int first = 0; first < blocks; first += 2) {
    const int block = first + lane / 16;
    const bool live = real && block < blocks;
    // Columns 4 * quarter.. and 16 behind them, of this step: two halves of words.
    u32 low = 0, high = 0;
    if (live) {
      const int column_word = block * 16 + step * 4 + quarter / 2;
      low = words[column_word] >> (16 * (quarter % 2)) & 0xFFFFu;
      high = words[column_word + 2] >> (16 * (quarter % 2)) & 0xFFFFu;
    }
    u32 any_low = low & 0x7777u, any_high = high & 0x7777u;
#pragma unroll
    for (int lanes = 1; lanes <= 2; lanes *= 2) {
      any_low |= __shfl_xor_sync(0xffffffffu, any_low, lanes);
      any_high |= __shfl_xor_sync(0xffffffffu, any_high, lanes);
    }
    if (block >= blocks) continue;
    const int g = block * kGroups + step * (kGroups / 4);
    const int low_scale = live ? scales[g] : 0, high_scale = live ? scales[g + kGroups / 4 - 1] : 0;
    const bool one = !kNv;  // group for both halves
    const PackedQuad a =
        pack_quad<kNv>(low, low_scale, (one ? any_low | any_high : any_low) != 0, shift, 0);
    const PackedQuad b =
        pack_quad<kNv>(high, high_scale, (one ? any_low | any_high : any_high) != 0, shift, 1);
    unsigned char* tile = strip + 1LL * block * fp4_tile_bytes(kNv);
    *reinterpret_cast<u32*>(tile + at) = a.word | b.word;
    num_rounded += a.num_rounded + b.num_rounded;
    if (quarter == 0) {
      unsigned char* codes = tile + fp4_scale_byte(kNv, in_strip, step * (kGroups / 4));
      codes[0] = static_cast<unsigned char>(a.code);
      if (kNv) codes[1] = static_cast<unsigned char>(b.code);
    }
  }
  if (p.num_rounded != nullptr && num_rounded > 0) {
    atomicAdd(p.num_rounded, static_cast<unsigned long long>(num_rounded));
  }
}

// Scales -----------------------------------------------------------------------------------------

// Floats [num_slabs, rows, cols], packed, to [num_slabs, cols, scale_stride].
__device__ __forceinline__ void transpose_scales(const QuantizeParams& p, u32 smem) {
  constexpr int kTile = kTransposeTile, kRow = kTile + 1;
  const int col_tiles = ceil_div(p.cols, kTile), row_tiles = ceil_div(p.rows, kTile);
  const int cta = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int col = cta % col_tiles * kTile, row = cta / col_tiles % row_tiles * kTile;
  const long long slab = cta / col_tiles / row_tiles;
  const int line = thread / kTile, lane = thread % kTile;
  const float* x = static_cast<const float*>(p.x) + slab * p.rows * p.cols;
  for (int r = line; r < kTile; r += kQuantizeThreads / kTile) {
    if (row + r < p.rows && col + lane < p.cols) {
      store_shared_1(smem + (r * kRow + lane) * 4, x[1LL * (row + r) * p.cols + col + lane]);
    }
  }
  __syncthreads();
  float* out = static_cast<float*>(p.scales) + slab * p.cols * p.scale_stride;
  for (int c = line; c < kTile; c += kQuantizeThreads / kTile) {
    if (row + lane < p.rows && col + c < p.cols) {
      out[(col + c) * p.scale_stride + row + lane] = load_shared(smem + (lane * kRow + c) * 4);
    }
  }
}

}  // namespace volley::gemm
