#include "gemm/fp4_plan.h"

#include <algorithm>
#include <cmath>

#include "gemm/plan.h"

namespace volley::gemm {
namespace {

constexpr int kMaxStages = 20;

// As many stages as fit; false when fewer than three do, or the registers do not.
bool fit(GemmConfig& c, const DeviceSpec& device) {
  const int limit =
      c.ctas_per_sm == 1 ? device.max_smem_bytes : device.smem_per_sm / c.ctas_per_sm - 1024;
  c.num_stages = kMaxStages;
  while (c.num_stages > 1 && smem_layout(c).total_bytes > limit) --c.num_stages;
  if (c.decodes_to_smem()) return c.valid();
  return c.num_stages >= 3 && c.valid() &&
         c.accumulator_floats() + c.fp4_block_registers() + kFp4OtherRegisters <=
             c.math_registers();
}

std::vector<GemmConfig> candidates(const GemmShape& shape, const DeviceSpec& device) {
  std::vector<GemmConfig> out;
  const GemmConfig base = {.mma = shape.mma,
                           .out = shape.out,
                           .grouping = shape.grouping,
                           .segments = segments_of(shape)};
  // Decoded once for 256 tokens. A weight that is summed in segments has no room for their sums.
  GemmConfig wide = base;
  wide.tile_m = 256;
  wide.tile_n = 128;
  wide.raster = 8;
  if (fits_groups(shape, wide.tile_m) && fit(wide, device)) out.push_back(wide);
  for (const int tile_m : {8, 16, 24, 32, 48, 64, 96, 128}) {
    if (!fits_groups(shape, tile_m)) continue;
    for (const int tile_n : {64, 128}) {
      for (const int ctas_per_sm : {1, 2, 3, 4}) {
        GemmConfig config = base;
        config.swap_ab = true;
        config.tile_m = tile_m;
        config.tile_n = tile_n;
        config.ctas_per_sm = ctas_per_sm;
        if (fit(config, device)) out.push_back(config);
        config.split_k = true;
        if (config.segments > 1 && tile_n == kFp4StripRows && fit(config, device)) {
          out.push_back(config);
        }
      }
    }
  }
  return out;
}

// Fitted to an H100 (docs/gemm.md): clocks for one block of K.
struct Fp4Clocks {
  double chain;  // a warpgroup's own sequence, or the decoder's
  double share;  // what 64 weight rows take of an SM's schedulers
};
constexpr double kRegisterGhz = 1.75;    // few tokens leave the tensor cores, and the power, alone
constexpr double kL2BytesPerClock = 30;  // of one CTA on its SM
constexpr double kL2BytesPerClockShared = 25;  // of several together
constexpr double kSharing =
    1.3;  // several CTAs of an SM with many tokens each: in the way of each other
constexpr int kSharingTokens = 48;
constexpr double kNvWideClocks = 200;  // more for NV of a lone warpgroup with as many tokens:
constexpr int kNvWideTokens = 128;
constexpr double kNvLoneCta = 0.95;   // NV with 128 weight rows, few tokens, an SM for each CTA
constexpr double kSecondRead = 1.12;  // few tokens in more than one tile read each weight again
constexpr double kCopyClocks = 900;   // from asking to having, under load
constexpr double kWideTileClocks = 1800;
constexpr double kSplitClocks = 2500;

Fp4Clocks clocks_of(const GemmConfig& c) {
  const bool nv = c.mma == MmaKind::kNvFp4;
  if (c.decodes_to_smem()) return nv ? Fp4Clocks{2650, 0} : Fp4Clocks{1680, 0};
  const int n = c.mma_n();
  const double lone = c.math_warpgroups() == 1 && n >= kNvWideTokens ? kNvWideClocks : 0;
  return nv ? Fp4Clocks{350 + 4.5 * n + lone, 290 + 4.2 * n}
            : Fp4Clocks{325 + 1.6 * n, 190 + 2.8 * n};
}

// `rows` that each weight meets.
CandidateConfig cost(const GemmShape& shape, const DeviceSpec& device, double rows,
                     const GemmConfig& c) {
  const bool nv = c.mma == MmaKind::kNvFp4;
  const int groups = shape.grouping == Grouping::kDense ? 1 : shape.num_groups;
  const double ctas =
      std::ceil(rows / c.tile_m) * groups * ceil_div(shape.n, c.tile_n) * c.cluster();
  const Occupancy on = occupancy(ctas, c, device);
  const double sharing = on.sharing;
  const double blocks = std::ceil(shape.k / 128.0 / (c.split_k ? c.segments : 1));
  const double clock = (c.decodes_to_smem() ? device.clock_ghz : kRegisterGhz) * 1e3;
  const double all_blocks = on.worked_rounds * blocks / clock;

  CandidateConfig out;
  out.config = c;
  const Fp4Clocks clocks = clocks_of(c);
  const double mma =
      c.waves() * c.math_warpgroups() * std::max(c.mma_n() / 2.0, 16.0) * (nv ? 8 : 4);
  out.mma_us = all_blocks * mma * sharing;
  out.chain_us =
      all_blocks *
      std::max(clocks.chain, clocks.share * c.math_warpgroups() * sharing *
                                 (sharing > 1 && c.tile_m >= kSharingTokens ? kSharing : 1));
  const SmemLayout smem = smem_layout(c);
  const double stage_bytes = smem.a_bytes + smem.b_bytes;
  const double in_flight = stage_bytes * (c.num_stages - 1) * sharing;
  out.copy_us =
      all_blocks * stage_bytes * sharing /
      std::min(sharing > 1 ? kL2BytesPerClockShared : kL2BytesPerClock, in_flight / kCopyClocks);
  const double weight_bytes =
      groups * ceil_div(shape.n, kFp4StripRows) * (shape.k / 128.0) * fp4_tile_bytes(nv);
  const double out_bytes = c.out == OutKind::kBf16 ? 2 : 4;
  out.dram_us = (rows * groups * (shape.k + shape.n * out_bytes) + weight_bytes) /
                device.dram_bytes_per_ns / 1e3;
  out.fill = on.fill;

  // A CTA alone on its SM has nobody to run beside its epilogues.
  const double tile_clocks =
      c.decodes_to_smem() ? kWideTileClocks
                          : (500 + c.tile_m * c.tile_n * 0.03 + (c.split_k ? kSplitClocks : 0)) /
                                (c.ctas_per_sm > 1 ? 2 : 1);
  const double sm_us =
      std::max({out.mma_us, out.chain_us, out.copy_us}) + on.rounds * tile_clocks / clock;
  out.us =
      device.launch_us + 1.0 + std::max(sm_us, out.dram_us) + 0.1 * std::min(sm_us, out.dram_us);
  out.us += 0.05 * out.us * (1 - out.fill);
  if (rows > c.tile_m && rows <= 128) out.us *= kSecondRead;
  if (nv && c.swap_ab && c.tile_n == 128 && c.ctas_per_sm == 1 && rows <= 64) {
    out.us *= kNvLoneCta;
  }
  // Where one CTA an SM is all there is, room for a second one invites the next kernel's CTAs,
  // which start early, to gather on a few SMs: a weight of 7168 x 16384 took 51 us in place of 33.
  if (c.ctas_per_sm > 1 && ctas <= device.num_sms) out.us *= 1.3;
  return out;
}

}  // namespace

std::vector<CandidateConfig> rank_fp4_configs(const GemmShape& shape, const DeviceSpec& device,
                                              int rows) {
  std::vector<CandidateConfig> ranked;
  for (const GemmConfig& config : candidates(shape, device)) {
    ranked.push_back(cost(shape, device, rows, config));
  }
  sort_by_cost(ranked);
  return ranked;
}

}  // namespace volley::gemm
