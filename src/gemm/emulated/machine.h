#pragma once

// A cluster of CTAs on the CPU, for running the kernels' own source without a GPU. Every CUDA
// thread is a fiber; the parts of Hopper that the kernels use are modelled as the PTX manual
// describes them: mbarriers with transaction counts, the copy engine, wgmma, named barriers,
// distributed shared memory.
//
// It is unkind on purpose. Fibers run in random order. Copies finish in random order and late.
// wgmma reads its operands and writes its result only when a wait forces it to, stores to memory
// leave shared memory only then. A wait that nothing can end is reported as the deadlock it is.
// What it cannot show: the tensor core's rounding, timing, and hazards between the generic and the
// asynchronous proxy that a missing fence leaves.

#include <cstdint>
#include <functional>
#include <string>

#include "base/result.h"
#include "gemm/device/gemm_config.h"

namespace volley::gemm::emulated {

// What the stand-in driver's cuTensorMapEncodeTiled writes down (cuda/fake_driver.cc).
struct MapFields {
  uint64_t address;
  uint64_t dtype;
  uint64_t dims[3];
  uint64_t strides[2];
  uint64_t box[3];
  uint64_t swizzle;
};

struct LaunchSpec {
  int num_ctas = 1;
  int cluster_size = 1;
  int num_threads = 128;
  int smem_bytes = 0;
  int ctas_per_sm = 1;  // what __launch_bounds__ promises: sets the registers a CTA starts with
  MmaKind mma = MmaKind::kFp8;
  uint64_t seed = 1;
};

// Runs `kernel` (one call a thread) over the grid, cluster after cluster. kIo with a description
// when a cluster deadlocks or breaks a rule of the machine.
Status run_grid(const LaunchSpec& spec, const std::function<void()>& kernel);

// What the running thread sees, and does. The names are those of ptx.h.
struct Index {
  unsigned x;
};
Index thread_index();
Index block_index();
Index grid_dim();
u32 rank_in_cluster();
int lane();

u32 smem_base();
u32 map_address(u32 address, u32 rank);
void set_registers(int a_thread);  // setmaxnreg
void sync_cluster();
void sync_cta();
void sync_warp();
void sync_named(int id, int num_threads);
u64 shuffle(u64 value, int source_lane);

void barrier_init(u32 barrier, u32 arrivals);
void barrier_expect(u32 barrier, u32 bytes);
void barrier_arrive(u32 barrier);
void barrier_complete_bytes(u32 barrier, u32 bytes);
void barrier_wait(u32 barrier, u32 parity);

void load_box(const MapFields& map, u32 barrier, u32 smem, int x, int y, int z, u32 cta_mask);
void load_bytes(const void* global, u32 barrier, u32 smem, u32 bytes);
// And commits it. `add`: floats, added to what is there.
void store_box(const MapFields& map, u32 smem, int x, int y, int z, bool add);
void wait_stores(int pending);

void issue_wgmma(float* d, int n, u64 m_side, u64 n_side, bool accumulate);
// The same with the M side in four registers of each thread, which are read when the tensor core
// gets to it.
void issue_wgmma_registers(float* d, int n, const u32* m_side, u64 n_side, bool accumulate);
void commit_wgmma();
void wait_wgmma(int pending);

void load_matrices(u32* registers, u32 address);
void store_matrices(u32 address, const u32* registers, int count, bool transposed);
void read_shared(u32 address, void* out, int bytes);  // of this CTA or, mapped, of another
void write_shared(u32 address, const void* in, int bytes);

}  // namespace volley::gemm::emulated
