#pragma once

// The instructions of Hopper that C++ has no words for, one function each. Section names are those
// of the PTX ISA 8.x manual.

#include "gemm/device/portable.h"

namespace volley::gemm {

__device__ __forceinline__ u32 smem_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

__device__ __forceinline__ u32 cluster_rank() {
  u32 rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}

// The address of the same variable in the shared memory of CTA `rank` of the cluster.
__device__ __forceinline__ u32 map_to_rank(u32 address, u32 rank) {
  u32 mapped;
  asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(mapped) : "r"(address), "r"(rank));
  return mapped;
}

// All threads of all CTAs of the cluster. The first orders no memory accesses: it follows
// fence_mbarrier_init(), or ends a kernel none of whose accesses to other CTAs is still under way.
// The second waits for those, arrivals included, and for this thread's stores to global memory
// (MEMBAR.ALL.GPU).
__device__ __forceinline__ void cluster_meet() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}
__device__ __forceinline__ void cluster_sync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::
                   : "memory");
}

// The math warpgroups' own barriers; id 0 is __syncthreads.
__device__ __forceinline__ void warpgroup_barrier(int id) {
  asm volatile("bar.sync %0, 128;" ::"r"(id) : "memory");
}

// Some warps' own barrier, of `num_threads` threads.
__device__ __forceinline__ void named_barrier(int id, int num_threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(num_threads) : "memory");
}

// Programmatic dependent launch: the next kernel's CTAs may start where there is room; and wait
// until the kernel in front has ended and its writes are visible.
__device__ __forceinline__ void launch_dependents() {
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
}
__device__ __forceinline__ void wait_for_kernel_in_front() {
  asm volatile("griddepcontrol.wait;" ::: "memory");
}

// __syncwarp(), as an instruction: in a converged warp the compiler leaves that one out, and
// racecheck then sees no order between what the lanes read and one lane's arrival. It stays where
// the mask, all lanes, is read from special registers.
__device__ __forceinline__ void warp_barrier() {
  u32 before, others;
  asm("mov.u32 %0, %%lanemask_lt;" : "=r"(before));
  asm("mov.u32 %0, %%lanemask_ge;" : "=r"(others));
  asm volatile("bar.warp.sync %0;" ::"r"(before | others) : "memory");
}

// mbarrier -------------------------------------------------------------------------------------

__device__ __forceinline__ void mbarrier_init(u32 barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes initialised barriers visible to the cluster and to the copy engine.
__device__ __forceinline__ void fence_mbarrier_init() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void mbarrier_expect_bytes(u32 barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes)
               : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// `barrier` from map_to_rank. Orders what a stage's release needs, reads before the next write, and
// releases nothing beyond the CTA: .release.cluster is a MEMBAR.ALL.GPU in SASS, and one for each
// block of K made kernels with multicast two to three times as slow as those without (measured on
// an H100).
__device__ __forceinline__ void mbarrier_arrive_remote(u32 barrier) {
  asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void mbarrier_wait(u32 barrier, u32 parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "retry:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni finished;\n"
      "bra.uni retry;\n"
      "finished:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// The same, for what other CTAs of the cluster wrote.
__device__ __forceinline__ void mbarrier_wait_cluster(u32 barrier, u32 parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "retry:\n"
      "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@done bra.uni finished;\n"
      "bra.uni retry;\n"
      "finished:\n"
      "}\n" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

// The copy engine (cp.async.bulk.tensor) ---------------------------------------------------------

struct alignas(128) TensorMap {
  u64 opaque[16];
};

__device__ __forceinline__ void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Box at (x, y, z), innermost first, to shared memory; counts its bytes on `barrier`.
__device__ __forceinline__ void tma_load(const TensorMap& map, u32 barrier, u32 smem, int x, int y,
                                         int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%3, %4, %5}], [%2];" ::"r"(smem),
      "l"(&map), "r"(barrier), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// The same box to the same offset of every CTA in `cta_mask`, counted on each one's own barrier.
__device__ __forceinline__ void tma_load_multicast(const TensorMap& map, u32 barrier, u32 smem,
                                                   int x, int y, int z, u16 cta_mask) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes"
      ".multicast::cluster [%0], [%1, {%4, %5, %6}], [%2], %3;" ::"r"(smem),
      "l"(&map), "r"(barrier), "h"(cta_mask), "r"(x), "r"(y), "r"(z)
      : "memory");
}

// `bytes`, a multiple of 16, from global to shared memory, both aligned to 16.
__device__ __forceinline__ void bulk_load(const void* global, u32 barrier, u32 smem, u32 bytes) {
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(smem),
      "l"(__cvta_generic_to_global(global)), "r"(bytes), "r"(barrier)
      : "memory");
}

