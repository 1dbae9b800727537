#include "gemm/emulated/machine.h"

#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "base/check.h"
#include "tensor/float_formats.h"

namespace volley::gemm::emulated {
namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr int kRankShift = 24;  // of a mapped address: rank + 1; 0 means "this CTA"
constexpr u32 kOffsetMask = (1U << kRankShift) - 1;
constexpr int kWarp = 32;

struct Barrier {
  int64_t expected = 0;
  int64_t pending = 0;
  int64_t bytes = 0;
  uint64_t phase = 0;
  bool live = false;
};

// Calls that all lanes of a group make together: the k-th call of each lane is one event.
struct Wgmma {
  int num_threads = 0;
  std::array<float*, 128> d = {};
  std::array<const u32*, 128> m_registers = {};  // null: m_side describes it
  u64 m_side = 0, n_side = 0;
  int n = 0;
  bool accumulate = false;
  int group = 0;
  int64_t patience = -1;  // polls until the tensor core gets to it
  bool done = false;
};
struct Warpgroup {
  std::vector<Wgmma> ops;
};

struct MatrixStore {
  int num_lanes = 0;
  std::array<u32, kWarp> address = {};
  std::array<std::array<u32, 4>, kWarp> registers = {};
};
struct MatrixLoad {
  int num_lanes = 0;
  std::array<u32, kWarp> address = {};
};
struct Shuffle {
  int num_lanes = 0;
  std::array<u64, kWarp> value = {};
};
struct Warp {
  std::map<int, MatrixStore> stores;
  std::map<int, MatrixLoad> loads;
  std::map<int, Shuffle> shuffles;
  std::map<int, int> syncs;
};

struct BoxLoad {
  MapFields map;
  int cta;
  u32 barrier, smem;
  int x, y, z;
  u32 mask;
  bool bulk = false;  // a plain run of bytes
};
struct BoxStore {
  MapFields map;
  int cta;
  u32 smem;
  int x, y, z;
  bool add;
};

struct Cta {
  std::vector<uint8_t> smem;
  std::map<u32, Barrier> barriers;
  std::map<int, int> named_arrivals;  // by id: arrivals in all, whole generations included
  int syncs = 0;
  int num_done = 0;            // threads
  std::vector<int> registers;  // of a thread of each warpgroup
  std::vector<Warp> warps;
  std::vector<Warpgroup> warpgroups;
};

struct Fiber {
  ucontext_t context;
  char* stack = nullptr;
  int cta = 0;
  int thread = 0;
  bool done = false;
  int num_wgmma = 0, num_groups = 0, num_matrix_stores = 0, num_matrix_loads = 0, num_shuffles = 0,
      num_syncs = 0;
  int num_cta_syncs = 0, num_cluster_syncs = 0;
  std::map<int, int> num_named;
  std::vector<BoxStore> stores;  // committed, not yet read from shared memory
  const char* waits_for = "";
};

// One cluster at work.
class Machine {
 public:
  Machine(const LaunchSpec& spec, int cluster, const std::function<void()>& kernel)
      : spec_(spec),
        cluster_(cluster),
        kernel_(kernel),
        random_(spec.seed * 1000003 + static_cast<u64>(cluster)) {
    ctas_.resize(static_cast<size_t>(spec.cluster_size));
    for (Cta& cta : ctas_) {
      // Launches zero nothing: garbage that is a NaN in every format.
      cta.smem.assign(static_cast<size_t>(spec.smem_bytes), 0xFF);
      cta.warps.resize(static_cast<size_t>(spec.num_threads / kWarp));
      cta.warpgroups.resize(static_cast<size_t>(spec.num_threads / kWarpgroup));
      cta.registers.assign(cta.warpgroups.size(), start_registers());
    }
    const size_t count =
        static_cast<size_t>(spec.cluster_size) * static_cast<size_t>(spec.num_threads);
    stacks_ = static_cast<char*>(::mmap(nullptr, count * kStackBytes, PROT_READ | PROT_WRITE,
                                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    CHECK(stacks_ != MAP_FAILED);
    fibers_.resize(count);
    for (size_t i = 0; i < count; ++i) {
      fibers_[i].cta = static_cast<int>(i) / spec.num_threads;
      fibers_[i].thread = static_cast<int>(i) % spec.num_threads;
      fibers_[i].stack = stacks_ + i * kStackBytes;
    }
  }
  ~Machine() { ::munmap(stacks_, fibers_.size() * kStackBytes); }
  Machine(const Machine&) = delete;
  Machine& operator=(const Machine&) = delete;

  Status run();

  // Registers a thread starts with: an even share of the SM's, in steps of 8.
  int start_registers() const {
    return std::min(65536 / (spec_.num_threads * spec_.ctas_per_sm) / 8 * 8, 255);
  }

  // For the running fiber.
  Fiber& self() { return *self_; }
  Cta& cta() { return ctas_[static_cast<size_t>(self_->cta)]; }
  Warp& warp() { return cta().warps[static_cast<size_t>(self_->thread / kWarp)]; }
  Warpgroup& warpgroup() {
    return cta().warpgroups[static_cast<size_t>(self_->thread / kWarpgroup)];
  }
  int lane() const { return self_->thread % kWarp; }
  const LaunchSpec& spec() const { return spec_; }
  int cluster() const { return cluster_; }

  template <class Done>
  void wait(const char* what, Done&& done) {
    self_->waits_for = what;
    while (!done()) ::swapcontext(&self_->context, &scheduler_);
    self_->waits_for = "";
    progressed_ = true;
  }
  void fail(const std::string& why) {
    if (failure_.empty()) {
      failure_ =
          fmt::format("cluster {} CTA {} thread {}: {}", cluster_, self_->cta, self_->thread, why);
    }
    // The fiber never runs again.
    for (;;) ::swapcontext(&self_->context, &scheduler_);
  }

  void check_alive(const Cta& target) {
    if (target.num_done == spec_.num_threads) fail("a CTA that has ended is read or written");
  }
  uint8_t* bytes_at(u32 address, int bytes) {
    const u32 rank = address >> kRankShift, offset = address & kOffsetMask;
    Cta& target = rank == 0 ? cta() : ctas_[std::min<size_t>(rank - 1, ctas_.size() - 1)];
    if (rank > ctas_.size() || offset + static_cast<u32>(bytes) > target.smem.size()) {
      fail(fmt::format("shared address {:#x} of {} bytes leaves the CTA's {}", address, bytes,
                       target.smem.size()));
    }
    check_alive(target);
    return target.smem.data() + offset;
  }
  Barrier& barrier_at(u32 address) {
    const u32 rank = address >> kRankShift;
    Cta& target = rank == 0 ? cta() : ctas_[std::min<size_t>(rank - 1, ctas_.size() - 1)];
    check_alive(target);
    Barrier& barrier = target.barriers[address & kOffsetMask];
    if (!barrier.live) fail(fmt::format("no mbarrier at {:#x}", address));
    return barrier;
  }
  void complete(Barrier& barrier) {
    if (barrier.pending == 0 && barrier.bytes == 0) {
      ++barrier.phase;
      barrier.pending = barrier.expected;
    }
    progressed_ = true;
  }
  int64_t random(uint64_t below) { return static_cast<int64_t>(random_() % below); }
  void stay_awake() { progressed_ = true; }
  void queue(const BoxLoad& load) { loads_.push_back(load); }
  void execute(Wgmma& op, const Cta& cta);
  void execute(const BoxStore& store);
  int cluster_arrivals = 0;

 private:
  static void enter();
  void execute(const BoxLoad& load);

  LaunchSpec spec_;
  int cluster_;
  const std::function<void()>& kernel_;
  std::mt19937_64 random_;
  std::vector<Cta> ctas_;
  std::vector<Fiber> fibers_;
  char* stacks_ = nullptr;
  ucontext_t scheduler_;
  Fiber* self_ = nullptr;
  bool progressed_ = false;
  std::string failure_;
  std::vector<BoxLoad> loads_;
};

thread_local Machine* machine = nullptr;

void Machine::enter() {
  machine->kernel_();
  machine->self_->done = true;
  ++machine->cta().num_done;
  machine->progressed_ = true;
  for (;;) ::swapcontext(&machine->self_->context, &machine->scheduler_);
}

Status Machine::run() {
  machine = this;
  for (Fiber& fiber : fibers_) {
    ::getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = kStackBytes;
    fiber.context.uc_link = nullptr;
    ::makecontext(&fiber.context, &Machine::enter, 0);
  }
  // Warps in random order, a warp's lanes together: what lanes do apart from each other the kernels
  // never rely on, and 32 times fewer orders are tried per run.
  std::vector<size_t> order(fibers_.size() / kWarp);
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::vector<int> naps(order.size(), 0);
  int idle_rounds = 0;
  size_t num_left = fibers_.size();
  while (num_left > 0 && failure_.empty()) {
    std::shuffle(order.begin(), order.end(), random_);
    progressed_ = false;
    num_left = 0;
    int num_napping = 0;
    for (const size_t w : order) {
      if (naps[w] == 0 && random_() % 3000 == 0) naps[w] = static_cast<int>(random_() % 300);
      if (naps[w] > 0 || random_() % 4 == 0) {
        // This warp sleeps, for a round or, now and then, while others go far ahead.
        num_napping += naps[w] > 0;
        naps[w] = std::max(0, naps[w] - 1);
        num_left += kWarp;
        continue;
      }
      for (size_t i = w * kWarp; i < (w + 1) * kWarp; ++i) {
        if (fibers_[i].done) continue;
        ++num_left;
        self_ = &fibers_[i];
        ::swapcontext(&scheduler_, &fibers_[i].context);
        if (!failure_.empty()) break;
      }
    }
    // Copies end in any order, some only when nothing else can go on.
    std::shuffle(loads_.begin(), loads_.end(), random_);
    while (!loads_.empty() && (random_() % 3 == 0 || !progressed_)) {
      const BoxLoad load = loads_.back();
      loads_.pop_back();
      self_ = &fibers_[static_cast<size_t>(load.cta * spec_.num_threads)];
      execute(load);
      progressed_ = true;
    }
    bool all_done = true;
    for (const Fiber& fiber : fibers_) all_done = all_done && fiber.done;
    if (all_done) break;
    idle_rounds = progressed_ || num_napping > 0 ? 0 : idle_rounds + 1;
    if (idle_rounds > 100) {  // sleepers had every chance to wake
      std::map<std::string, int> waits;
      for (const Fiber& fiber : fibers_) {
        if (!fiber.done)
          ++waits[fmt::format("CTA {} warp {}: {}", fiber.cta, fiber.thread / 32, fiber.waits_for)];
      }
      failure_ = "deadlock:";
      for (const auto& [what, count] : waits) failure_ += fmt::format(" [{} x{}]", what, count);
    }
  }
  if (failure_.empty()) {
    for (Fiber& fiber : fibers_) {
      self_ = &fiber;
      for (const BoxStore& store : fiber.stores) execute(store);
      fiber.stores.clear();
    }
    if (!loads_.empty()) failure_ = "a copy was still under way when its CTA ended";
    for (const Cta& cta : ctas_) {
      for (const auto& [address, barrier] : cta.barriers) {
        if (barrier.bytes != 0)
          failure_ = fmt::format("mbarrier {:#x} still expects bytes", address);
      }
    }
  }
  machine = nullptr;
  if (!failure_.empty()) return make_error(ErrorKind::kIo, "emulated GPU: {}", failure_);
  return {};
}

// The bytes of one element of a map.
int bytes_of(const MapFields& map) {
  constexpr uint64_t kU8 = 0, kF32 = 7;
  return map.dtype == kU8 ? 1 : map.dtype == kF32 ? 4 : 2;
}

// The 128-byte swizzle as the hardware does it: address bits 4..6 are xored with bits 7..9.
u32 swizzle(const MapFields& map, u32 address) {
  return map.swizzle != 0 ? address ^ (address >> 3 & 0x70) : address;
}

// Walks a box: visit(shared offset, global address or null when out of bounds), element by element.
template <class Visit>
void walk_box(const MapFields& map, u32 smem, int x, int y, int z, Visit&& visit) {
  const auto bytes = static_cast<uint64_t>(bytes_of(map));
  u32 offset = smem;
  for (uint64_t k = 0; k < map.box[2]; ++k) {
    for (uint64_t j = 0; j < map.box[1]; ++j) {
      for (uint64_t i = 0; i < map.box[0]; ++i) {
        const auto gx = static_cast<int64_t>(i) + x, gy = static_cast<int64_t>(j) + y,
                   gz = static_cast<int64_t>(k) + z;
        const bool inside =
            gx >= 0 && gy >= 0 && gz >= 0 && gx < static_cast<int64_t>(map.dims[0]) &&
            gy < static_cast<int64_t>(map.dims[1]) && gz < static_cast<int64_t>(map.dims[2]);
        auto* global =
            inside ? reinterpret_cast<uint8_t*>(map.address + static_cast<uint64_t>(gx) * bytes +
                                                static_cast<uint64_t>(gy) * map.strides[0] +
                                                static_cast<uint64_t>(gz) * map.strides[1])
                   : nullptr;
        visit(swizzle(map, offset), global);
        offset += static_cast<u32>(bytes);
      }
    }
  }
}

void Machine::execute(const BoxLoad& load) {
  const u32 alignment = load.map.swizzle != 0 ? 1024 : load.bulk ? 16 : 128;
  if ((load.smem & kOffsetMask) % alignment != 0) {
    if (failure_.empty())
      failure_ = fmt::format("a copy to {:#x}, not aligned to {}", load.smem, alignment);
    return;
  }
  const int bytes = bytes_of(load.map);
  for (size_t rank = 0; rank < ctas_.size(); ++rank) {
    if ((load.mask >> rank & 1) == 0) continue;
    Cta& target = ctas_[rank];
    if (target.num_done == spec_.num_threads) failure_ = "a copy into a CTA that has ended";
    int64_t moved = 0;
    walk_box(load.map, load.smem, load.x, load.y, load.z, [&](u32 offset, const uint8_t* global) {
      if (offset + static_cast<u32>(bytes) > target.smem.size()) {
        failure_ = "a copy leaves shared memory";
        return;
      }
      if (global == nullptr) {
        std::memset(target.smem.data() + offset, 0, static_cast<size_t>(bytes));
      } else {
        std::memcpy(target.smem.data() + offset, global, static_cast<size_t>(bytes));
      }
      moved += bytes;
    });
    Barrier& barrier = target.barriers[load.barrier];
    barrier.bytes -= moved;
    complete(barrier);
  }
}

void Machine::execute(const BoxStore& store) {
  const int bytes = bytes_of(store.map);
  Cta& source = ctas_[static_cast<size_t>(store.cta)];
  walk_box(store.map, store.smem, store.x, store.y, store.z, [&](u32 offset, uint8_t* global) {
    if (global == nullptr) return;
    if (store.add) {
      float was, more;
      std::memcpy(&was, global, sizeof(was));
      std::memcpy(&more, source.smem.data() + offset, sizeof(more));
      const float sum = was + more;
      std::memcpy(global, &sum, sizeof(sum));
    } else {
      std::memcpy(global, source.smem.data() + offset, static_cast<size_t>(bytes));
    }
  });
}

// One matrix operand's 32 bytes of row `row`, by its descriptor.
void read_operand(const Cta& cta, u64 descriptor, int row, uint8_t* out) {
  const u32 start = static_cast<u32>(descriptor & 0x3FFF) << 4;
  const u32 row_group_stride = static_cast<u32>(descriptor >> 32 & 0x3FFF) << 4;
  for (u32 b = 0; b < 32; b += 16) {
    const u32 linear =
        start + static_cast<u32>(row / 8) * row_group_stride + static_cast<u32>(row % 8) * 128 + b;
    const u32 address = linear ^ (linear >> 3 & 0x70);
    std::memcpy(out + b, cta.smem.data() + address, 16);
  }
}

void Machine::execute(Wgmma& op, const Cta& cta) {
  constexpr int kMaxN = 256;
  const bool fp8 = has_fp8_tokens(spec_.mma);
  const int depth = fp8 ? 32 : 16;
  static const std::array<float, 256> e4m3 = [] {
    std::array<float, 256> table{};
    for (size_t i = 0; i < 256; ++i) table[i] = e4m3_to_float(static_cast<uint8_t>(i));
    return table;
  }();
  const auto widen = [&](const uint8_t* bytes, float* out) {
    for (int i = 0; i < depth; ++i) {
      uint16_t half = 0;
      std::memcpy(&half, bytes + 2 * (fp8 ? 0 : i), 2);
      out[i] = fp8 ? e4m3[bytes[i]] : bf16_to_float(half);
    }
  };
  std::vector<float> columns(static_cast<size_t>(kMaxN * 32));
  uint8_t raw[32];
  for (int c = 0; c < op.n; ++c) {
    read_operand(cta, op.n_side, c, raw);
    widen(raw, columns.data() + c * 32);
  }
  // The manual's fragment, written out here independently of fragment.h.
  for (int row = 0; row < 64; ++row) {
    float a[32];
    if (op.m_registers[0] == nullptr) {
      read_operand(cta, op.m_side, row, raw);
    } else {
      // The manual's fragment of A for one-byte types.
      for (int b = 0; b < 32; ++b) {
        const int thread = row / 16 * 32 + row % 8 * 4 + b % 16 / 4;
        const int index = (row % 16 >= 8 ? 1 : 0) + (b >= 16 ? 2 : 0);
        raw[b] = static_cast<uint8_t>(op.m_registers[static_cast<size_t>(thread)][index] >>
                                      (8 * (b % 4)));
      }
    }
    widen(raw, a);
    for (int c = 0; c < op.n; ++c) {
      float sum = 0;
      const float* b = columns.data() + c * 32;
      for (int i = 0; i < depth; ++i) sum += a[i] * b[i];
      const int thread = row / 16 * 32 + row % 8 * 4 + c % 8 / 2;
      const int element = c / 8 * 4 + (row % 16 >= 8 ? 2 : 0) + c % 2;
      float& d = op.d[static_cast<size_t>(thread)][element];
      d = op.accumulate ? d + sum : sum;
    }
  }
  op.done = true;
  progressed_ = true;
}

}  // namespace

Status run_grid(const LaunchSpec& spec, const std::function<void()>& kernel) {
  for (int cluster = 0; cluster < spec.num_ctas / spec.cluster_size; ++cluster) {
    Machine one(spec, cluster, kernel);
    VOLLEY_TRY_STATUS(one.run());
  }
  return {};
}

Index thread_index() {
  return {static_cast<unsigned>(machine->self().thread)};
}
Index block_index() {
  return {static_cast<unsigned>(machine->cluster() * machine->spec().cluster_size +
                                machine->self().cta)};
}
Index grid_dim() {
  return {static_cast<unsigned>(machine->spec().num_ctas)};
}
int lane() {
  return machine->lane();
}
u32 rank_in_cluster() {
  return static_cast<u32>(machine->self().cta);
}

u32 smem_base() {
  return 1024;
}
u32 map_address(u32 address, u32 rank) {
  if (rank >= static_cast<u32>(machine->spec().cluster_size))
    machine->fail("mapa to no CTA of the cluster");
  return (rank + 1) << kRankShift | (address & kOffsetMask);
}

void set_registers(int a_thread) {
  Cta& cta = machine->cta();
  const auto warpgroup = static_cast<size_t>(machine->self().thread / kWarpgroup);
  // Growing waits until the CTA's own pool has enough.
  machine->wait("setmaxnreg", [&] {
    int others = 0;
    for (size_t w = 0; w < cta.registers.size(); ++w)
      others += w == warpgroup ? 0 : cta.registers[w];
    const int pool = machine->start_registers() * static_cast<int>(cta.registers.size());
    return a_thread <= cta.registers[warpgroup] || others + a_thread <= pool;
  });
  cta.registers[warpgroup] = a_thread;
}

void sync_cluster() {
  const int generation = ++machine->self().num_cluster_syncs;
  ++machine->cluster_arrivals;
  const int all = machine->spec().cluster_size * machine->spec().num_threads;
  machine->wait("cluster barrier", [&] { return machine->cluster_arrivals >= generation * all; });
}
void sync_cta() {
  const int generation = ++machine->self().num_cta_syncs;
  Cta& cta = machine->cta();
  ++cta.syncs;
  machine->wait("__syncthreads",
                [&] { return cta.syncs >= generation * machine->spec().num_threads; });
}
void sync_warp() {
  Warp& warp = machine->warp();
  const int call = machine->self().num_syncs++;
  int& lanes = warp.syncs[call];
  ++lanes;
  machine->wait("__syncwarp", [&] { return lanes == kWarp; });
}
void sync_named(int id, int num_threads) {
  const int generation = ++machine->self().num_named[id];
  int& arrivals = machine->cta().named_arrivals[id];
  ++arrivals;
  machine->wait("bar.sync", [&] { return arrivals >= generation * num_threads; });
}
u64 shuffle(u64 value, int source_lane) {
  Shuffle& shuffle = machine->warp().shuffles[machine->self().num_shuffles++];
  shuffle.value[static_cast<size_t>(machine->lane())] = value;
  ++shuffle.num_lanes;
  machine->wait("shfl", [&] { return shuffle.num_lanes == kWarp; });
  return shuffle.value[static_cast<size_t>(source_lane)];
}

void barrier_init(u32 barrier, u32 arrivals) {
  machine->bytes_at(barrier, 8);
  machine->cta().barriers[barrier & kOffsetMask] = {
      .expected = arrivals, .pending = arrivals, .live = true};
}
void barrier_expect(u32 barrier, u32 bytes) {
  Barrier& b = machine->barrier_at(barrier);
  b.bytes += bytes;
  --b.pending;
  machine->complete(b);
}
void barrier_arrive(u32 barrier) {
  Barrier& b = machine->barrier_at(barrier);
  if (b.pending <= 0)
    machine->fail(fmt::format("mbarrier {:#x}: more arrivals than it expects", barrier));
  --b.pending;
  machine->complete(b);
}
void barrier_complete_bytes(u32 barrier, u32 bytes) {
  Barrier& b = machine->barrier_at(barrier);
  b.bytes -= bytes;
  machine->complete(b);
}
void barrier_wait(u32 barrier, u32 parity) {
  const Barrier& b = machine->barrier_at(barrier);
  machine->wait("mbarrier", [&] { return (b.phase & 1) != parity; });
}

void load_box(const MapFields& map, u32 barrier, u32 smem, int x, int y, int z, u32 cta_mask) {
  machine->barrier_at(barrier);
  machine->queue({map, machine->self().cta, barrier & kOffsetMask, smem & kOffsetMask, x, y, z,
                  cta_mask == 0 ? 1U << machine->self().cta : cta_mask});
}
void load_bytes(const void* global, u32 barrier, u32 smem, u32 bytes) {
  const auto address = reinterpret_cast<uint64_t>(global);
  if (address % 16 != 0 || (smem & kOffsetMask) % 16 != 0 || bytes % 16 != 0) {
    machine->fail("a bulk copy that is not aligned to 16 bytes");
  }
  machine->barrier_at(barrier);
  machine->queue({{.address = address,
                   .dtype = 0,
                   .dims = {bytes, 1, 1},
                   .strides = {bytes, bytes},
                   .box = {bytes, 1, 1},
                   .swizzle = 0},
                  machine->self().cta,
                  barrier & kOffsetMask,
                  smem & kOffsetMask,
                  0,
                  0,
                  0,
                  1U << machine->self().cta,
                  true});
}
void store_box(const MapFields& map, u32 smem, int x, int y, int z, bool add) {
  if (add && bytes_of(map) != 4) machine->fail("only floats are added");
  machine->self().stores.push_back({map, machine->self().cta, smem & kOffsetMask, x, y, z, add});
}
void wait_stores(int pending) {
  auto& stores = machine->self().stores;
  while (static_cast<int>(stores.size()) > pending) {
    machine->execute(stores.front());
    stores.erase(stores.begin());
  }
}

void issue_wgmma(float* d, int n, u64 m_side, u64 n_side, bool accumulate) {
  Fiber& self = machine->self();
  auto& ops = machine->warpgroup().ops;
  const auto call = static_cast<size_t>(self.num_wgmma++);
  if (call >= ops.size()) ops.resize(call + 1);
  Wgmma& op = ops[call];
  if (op.num_threads > 0 &&
      (op.m_side != m_side || op.n_side != n_side || op.accumulate != accumulate)) {
    machine->fail("wgmma with operands that differ within its warpgroup");
  }
  op.m_side = m_side;
  op.n_side = n_side;
  op.n = n;
  op.accumulate = accumulate;
  op.group = self.num_groups;
  op.d[static_cast<size_t>(self.thread % kWarpgroup)] = d;
  ++op.num_threads;
}
void issue_wgmma_registers(float* d, int n, const u32* m_side, u64 n_side, bool accumulate) {
  const auto call = static_cast<size_t>(machine->self().num_wgmma);
  issue_wgmma(d, n, 0, n_side, accumulate);
  machine->warpgroup()
      .ops[call]
      .m_registers[static_cast<size_t>(machine->self().thread % kWarpgroup)] = m_side;
}
void commit_wgmma() {
  ++machine->self().num_groups;
}
void wait_wgmma(int pending) {
  Fiber& self = machine->self();
  const Cta& cta = machine->cta();
  auto& ops = machine->warpgroup().ops;
  const int finished = self.num_groups - pending;  // groups before this one must be done
  for (int call = 0; call < self.num_wgmma; ++call) {
    const auto at = static_cast<size_t>(call);
    if (ops[at].done || ops[at].group >= finished) continue;
    machine->wait("wgmma", [&] {
      Wgmma& op = ops[at];
      if (op.done) return true;
      if (op.num_threads < kWarpgroup) return false;
      // Late, so that operands which are overwritten too soon are seen to be.
      if (op.patience < 0) op.patience = machine->random(6) * kWarpgroup;
      machine->stay_awake();
      return op.patience-- == 0;
    });
    if (!ops[at].done) machine->execute(ops[at], cta);
  }
}

void load_matrices(u32* registers, u32 address) {
  Warp& warp = machine->warp();
  MatrixLoad& load = warp.loads[machine->self().num_matrix_loads++];
  const auto lane = static_cast<size_t>(machine->lane());
  if (address % 16 != 0) machine->fail("ldmatrix from a row not aligned to 16");
  load.address[lane] = address;
  ++load.num_lanes;
  machine->wait("ldmatrix", [&] { return load.num_lanes == kWarp; });
  for (size_t matrix = 0; matrix < 4; ++matrix) {
    const u32 from = load.address[8 * matrix + lane / 4];
    std::memcpy(registers + matrix, machine->bytes_at(from, 16) + 4 * (lane % 4), 4);
  }
}
void store_matrices(u32 address, const u32* registers, int count, bool transposed) {
  Warp& warp = machine->warp();
  const int call = machine->self().num_matrix_stores++;
  MatrixStore& store = warp.stores[call];
  const auto lane = static_cast<size_t>(machine->lane());
  store.address[lane] = address;
  std::copy_n(registers, count, store.registers[lane].begin());
  if (++store.num_lanes < kWarp) return;
  for (int matrix = 0; matrix < count; ++matrix) {
    for (int lane_idx = 0; lane_idx < kWarp; ++lane_idx) {
      const u32 pair = store.registers[static_cast<size_t>(lane_idx)][static_cast<size_t>(matrix)];
      for (int e = 0; e < 2; ++e) {
        const int row = lane_idx / 4, col = lane_idx % 4 * 2 + e;
        const int memory_row = transposed ? col : row, memory_col = transposed ? row : col;
        const u32 to = store.address[static_cast<size_t>(8 * matrix + memory_row)];
        if (to % 16 != 0) machine->fail("stmatrix to a row not aligned to 16");
        const auto value = static_cast<uint16_t>(pair >> (16 * e));
        std::memcpy(machine->bytes_at(to, 16) + 2 * memory_col, &value, 2);
      }
    }
  }
  warp.stores.erase(call);
}

void read_shared(u32 address, void* out, int bytes) {
  std::memcpy(out, machine->bytes_at(address, bytes), static_cast<size_t>(bytes));
}
void write_shared(u32 address, const void* in, int bytes) {
  std::memcpy(machine->bytes_at(address, bytes), in, static_cast<size_t>(bytes));
}

}  // namespace volley::gemm::emulated
