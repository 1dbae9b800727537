#include "gemm/shape.h"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "gemm/device/tile_scheduler.h"

namespace volley::gemm {
namespace {

constexpr int kMinFilledTiles = 16;      // 64-row tiles below which a weight's K is cut
constexpr int kMinBlocksPerSegment = 8;  // 128-byte blocks of K

int element_bytes(MmaKind mma) {
  return mma == MmaKind::kFp8 ? 1 : 2;
}
int out_bytes(OutKind out) {
  return out == OutKind::kBf16 ? 2 : 4;
}

const char* name_of(MmaKind mma) {
  return mma == MmaKind::kFp8 ? "fp8" : "bf16";
}
const char* name_of(OutKind out) {
  return out == OutKind::kBf16 ? "bf16" : "f32";
}
const char* name_of(Grouping grouping) {
  switch (grouping) {
    case Grouping::kDense:
      return "dense";
    case Grouping::kRowIndex:
      return "rowindex";
    case Grouping::kPrefixSum:
      return "prefixsum";
    case Grouping::kMasked:
      return "masked";
  }
  return "";
}

bool groups_share_rows(const GemmShape& shape) {
  return shape.grouping == Grouping::kRowIndex || shape.grouping == Grouping::kPrefixSum;
}

// Rows that one weight is likely to meet.
int rows_per_group(const GemmShape& shape) {
  if (shape.grouping == Grouping::kDense) return shape.m;
  if (shape.grouping == Grouping::kMasked) {
    return shape.expected_m > 0 ? std::min(shape.expected_m, shape.m) : shape.m;
  }
  return std::max(1, shape.m / shape.num_groups);
}

// As many stages as fit, up to 12: more hide nothing that 12 do not.
void fit_stages(GemmConfig& config, const DeviceSpec& device) {
  const int limit = config.ctas_per_sm == 1 ? device.max_smem_bytes
                                            : device.smem_per_sm / config.ctas_per_sm - 1024;
  config.num_stages = 12;
  while (config.num_stages > 1 && smem_layout(config).total_bytes > limit) --config.num_stages;
}

// The tiles at work at one time cover `rows` x `columns` tiles and read that many rows of A and B
// for each block of K, most of them from device memory. A function of the tile alone, so that a
// weight needs no more kernels.
int raster_of(const GemmConfig& config, const DeviceSpec& device) {
  int best = 1;
  double least = 1e30;
  for (const int rows : {4, 8, 16}) {
    const double columns = static_cast<double>(device.num_sms) / rows;
    const double read = rows * config.tile_m + columns * config.tile_n;
    if (read < least) least = read, best = rows;
  }
  return best;
}

void add_candidate(GemmConfig config, const DeviceSpec& device, std::vector<GemmConfig>& out) {
  const int free_rows = config.swap_ab ? 1 : config.waves();
  // Enough output buffers that a tile's store waits for nothing, where they cost no stage below 4.
  for (const int chunks : {free_rows * config.tile_n / kStoreCols, 2, 1}) {
    if (chunks < 1) continue;
    config.store_chunks = config.stores_boxes() ? chunks : 1;
    config.raster = raster_of(config, device);
    fit_stages(config, device);
    if (config.num_stages >= 4) break;
  }
  if (config.num_stages >= 3 && config.valid()) out.push_back(config);
}

std::vector<GemmConfig> candidates(const GemmShape& shape, const DeviceSpec& device) {
  std::vector<GemmConfig> out;
  GemmConfig base;
  base.mma = shape.mma;
  base.out = shape.out;
  base.grouping = shape.grouping;
  base.segments = segments_of(shape);
  const auto fits_groups = [&](int tile_m) {
    return !groups_share_rows(shape) || shape.group_align % tile_m == 0;
  };
  for (const int multicast : {1, 2}) {
    // A partner needs a column tile of its own.
    for (const int tile_m : {64, 128, 256}) {
      for (const int tile_n : {16, 32, 64, 128, 192, 256}) {
        GemmConfig config = base;
        config.tile_m = tile_m;
        config.tile_n = tile_n;
        config.multicast = multicast;
        if (multicast == 2 && shape.n <= tile_n) continue;
        if (tile_n < kStoreCols && tile_m > 128) continue;
        if (fits_groups(tile_m)) add_candidate(config, device, out);
      }
    }
    for (const int tile_m : {8, 16, 24, 32, 48, 64, 96, 128}) {
      for (const int tile_n : {64, 128}) {
        for (const int ctas_per_sm : {1, 2}) {
          GemmConfig config = base;
          config.swap_ab = true;
          config.tile_m = tile_m;
          config.tile_n = tile_n;
          config.multicast = multicast;
          config.ctas_per_sm = ctas_per_sm;
          if (multicast == 2 && shape.n <= tile_n) continue;
          if (!fits_groups(tile_m)) continue;
          // Two CTAs share 65536 registers; the accumulators may take half of a thread's.
          const int registers = 65536 / (ctas_per_sm * config.num_threads());
          if (ctas_per_sm > 1 && config.accumulator_floats() * 2 > registers) continue;
          if (config.segments > 1 && multicast == 1) {
            GemmConfig split = config;
            split.split_k = true;
            add_candidate(split, device, out);
          }
          add_candidate(config, device, out);
        }
      }
    }
  }
  return out;
}

// How long the tensor cores of an SM need for one block of K of one tile, the promotion they wait
// for included, in clocks.
double block_clocks(const GemmConfig& c) {
  // wgmma takes N/2 clocks for 64 rows and 32 bytes of K, but never fewer than reading its M side
  // from shared memory takes.
  const double wgmma = std::max(c.mma_n() / 2.0, 20.0) * 4;
  const double all = wgmma * c.waves() * c.math_warpgroups();
  if (c.mma == MmaKind::kBf16) return all;
  const double promotion = c.mma_n() / 2.0 * 1.3;
  if (c.pipelined()) return std::max(all, promotion + 60) + 30;
  // One warpgroup alone: its promotion and the latencies around it follow its wgmma.
  return std::max(all * 1.1, c.waves() * (wgmma + promotion + 90));
}

CandidateConfig cost(const GemmShape& shape, const DeviceSpec& device, const GemmConfig& c) {
  const int groups = shape.grouping == Grouping::kDense ? 1 : shape.num_groups;
  const double rows = rows_per_group(shape);
  const double m_tiles = std::ceil(rows / c.tile_m) * groups;
  const double n_tiles = ceil_div(shape.n, c.tile_n);
  const double n_units = std::ceil(n_tiles / c.multicast);
  const double units = m_tiles * n_units;
  // Clusters of 4 leave some SMs of the larger GPCs idle.
  const double slots =
      std::floor(device.num_sms * c.ctas_per_sm / c.cluster() * (c.cluster() > 2 ? 0.97 : 1.0));
  const double rounds = std::ceil(units / slots);
  const double blocks =
      std::ceil(static_cast<double>(shape.k) / c.k_per_stage() / (c.split_k ? c.segments : 1));
  const double clock = device.clock_ghz * 1e3;  // a microsecond's
  const double stage_bytes = (c.tile_m / c.multicast + c.tile_n) * 128.0;

  // CTAs that share an SM share its tensor cores and its path from L2.
  const double sharing =
      std::min<double>(c.ctas_per_sm, std::ceil(units * c.cluster() / device.num_sms));
  // Bytes on their way to an SM over the latency of device memory, about 900 clocks.
  const double in_flight_rate = smem_layout(c).stage_bytes * (c.num_stages - 1) * sharing / 900;
  const double l2_rate = std::min(device.l2_bytes_per_clock_sm, in_flight_rate);

  CandidateConfig out;
  out.config = c;
  // Two CTAs of one SM alternate on its tensor cores: one's latencies hide behind the other's work.
  const double mma_clocks = block_clocks(c) * (sharing > 1 ? 0.8 * sharing : 1);
  out.mma_us = rounds * blocks * mma_clocks / clock;
  out.l2_us = rounds * blocks * stage_bytes * sharing / l2_rate / clock;
  const double elements = element_bytes(shape.mma);
  const double bytes = rows * groups * shape.k * elements +
                       static_cast<double>(groups) * shape.n * shape.k * elements +
                       rows * groups * shape.n * out_bytes(shape.out);
  out.dram_us = bytes / device.dram_bytes_per_ns / 1e3;
  out.fill = units / (rounds * slots);

  // What a tile costs beside its blocks: the first block of a kernel has nobody to hide it; a store
  // hides only its copy; a split tile meets its cluster.
  const double epilogue_clocks =
      400 + c.tile_m * c.tile_n * (c.store_chunks >= 2 || c.swap_ab ? 0.03 : 0.06) * c.ctas_per_sm +
      (c.split_k ? 1500 : 0) + (c.cluster() > 1 ? 150 : 0) +
      (c.serial_segments() > 1 ? c.accumulator_floats() * 3 : 0);
  const double fill_clocks = 1500 + (c.cluster() > 1 ? 500 : 0);
  const double body =
      std::max({out.mma_us, out.l2_us, out.dram_us}) +
      0.1 * (out.mma_us + out.l2_us + out.dram_us - std::max({out.mma_us, out.l2_us, out.dram_us}));
  out.us = device.launch_us + fill_clocks / clock + rounds * epilogue_clocks / clock + body;
  // Sharing A pays where L2 limits, with many tokens. With few it measured two to three times
  // slower (docs/gemm.md); its cause is gone, but what it gains there has not been measured.
  if (c.multicast > 1 && c.swap_ab) out.us *= 3;
  return out;
}

auto order_of(const GemmConfig& c) {
  return std::tuple(c.swap_ab, c.tile_m, c.tile_n, c.split_k, c.multicast, c.ctas_per_sm);
}

// Token counts at which the choice may change: every one up to 256, then every 64th.
std::vector<int> sample_rows(int max_m) {
  std::vector<int> rows;
  for (int m = 1; m < max_m; m += m < 256 ? 1 : (m < 4096 ? 64 : 1024)) rows.push_back(m);
  rows.push_back(max_m);
  return rows;
}

}  // namespace

Status validate(const GemmShape& shape) {
  if (shape.m < 0) return invalid("gemm: m is {}, expected at least 0", shape.m);
  if (shape.n < 8 || shape.n % 8 != 0) {
    return invalid("gemm: n is {}, expected a positive multiple of 8", shape.n);
  }
  if (shape.k < 128 || shape.k % 128 != 0 || shape.k > kMaxK) {
    return invalid("gemm: k is {}, expected a multiple of 128 up to {}", shape.k, kMaxK);
  }
  if (shape.num_groups < 1 || shape.num_groups > kMaxGroups) {
    return invalid("gemm: {} groups, expected 1 to {}", shape.num_groups, kMaxGroups);
  }
  if (shape.grouping == Grouping::kDense && shape.num_groups != 1) {
    return invalid("gemm: a dense product of {} groups, expected 1", shape.num_groups);
  }
  if (groups_share_rows(shape) && (shape.group_align < 8 || shape.group_align % 8 != 0)) {
    return invalid("gemm: groups aligned to {} rows, expected a positive multiple of 8",
                   shape.group_align);
  }
  if (groups_share_rows(shape) && shape.m % shape.group_align != 0) {
    return invalid("gemm: m is {}, expected a multiple of the groups' alignment {}", shape.m,
                   shape.group_align);
  }
  if (shape.segments < 0 || shape.segments > kMaxSegments || shape.segments == 3) {
    return invalid("gemm: {} segments, expected 1, 2 or 4, or 0 for the weight's own plan",
                   shape.segments);
  }
  if (shape.segments > shape.k / 128) {
    return invalid("gemm: k of {} has fewer 128-wide blocks than {} segments", shape.k,
                   shape.segments);
  }
  // The scheduler counts 8 x 64 tiles in 32 bits.
  const double tiles = std::ceil(shape.m / 8.0) * std::ceil(shape.n / 64.0) *
                       (shape.grouping == Grouping::kMasked ? shape.num_groups : 1);
  if (tiles > 2e9) return invalid("gemm: {} x {} has more tiles than 2^31", shape.m, shape.n);
  return {};
}

int reduction_segments(MmaKind mma, int num_groups, int n, int k) {
  const int64_t tiles = static_cast<int64_t>(ceil_div(n, 64)) * num_groups;
  const int blocks = k / (128 / element_bytes(mma));
  int segments = 1;
  while (segments < kMaxSegments && tiles * segments < kMinFilledTiles &&
         blocks / (2 * segments) >= kMinBlocksPerSegment) {
    segments *= 2;
  }
  return segments;
}

int segments_of(const GemmShape& shape) {
  return shape.segments > 0 ? shape.segments
                            : reduction_segments(shape.mma, shape.num_groups, shape.n, shape.k);
}

std::vector<CandidateConfig> rank_configs(const GemmShape& shape, const DeviceSpec& device) {
  std::vector<CandidateConfig> ranked;
  for (const GemmConfig& config : candidates(shape, device)) {
    ranked.push_back(cost(shape, device, config));
  }
  std::sort(ranked.begin(), ranked.end(), [](const CandidateConfig& a, const CandidateConfig& b) {
    if (a.us != b.us) return a.us < b.us;
    return order_of(a.config) < order_of(b.config);
  });
  return ranked;
}

Result<GemmConfig> choose_config(const GemmShape& shape, const DeviceSpec& device) {
  VOLLEY_TRY_STATUS(validate(shape));
  const std::vector<CandidateConfig> ranked = rank_configs(shape, device);
  if (ranked.empty()) {
    return make_error(ErrorKind::kUnsupported,
                      "gemm: no configuration fits groups aligned to {} rows", shape.group_align);
  }
  return ranked.front().config;
}

Result<std::vector<GemmConfig>> configs_up_to(const GemmShape& shape, const DeviceSpec& device) {
  std::vector<GemmConfig> configs;
  const bool masked = shape.grouping == Grouping::kMasked;
  for (const int rows : sample_rows(std::max(shape.m, 1))) {
    GemmShape part = shape;
    if (masked) {
      part.expected_m = rows;
    } else {
      part.m = groups_share_rows(shape) ? round_up(rows, std::max(shape.group_align, 1)) : rows;
    }
    VOLLEY_TRY(const GemmConfig config, choose_config(part, device));
    if (std::find(configs.begin(), configs.end(), config) == configs.end()) {
      configs.push_back(config);
    }
  }
  return configs;
}

std::string config_name(const GemmConfig& c) {
  return fmt::format("{}-{}-{}-{}{}x{}-s{}-g{}{}-x{}-r{}-o{}{}", name_of(c.mma), name_of(c.out),
                     name_of(c.grouping), c.swap_ab ? "swap" : "t", c.tile_m, c.tile_n,
                     c.num_stages, c.segments, c.split_k ? "split" : "", c.multicast, c.raster,
                     c.store_chunks, c.ctas_per_sm > 1 ? fmt::format("-c{}", c.ctas_per_sm) : "");
}

std::string reduction_order(const GemmShape& shape) {
  const int segments = segments_of(shape);
  const int per_block = 128 / element_bytes(shape.mma);
  const int blocks = shape.k / per_block;
  std::string text = fmt::format("k is cut into {} blocks of {}; {} segment{} of blocks", blocks,
                                 per_block, segments, segments == 1 ? "" : "s");
  for (int s = 0; s < segments; ++s) {
    text += fmt::format("{} [{}, {})", s == 0 ? ":" : ",", segment_begin(blocks, segments, s),
                        segment_begin(blocks, segments, s + 1));
  }
  return text + ". Blocks are added in order from zero, then segments in order.";
}

Result<std::string> explain(const GemmShape& shape, const DeviceSpec& device, int count) {
  VOLLEY_TRY_STATUS(validate(shape));
  const std::vector<CandidateConfig> ranked = rank_configs(shape, device);
  std::string text = fmt::format(
      "{} -> {}, {}, m {}, n {}, k {}, {} group{}\nreduction: {}\n\n"
      "{:<44} {:>9} {:>9} {:>9} {:>9} {:>6} {:>9}\n",
      name_of(shape.mma), name_of(shape.out), name_of(shape.grouping), shape.m, shape.n, shape.k,
      shape.num_groups, shape.num_groups == 1 ? "" : "s", reduction_order(shape), "configuration",
      "model us", "mma us", "L2 us", "DRAM us", "fill", "smem");
  for (size_t i = 0; i < ranked.size() && i < static_cast<size_t>(count); ++i) {
    const CandidateConfig& c = ranked[i];
    text += fmt::format("{:<44} {:>9.1f} {:>9.1f} {:>9.1f} {:>9.1f} {:>5.0f}% {:>9}\n",
                        config_name(c.config), c.us, c.mma_us, c.l2_us, c.dram_us, 100 * c.fill,
                        smem_layout(c.config).total_bytes);
  }
  return text;
}

}  // namespace volley::gemm