__device__ __forceinline__ void tma_store(const TensorMap& map, u32 smem, int x, int y, int z) {
  asm volatile(
      "cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];" ::"l"(&map),
      "r"(smem), "r"(x), "r"(y), "r"(z)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// The same, added to what is there: floats, each sum rounded to nearest even (subnormals too, on an
// H100).
__device__ __forceinline__ void tma_add(const TensorMap& map, u32 smem, int x, int y, int z) {
  asm volatile(
      "cp.reduce.async.bulk.tensor.3d.global.shared::cta.add.bulk_group [%0, {%2, %3, %4}], "
      "[%1];" ::"l"(&map),
      "r"(smem), "r"(x), "r"(y), "r"(z)
      : "memory");
  asm volatile("cp.async.bulk.commit_group;" ::: "memory");
}

// Waits until at most kPending of this thread's stores still read shared memory.
template <int kPending>
__device__ __forceinline__ void tma_store_wait_read() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kPending) : "memory");
}

// Orders this thread's shared memory writes before the copy engine's reads.
__device__ __forceinline__ void fence_to_async() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// wgmma ------------------------------------------------------------------------------------------

// A matrix in shared memory whose rows are 128 bytes of K under the 128-byte swizzle: eight rows
// make 1024 bytes, the stride between row groups. `address` is in a 1024-byte aligned tile,
// advanced along K by at most 96 bytes.
__device__ __forceinline__ u64 matrix_descriptor(u32 address) {
  constexpr u64 kSwizzle128B = 1ull << 62;
  constexpr u64 kRowGroupStride = static_cast<u64>(1024 >> 4) << 32;
  constexpr u64 kLeadingStride = 1ull << 16;  // unused for a swizzled K-major matrix
  return kSwizzle128B | kRowGroupStride | kLeadingStride | ((address & 0x3FFFF) >> 4);
}

// The same descriptor's low half, and the descriptor of one: the high half is the same for all, so
// that stepping through tiles and along K is arithmetic on 32 bits. A step is in units of 16 bytes.
__device__ __forceinline__ u32 matrix_descriptor_low(u32 address) {
  return static_cast<u32>(matrix_descriptor(address));
}
__device__ __forceinline__ u64 matrix_descriptor_of(u32 low) {
  constexpr u64 kHigh = 1ull << 62 | static_cast<u64>(1024 >> 4) << 32;
  return kHigh | low;
}

__device__ __forceinline__ void wgmma_fence() {
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
__device__ __forceinline__ void wgmma_commit() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
template <int kPending>
__device__ __forceinline__ void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kPending) : "memory");
}

// Keeps the compiler from moving uses of `values` across the asynchronous instructions around it.
template <int kSize>
__device__ __forceinline__ void pin(float (&values)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+f"(values[i])::"memory");
}

template <int kSize>
__device__ __forceinline__ void pin(u32 (&values)[kSize]) {
#pragma unroll
  for (int i = 0; i < kSize; ++i) asm volatile("" : "+r"(values[i])::"memory");
}

// Keeps the compiler from computing in advance what follows from a value.
__device__ __forceinline__ void pin(int& value) {
  asm volatile("" : "+r"(value));
}

// Keeps the compiler from computing a pointer anew.
template <class T>
__device__ __forceinline__ void pin(T*& pointer) {
  asm volatile("" : "+l"(pointer));
}
__device__ __forceinline__ void store_global(float* pointer, float value) {
  asm volatile("st.global.f32 [%0], %1;" ::"l"(__cvta_generic_to_global(pointer)), "f"(value)
               : "memory");
}

// Byte i of the result is byte (selector >> 4i & 7) of `high:low`; bit 3 of each nibble is 0.
__device__ __forceinline__ u32 permute_bytes(u32 low, u32 high, u32 selector) {
  return __byte_perm(low, high, selector);
}
// The same; where bit 3 of a nibble is set, the byte's sign bit is copied over the byte.
__device__ __forceinline__ u32 permute_bytes_signed(u32 low, u32 high, u32 selector) {
  u32 result;
  asm("prmt.b32 %0, %1, %2, %3;" : "=r"(result) : "r"(low), "r"(high), "r"(selector));
  return result;
}
// value | (bits & mask), in one operation.
__device__ __forceinline__ u32 or_masked(u32 value, u32 bits, u32 mask) {
  u32 result;
  asm("lop3.b32 %0, %1, %2, %3, 0xF8;" : "=r"(result) : "r"(value), "r"(bits), "r"(mask));
  return result;
}

// Of the SM.
__device__ __forceinline__ void wait_clocks(u32 clocks) {
  u32 start, now;
  asm volatile("mov.u32 %0, %%clock;" : "=r"(start));
  do {
    asm volatile("mov.u32 %0, %%clock;" : "=r"(now));
  } while (now - start < clocks);
}

