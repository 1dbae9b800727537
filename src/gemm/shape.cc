#include "gemm/shape.h"

#include <algorithm>
#include <cmath>

#include "gemm/device/tile_scheduler.h"
#include "gemm/fp4_plan.h"
#include "gemm/plan.h"

namespace volley::gemm {
namespace {

// 64-row tiles below which a weight's K is cut. More for FP8: BF16 kernels for many tokens pay a
// third for the second set of sums. Most for FP4, whose tiles have no fewer rows.
constexpr int kMinFilledTilesFp8 = 44;
constexpr int kMinFilledTilesBf16 = 16;
constexpr int kMinFilledTilesFp4 = 100;
constexpr int kMinBlocksPerSegment = 8;  // 128-byte blocks of K
constexpr int kMinMulticastRows = 512;   // of one weight
constexpr int kMaxStages = 20;

int element_bytes(MmaKind mma) {
  return has_fp8_tokens(mma) ? 1 : 2;
}
int out_bytes(OutKind out) {
  return out == OutKind::kBf16 ? 2 : 4;
}

const char* name_of(MmaKind mma) {
  switch (mma) {
    case MmaKind::kFp8:
      return "fp8";
    case MmaKind::kBf16:
      return "bf16";
    case MmaKind::kMxFp4:
      return "mxfp4";
    case MmaKind::kNvFp4:
      return "nvfp4";
    case MmaKind::kFp8Rows:
      return "fp8rows";
  }
  return "";
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
    case Grouping::kAlongK:
      return "alongk";
  }
  return "";
}

// Rows that one weight is likely to meet.
int rows_per_group(const GemmShape& shape) {
  if (shape.grouping == Grouping::kDense || shape.grouping == Grouping::kAlongK) return shape.m;
  if (shape.grouping == Grouping::kMasked) {
    return shape.expected_m > 0 ? std::min(shape.expected_m, shape.m) : shape.m;
  }
  return std::max(1, shape.m / shape.num_groups);
}

// The rows for which costs are computed: what few tokens there are exactly, many in steps, so that
// all choices for a weight can be listed.
int model_rows(int rows) {
  if (rows <= 256) return std::max(rows, 1);
  return round_up(rows, rows <= 4096 ? 64 : 1024);
}

// As many stages as fit, up to 20: a kernel alone gains nothing beyond 12, but one that begins
// beside the kernel in front has the more weights when that ends.
void fit_stages(GemmConfig& config, const DeviceSpec& device) {
  const int limit = config.ctas_per_sm == 1 ? device.max_smem_bytes
                                            : device.smem_per_sm / config.ctas_per_sm - 1024;
  config.num_stages = kMaxStages;
  while (config.num_stages > 1 && smem_layout(config).total_bytes > limit) --config.num_stages;
}

void add_candidate(GemmConfig config, const DeviceSpec& device, std::vector<GemmConfig>& out) {
  const int free_rows = config.swap_ab ? 1 : config.waves();
  // Enough output buffers that a tile's store waits for nothing, where they cost no stage below 4.
  for (const int chunks : {free_rows * config.tile_n / config.store_cols(), 2, 1}) {
    if (chunks < 1) continue;
    config.store_chunks = config.may_store_boxes() ? chunks : 1;
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
  for (const int multicast : {1, 2}) {
    // A partner needs a column tile of its own.
    for (const int tile_m : {64, 128, 256}) {
      for (const int tile_n : {16, 32, 64, 128, 192, 256}) {
        GemmConfig config = base;
        config.tile_m = tile_m;
        config.tile_n = tile_n;
        config.multicast = multicast;
        if (multicast == 2 && shape.n <= tile_n) continue;
        if (tile_n < 64 && tile_m > 128) continue;
        if (fits_groups(shape, tile_m)) add_candidate(config, device, out);
      }
    }
    // Gradients have as many rows as columns: nothing to swap.
    if (shape.mma == MmaKind::kFp8Rows || shape.grouping == Grouping::kAlongK) continue;
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
          if (!fits_groups(shape, tile_m)) continue;
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

// Fitted to 2900 timings of 104 shapes, both types, on two H100 (docs/gemm.md): the configurations
// it chooses are 2% behind the fastest timed, as a mean. In clocks where nothing else is said.
struct CostModel {
  double mma_fp8 = 1.24;  // what a block takes, of its floor
  double mma_bf16 = 1.19;
  double two_waves = 1.1;             // more for FP8 of two waves along N, BF16 of 192 or 64x256
  double one_wave = 1.1;              // more for FP8 tiles of two warpgroups that promote in step
  double weights_on_m = 1.07;         // more with swap_ab
  double smem_bytes_per_clock = 146;  // at that factor
  double rows_two_waves = 1.27;       // more for 256 rows where each column has a scale
  double promotion = 2.8;             // of one float of each thread
  double rows_promotion = 2.6;        // more where each column has a scale
  double fp8_wait = 68;               // for full stages, the first product, the last
  double fp8_held_wait = 20;          // where the block's scales are read before it begins
  double pipelined_wait = 13;
  double bf16_wait = 27;
  double latency = 1620;  // of device memory
  double fill = 960;      // before the first product of a kernel
  double tile = 36;
  double store = 0.071;  // of one element of a tile
  double cluster = 119;  // of a tile
  double split = 1500;   // of a tile whose sums meet
  double beside = 0.14;  // of the shorter of two things that go on at once, what it adds
};

// What an SM spends on one block of K of one tile, in clocks.
struct BlockClocks {
  double mma;    // the tensor cores, or the shared memory that feeds them and receives the next
  double chain;  // one warpgroup's own sequence: products, promotion, the latencies between
  double copy;   // the block's way from device memory, as far as the stages do not hide it
};

BlockClocks block_clocks(const GemmConfig& c, const CostModel& model) {
  const bool fp8 = is_fp8(c.mma);
  const double products = 2.0 * c.mma_n();  // of one wave: four wgmma of N/2 clocks
  const double waves = c.waves(), warpgroups = c.math_warpgroups();
  // Each wgmma reads 64 rows of its M side, unless they lie in registers, and its N side.
  // A thread's share of a row's scales is as many bytes again as its N side.
  const double n_reads = c.mma == MmaKind::kFp8Rows ? 2 : 1;
  const double read_rows = c.n_waves() > 1 ? warpgroups * (kMmaRows + waves * c.mma_n())
                                           : warpgroups * waves * (kMmaRows + n_reads * c.mma_n());
  const double smem_bytes = (read_rows + c.tile_m + c.tile_n) * kStageRowBytes;
  const double copied_rows =
      (c.shares_b() ? c.tile_m + c.tile_n / c.multicast : c.tile_m / c.multicast + c.tile_n);
  BlockClocks clocks;
  const bool wide = c.n_waves() > 1 || (!fp8 && !c.swap_ab && c.tile_n == 192 && c.tile_m > 64) ||
                    (!fp8 && c.mma_n() == 256 && warpgroups == 1);
  const bool in_step = fp8 && warpgroups == 2 && waves == 1 && !c.pipelined();
  clocks.mma = std::max(products * waves * warpgroups, smem_bytes / model.smem_bytes_per_clock) *
               (fp8 ? model.mma_fp8 : model.mma_bf16) * (wide ? model.two_waves : 1) *
               (in_step ? model.one_wave : 1) *
               (n_reads > 1 && waves > 1 ? model.rows_two_waves : 1) *
               (c.swap_ab ? model.weights_on_m : 1);
  const double promotion =
      c.mma_n() / 2.0 * model.promotion * (c.mma == MmaKind::kFp8Rows ? model.rows_promotion : 1);
  clocks.chain =
      !fp8 ? products * waves + model.bf16_wait
      : c.pipelined()
          ? std::max(products, promotion) + model.pipelined_wait
          : waves * (products + promotion + (c.swap_ab ? model.fp8_wait : model.fp8_held_wait));
  const double stage_bytes = (c.tile_m + c.tile_n) * kStageRowBytes;
  clocks.copy = copied_rows * kStageRowBytes * model.latency / (stage_bytes * (c.num_stages - 1));
  return clocks;
}

// `rows` of each group.
CandidateConfig cost(const GemmShape& shape, const DeviceSpec& device, const GemmConfig& c,
                     double rows) {
  const CostModel model;
  const int groups = shape.grouping == Grouping::kDense ? 1 : shape.num_groups;
  const bool along_k = shape.grouping == Grouping::kAlongK;
  const int cluster_m = c.shares_b() ? c.multicast : 1, cluster_n = c.multicast / cluster_m;
  const double m_units = std::ceil(std::ceil(rows / c.tile_m) / cluster_m) * groups;
  const double n_units = ceil_div(ceil_div(shape.n, c.tile_n), cluster_n);
  const double ctas = m_units * n_units * c.cluster();
  const Occupancy on = occupancy(ctas, c, device);
  const double blocks = std::ceil(static_cast<double>(shape.k) / c.k_per_stage() /
                                  (c.split_k ? c.segments
                                   : along_k ? groups
                                             : 1));
  const double clock = device.clock_ghz * 1e3;  // a microsecond's

  CandidateConfig out;
  out.config = c;
  const BlockClocks block = block_clocks(c, model);
  const double all_blocks = on.worked_rounds * blocks / clock;
  out.mma_us = all_blocks * block.mma * on.sharing;
  out.chain_us = all_blocks * block.chain;
  out.copy_us = all_blocks * block.copy;
  const double elements = element_bytes(shape.mma);
  const int operands = along_k ? 1 : groups;
  const double bytes = rows * operands * shape.k * elements +
                       static_cast<double>(operands) * shape.n * shape.k * elements +
                       rows * groups * shape.n * out_bytes(shape.out);
  out.dram_us = bytes / device.dram_bytes_per_ns / 1e3;
  out.fill = on.fill;

  // What a tile costs beside its blocks: its store; its cluster; the sums of its segments.
  const bool waits_for_stores = c.stores_boxes() && c.store_chunks < 2;
  const double tile_clocks = model.tile +
                             c.tile_m * c.tile_n * model.store * (waits_for_stores ? 1.5 : 1.0) +
                             (c.multicast > 1 ? model.cluster : 0) + (c.split_k ? model.split : 0) +
                             (c.serial_segments() > 1 ? c.accumulator_floats() * 3 : 0);
  const double sm_us = std::max({out.mma_us, out.chain_us, out.copy_us}) +
                       on.worked_rounds * tile_clocks * on.sharing / clock;
  out.us = device.launch_us + model.fill / clock + std::max(sm_us, out.dram_us) +
           model.beside * std::min(sm_us, out.dram_us);
  // Walking over groups takes registers that the widest tiles do not have.
  const bool walks = c.grouping == Grouping::kPrefixSum || c.grouping == Grouping::kMasked;
  if (c.n_waves() > 1 && walks && rows >= kMinMulticastRows) out.us *= 1.14;
  // Tiles of 192 columns gain by sharing them. BF16 tiles wider than 128 columns are level with
  // narrower ones in dense products, up to 5% behind where k is small.
  const bool wide_bf16 = c.mma == MmaKind::kBf16 && !c.swap_ab && c.tile_n > 128;
  if (c.multicast == 1 &&
      (c.scale_runs() > 1 || (wide_bf16 && shape.grouping == Grouping::kDense))) {
    out.us *= 1.03;
  }
  if (c.n_waves() > 1 && rows >= kMinMulticastRows) out.us *= 1.02;
  // Wide tiles, and sharing an operand, have lost wherever few tokens were measured.
  if (c.n_waves() > 1 && rows < kMinMulticastRows) out.us *= 1.1;
  if (c.multicast > 1 && (c.swap_ab || rows < kMinMulticastRows)) out.us *= 3;
  return out;
}

std::vector<CandidateConfig> rank_for_rows(const GemmShape& shape, const DeviceSpec& device,
                                           int rows) {
  if (has_fp4_weights(shape.mma)) return rank_fp4_configs(shape, device, rows);
  std::vector<CandidateConfig> ranked;
  for (const GemmConfig& config : candidates(shape, device)) {
    ranked.push_back(cost(shape, device, config, rows));
  }
  sort_by_cost(ranked);
  return ranked;
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
  if (shape.mma == MmaKind::kFp8Rows && shape.grouping != Grouping::kDense &&
      shape.grouping != Grouping::kAlongK) {
    return invalid(
        "gemm: rows of B with scales of their own, expected a dense product or one "
        "along k");
  }
  if (shape.grouping == Grouping::kAlongK &&
      (shape.out != OutKind::kF32 || has_fp4_weights(shape.mma) || shape.mma == MmaKind::kFp8)) {
    return invalid("gemm: a product along k, expected fp8rows or bf16 with float output");
  }
  if ((shape.mma == MmaKind::kFp8Rows || shape.grouping == Grouping::kAlongK) &&
      shape.segments > 1) {
    return invalid("gemm: {} segments of a gradient, expected 1", shape.segments);
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
                       (has_slabs(shape.grouping) ? shape.num_groups : 1);
  if (tiles > 2e9) return invalid("gemm: {} x {} has more tiles than 2^31", shape.m, shape.n);
  return {};
}

int reduction_segments(MmaKind mma, int num_groups, int n, int k) {
  if (mma == MmaKind::kFp8Rows) return 1;
  const int64_t tiles = static_cast<int64_t>(ceil_div(n, 64)) * num_groups;
  const int blocks = k / (128 / element_bytes(mma));
  const int min_tiles = has_fp4_weights(mma)   ? kMinFilledTilesFp4
                        : mma == MmaKind::kFp8 ? kMinFilledTilesFp8
                                               : kMinFilledTilesBf16;
  int segments = 1;
  while (segments < kMaxSegments && tiles * segments < min_tiles &&
         blocks / (2 * segments) >= kMinBlocksPerSegment) {
    segments *= 2;
  }
  return segments;
}

int segments_of(const GemmShape& shape) {
  if (shape.grouping == Grouping::kAlongK) return 1;
  return shape.segments > 0 ? shape.segments
                            : reduction_segments(shape.mma, shape.num_groups, shape.n, shape.k);
}

std::vector<CandidateConfig> rank_configs(const GemmShape& shape, const DeviceSpec& device) {
  return rank_for_rows(shape, device, model_rows(rows_per_group(shape)));
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
  VOLLEY_TRY(const GemmConfig config_of_all, choose_config(shape, device));
  std::vector<GemmConfig> configs = {config_of_all};
  GemmShape all = shape;
  all.expected_m = 0;
  const int max_rows = model_rows(rows_per_group(all));
  for (int rows = 1; rows <= max_rows; rows = model_rows(rows + 1)) {
    const GemmConfig config = rank_for_rows(shape, device, rows).front().config;
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
  text += ". Blocks are added in order from zero, then segments in order";
  if (shape.grouping == Grouping::kAlongK) text += "; each group's blocks alone";
  return text + "; C last.";
}

Result<std::string> explain(const GemmShape& shape, const DeviceSpec& device, int count) {
  VOLLEY_TRY_STATUS(validate(shape));
  const std::vector<CandidateConfig> ranked = rank_configs(shape, device);
  std::string text = fmt::format(
      "{} -> {}, {}, m {}, n {}, k {}, {} group{}\nreduction: {}\n\n"
      "{:<44} {:>9} {:>9} {:>9} {:>9} {:>9} {:>6} {:>9}\n",
      name_of(shape.mma), name_of(shape.out), name_of(shape.grouping), shape.m, shape.n, shape.k,
      shape.num_groups, shape.num_groups == 1 ? "" : "s", reduction_order(shape), "configuration",
      "model us", "mma us", "chain us", "copy us", "DRAM us", "fill", "smem");
  for (size_t i = 0; i < ranked.size() && i < static_cast<size_t>(count); ++i) {
    const CandidateConfig& c = ranked[i];
    text += fmt::format("{:<44} {:>9.1f} {:>9.1f} {:>9.1f} {:>9.1f} {:>9.1f} {:>5.0f}% {:>9}\n",
                        config_name(c.config), c.us, c.mma_us, c.chain_us, c.copy_us, c.dram_us,
                        100 * c.fill, smem_layout(c.config).total_bytes);
  }
  return text;
}

}  // namespace volley::gemm
