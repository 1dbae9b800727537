#pragma once

// The instructions of gemm/device/sm90/ptx.h on the emulated machine. Found in place of that header
// by the unit that compiles the kernels for the CPU.

#include <bit>
#include <cmath>
#include <cstring>

#include "gemm/device/portable.h"
#include "gemm/emulated/machine.h"
#include "tensor/float_formats.h"

#define __device__
#define __forceinline__ inline
#define __shared__
#define __align__(bytes)
#define threadIdx (::volley::gemm::emulated::thread_index())
#define blockIdx (::volley::gemm::emulated::block_index())
#define gridDim (::volley::gemm::emulated::grid_dim())

namespace volley::gemm {

struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct uint2 {
  u32 x, y;
};
struct uint4 {
  u32 x, y, z, w;
};
inline float2 make_float2(float x, float y) {
  return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
  return {x, y, z, w};
}

inline float __fmul_rn(float a, float b) {
  return a * b;
}
inline float __fadd_rn(float a, float b) {
  return a + b;
}
inline float __fdiv_rn(float a, float b) {
  return a / b;
}
inline float __uint_as_float(u32 bits) {
  return std::bit_cast<float>(bits);
}
inline void atomicAdd(unsigned long long* at, unsigned long long value) {
  *at += value;
}
inline void atomicMax(unsigned int* at, unsigned int value) {
  *at = *at < value ? value : *at;
}
inline float __fmaf_rn(float a, float b, float c) {
  return std::fma(a, b, c);
}
inline float __int_as_float(int bits) {
  return std::bit_cast<float>(bits);
}
inline u32 __float_as_uint(float value) {
  return std::bit_cast<u32>(value);
}
inline float __ldg(const float* pointer) {
  return *pointer;
}
template <class T>
T __ldcg(const T* pointer) {
  return *pointer;
}
inline void __syncthreads() {
  emulated::sync_cta();
}
inline void __syncwarp() {
  emulated::sync_warp();
}
inline void warp_barrier() {
  emulated::sync_warp();
}
template <class T>
T __shfl_sync(u32, T value, int lane) {
  static_assert(sizeof(T) == 4);
  return std::bit_cast<T>(static_cast<u32>(emulated::shuffle(std::bit_cast<u32>(value), lane)));
}
template <class T>
T __shfl_xor_sync(u32 mask, T value, int lanes) {
  return __shfl_sync(mask, value, emulated::lane() ^ lanes);
}

extern unsigned char dynamic_smem[];

struct alignas(128) TensorMap {
  u64 opaque[16];
};

inline emulated::MapFields fields_of(const TensorMap& map) {
  emulated::MapFields fields;
  static_assert(sizeof(fields) <= sizeof(map.opaque));
  std::memcpy(&fields, map.opaque, sizeof(fields));
  return fields;
}

inline u32 smem_address(const void*) {
  return emulated::smem_base();
}
inline u32 cluster_rank() {
  return emulated::rank_in_cluster();
}
inline u32 map_to_rank(u32 address, u32 rank) {
  return emulated::map_address(address, rank);
}
inline void cluster_meet() {
  emulated::sync_cluster();
}
inline void cluster_sync() {
  emulated::sync_cluster();
}
inline void warpgroup_barrier(int id) {
  emulated::sync_named(id, 128);
}

inline void named_barrier(int id, int num_threads) {
  emulated::sync_named(id, num_threads);
}

inline void launch_dependents() {}
inline void wait_for_kernel_in_front() {}

inline void mbarrier_init(u32 barrier, u32 arrivals) {
  emulated::barrier_init(barrier, arrivals);
}
inline void fence_mbarrier_init() {}
inline void mbarrier_expect_bytes(u32 barrier, u32 bytes) {
  emulated::barrier_expect(barrier, bytes);
}
inline void mbarrier_arrive(u32 barrier) {
  emulated::barrier_arrive(barrier);
}
inline void mbarrier_arrive_remote(u32 barrier) {
  emulated::barrier_arrive(barrier);
}
inline void mbarrier_wait(u32 barrier, u32 parity) {
  emulated::barrier_wait(barrier, parity);
}
inline void mbarrier_wait_cluster(u32 barrier, u32 parity) {
  emulated::barrier_wait(barrier, parity);
}

inline void prefetch_map(const TensorMap&) {}
inline void tma_load(const TensorMap& map, u32 barrier, u32 smem, int x, int y, int z) {
  emulated::load_box(fields_of(map), barrier, smem, x, y, z, 0);
}
inline void tma_load_multicast(const TensorMap& map, u32 barrier, u32 smem, int x, int y, int z,
                               u16 cta_mask) {
  emulated::load_box(fields_of(map), barrier, smem, x, y, z, cta_mask);
}
inline void bulk_load(const void* global, u32 barrier, u32 smem, u32 bytes) {
  emulated::load_bytes(global, barrier, smem, bytes);
}
inline void tma_store(const TensorMap& map, u32 smem, int x, int y, int z) {
  emulated::store_box(fields_of(map), smem, x, y, z, false);
}
inline void tma_add(const TensorMap& map, u32 smem, int x, int y, int z) {
  emulated::store_box(fields_of(map), smem, x, y, z, true);
}
template <int kPending>
void tma_store_wait_read() {
  emulated::wait_stores(kPending);
}
inline void fence_to_async() {}

inline u64 matrix_descriptor(u32 address) {
  return 1ull << 62 | static_cast<u64>(1024 >> 4) << 32 | 1ull << 16 | (address & 0x3FFFF) >> 4;
}
inline u32 matrix_descriptor_low(u32 address) {
  return static_cast<u32>(matrix_descriptor(address));
}
inline u64 matrix_descriptor_of(u32 low) {
  return 1ull << 62 | static_cast<u64>(1024 >> 4) << 32 | low;
}
inline void wgmma_fence() {}
inline void wgmma_commit() {
  emulated::commit_wgmma();
}
template <int kPending>
void wgmma_wait() {
  emulated::wait_wgmma(kPending);
}
template <int kSize>
void pin(float (&)[kSize]) {}
template <int kSize>
void pin(u32 (&)[kSize]) {}
template <class T>
void pin(T*&) {}
inline void pin(int&) {}
inline void store_global(float* pointer, float value) {
  *pointer = value;
}
inline u32 permute_bytes(u32 low, u32 high, u32 selector) {
  const u64 bytes = static_cast<u64>(high) << 32 | low;
  u32 result = 0;
  for (int i = 0; i < 4; ++i) {
    const u32 byte = static_cast<u32>(bytes >> (selector >> (4 * i) & 7) * 8) & 0xFF;
    // Bit 3 of a selector copies the byte's sign over it.
    const bool sign = (selector >> (4 * i) & 8) != 0;
    result |= (sign ? (byte >= 0x80 ? 0xFFU : 0U) : byte) << (8 * i);
  }
  return result;
}
inline u32 permute_bytes_signed(u32 low, u32 high, u32 selector) {
  return permute_bytes(low, high, selector);
}
inline u32 or_masked(u32 value, u32 bits, u32 mask) {
  return value | (bits & mask);
}
template <int kRegisters>
void release_registers() {
  emulated::set_registers(kRegisters);
}
template <int kRegisters>
void claim_registers() {
  emulated::set_registers(kRegisters);
}

inline void wait_clocks(u32) {}

inline u32 pack_bf16(float low, float high) {
  return float_to_bf16(low) | static_cast<u32>(float_to_bf16(high)) << 16;
}
inline u32 pack_e4m3(float low, float high) {
  const auto pack = [](float x) -> u32 { return std::isnan(x) ? 0x7F : float_to_e4m3(x); };
  return pack(low) | pack(high) << 8;
}
inline float relu(float value) {
  return value < 0 ? 0.0F : value + 0.0F;  // -0 becomes 0
}
inline void store_matrices_x4(u32 address, u32 a, u32 b, u32 c, u32 d) {
  const u32 registers[] = {a, b, c, d};
  emulated::store_matrices(address, registers, 4, false);
}
inline void store_matrices_transposed_x2(u32 address, u32 a, u32 b) {
  const u32 registers[] = {a, b};
  emulated::store_matrices(address, registers, 2, true);
}
template <class T>
T read_as(u32 address) {
  T value;
  emulated::read_shared(address, &value, sizeof(T));
  return value;
}
inline void load_matrices_x4(u32 (&values)[4], u32 address) {
  emulated::load_matrices(values, address);
}
inline float load_shared(u32 address) {
  return read_as<float>(address);
}
inline float2 load_shared_2(u32 address) {
  return read_as<float2>(address);
}
inline uint4 load_shared_16(u32 address) {
  return read_as<uint4>(address);
}
inline float4 load_shared_4(u32 address) {
  return read_as<float4>(address);
}
inline uint2 load_shared_8(u32 address) {
  return read_as<uint2>(address);
}
inline u32 load_shared_word(u32 address) {
  return read_as<u32>(address);
}
inline u32 load_shared_byte(u32 address) {
  return read_as<uint8_t>(address);
}
inline void store_shared_word(u32 address, u32 value) {
  emulated::write_shared(address, &value, sizeof(value));
}
inline void store_shared_4(u32 address, float a, float b, float c, float d) {
  const float4 value = {a, b, c, d};
  emulated::write_shared(address, &value, sizeof(value));
}
inline void store_shared_1(u32 address, float value) {
  emulated::write_shared(address, &value, sizeof(value));
}
inline void store_shared_16(u32 address, const uint4& value) {
  emulated::write_shared(address, &value, sizeof(value));
}
inline void store_shared_2(u32 address, float a, float b) {
  const float2 value = {a, b};
  emulated::write_shared(address, &value, sizeof(value));
}
inline void store_async_4(u32 address, float a, float b, float c, float d, u32 barrier) {
  const float4 value = {a, b, c, d};
  emulated::write_shared(address, &value, sizeof(value));
  emulated::barrier_complete_bytes(barrier, sizeof(value));
}

}  // namespace volley::gemm