// Registers -------------------------------------------------------------------------------------

template <int kRegisters>
__device__ __forceinline__ void release_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void claim_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Results -------------------------------------------------------------------------------------

// Two floats as bf16, rounded to nearest even; `low` in the low half.
__device__ __forceinline__ u32 pack_bf16(float low, float high) {
  u32 packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// Two floats as e4m3, rounded to nearest even, at most 448; `low` in the low byte. NaN is 0x7F.
__device__ __forceinline__ u32 pack_e4m3(float low, float high) {
  u16 packed;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(packed) : "f"(high), "f"(low));
  return packed;
}

// max(value, 0); NaN stays NaN.
__device__ __forceinline__ float relu(float value) {
  float result;
  asm("max.NaN.f32 %0, %1, 0f00000000;" : "=f"(result) : "f"(value));
  return result;
}

__device__ __forceinline__ void store_matrices_x4(u32 address, u32 a, u32 b, u32 c, u32 d) {
  asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
               "r"(a), "r"(b), "r"(c), "r"(d)
               : "memory");
}
__device__ __forceinline__ void store_matrices_transposed_x2(u32 address, u32 a, u32 b) {
  asm volatile("stmatrix.sync.aligned.m8n8.x2.trans.shared.b16 [%0], {%1, %2};" ::"r"(address),
               "r"(a), "r"(b)
               : "memory");
}

// Four 8x8 matrices of 16 bits; lane l names the address of row l%8 of matrix l/8 and receives, of
// each, row l/4, bytes 4*(l%4)..4*(l%4)+3.
__device__ __forceinline__ void load_matrices_x4(u32 (&values)[4], u32 address) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(values[0]), "=r"(values[1]), "=r"(values[2]), "=r"(values[3])
               : "r"(address)
               : "memory");
}

__device__ __forceinline__ float load_shared(u32 address) {
  float value;
  asm volatile("ld.shared.f32 %0, [%1];" : "=f"(value) : "r"(address) : "memory");
  return value;
}
__device__ __forceinline__ float2 load_shared_2(u32 address) {
  float2 value;
  asm volatile("ld.shared.v2.f32 {%0, %1}, [%2];"
               : "=f"(value.x), "=f"(value.y)
               : "r"(address)
               : "memory");
  return value;
}
__device__ __forceinline__ uint4 load_shared_16(u32 address) {
  uint4 value;
  asm volatile("ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "r"(address)
               : "memory");
  return value;
}
__device__ __forceinline__ uint2 load_shared_8(u32 address) {
  uint2 value;
  asm volatile("ld.shared.v2.u32 {%0, %1}, [%2];"
               : "=r"(value.x), "=r"(value.y)
               : "r"(address)
               : "memory");
  return value;
}
__device__ __forceinline__ u32 load_shared_word(u32 address) {
  u32 value;
  asm volatile("ld.shared.u32 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}
__device__ __forceinline__ u32 load_shared_byte(u32 address) {
  u32 value;
  asm volatile("ld.shared.u8 %0, [%1];" : "=r"(value) : "r"(address) : "memory");
  return value;
}
__device__ __forceinline__ void store_shared_word(u32 address, u32 value) {
  asm volatile("st.shared.u32 [%0], %1;" ::"r"(address), "r"(value) : "memory");
}
__device__ __forceinline__ void store_shared_16(u32 address, const uint4& value) {
  asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(value.x),
               "r"(value.y), "r"(value.z), "r"(value.w)
               : "memory");
}
__device__ __forceinline__ void store_shared_4(u32 address, float a, float b, float c, float d) {
  asm volatile("st.shared.v4.f32 [%0], {%1, %2, %3, %4};" ::"r"(address), "f"(a), "f"(b), "f"(c),
               "f"(d)
               : "memory");
}
__device__ __forceinline__ void store_shared_1(u32 address, float value) {
  asm volatile("st.shared.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
}
__device__ __forceinline__ void store_shared_2(u32 address, float a, float b) {
  asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(address), "f"(a), "f"(b) : "memory");
}
__device__ __forceinline__ float4 load_shared_4(u32 address) {
  float4 value;
  asm volatile("ld.shared.v4.f32 {%0, %1, %2, %3}, [%4];"
               : "=f"(value.x), "=f"(value.y), "=f"(value.z), "=f"(value.w)
               : "r"(address)
               : "memory");
  return value;
}
// To another CTA of the cluster, counted in bytes on a barrier of that CTA; addresses from
// map_to_rank.
__device__ __forceinline__ void store_async_4(u32 address, float a, float b, float c, float d,
                                              u32 barrier) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, "
      "[%5];" ::"r"(address),
      "f"(a), "f"(b), "f"(c), "f"(d), "r"(barrier)
      : "memory");
}

}  // namespace volley::gemm
