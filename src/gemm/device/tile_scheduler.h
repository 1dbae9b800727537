#pragma once

// Which tile comes when. A persistent grid of clusters walks units 0, 1, 2, ... with the stride of
// the grid; a unit is one tile, or, with multicast, `multicast` tiles beside each other along n or
// m (GemmConfig::shares_b). Pure arithmetic, run by every warp of the kernel for itself and by the
// host's tests.
//
// Units are laid out in bands of `raster` tiles along m; inside a band n moves slowly and m fast,
// so that the tiles which run at one time cover a compact rectangle and share their rows in L2.

#include "gemm/device/gemm_config.h"

namespace volley::gemm {

struct Tile {
  int group;    // which weight
  int slab;     // which slab of A: the group when masked, else 0
  int d_slab;   // which slab of D: also the group of a product along K
  int row;      // first token row, within the slab
  int row_end;  // rows from here on are not stored
  int col;      // first weight row
  bool live;    // false: nothing of it is stored; it only keeps its cluster company
  bool shared;  // with shares_b(): whether the cluster's tiles are of one weight
  int k_begin;  // along K: the columns of A and B that count, multiples of 128; may be none
  int k_end;
};

// Unit `unit` of `m_units` x `n_units`, as (m unit, n unit).
struct UnitPosition {
  int m_unit;
  int n_unit;
};

VOLLEY_HD constexpr UnitPosition unit_position(int unit, int m_units, int n_units, int raster) {
  const int band_units = raster * n_units;
  const int band = unit / band_units;
  const int in_band = unit - band * band_units;
  const int first = band * raster;
  const int rows = min_of(raster, m_units - first);
  return {first + in_band % rows, in_band / rows};
}

// The first 128-byte block of K (of `num_blocks`) of segment `segment`: segments differ by at most
// one block. Depends on the weight alone.
VOLLEY_HD constexpr int segment_begin(int num_blocks, int segments, int segment) {
  return static_cast<int>(static_cast<long long>(num_blocks) * segment / segments);
}

class TileScheduler {
 public:
  // `lane` is this CTA's rank in its cluster, `first` the cluster's index, `stride` how many
  // clusters there are.
  VOLLEY_HD TileScheduler(const GemmConfig& config, const GemmParams& params, int lane, int first,
                          int stride)
      : unit_(first), stride_(stride), lane_(config.split_k ? 0 : lane) {
    n_units_ =
        ceil_div(ceil_div(params.n, config.tile_n), config.shares_b() ? 1 : config.multicast);
  }

  // The next tile of this CTA; false when there is none.
  VOLLEY_HD bool next(const GemmConfig& config, const GemmParams& params, Tile& tile) {
    for (;;) {
      if (config.grouping == Grouping::kDense || config.grouping == Grouping::kRowIndex) {
        const int m_units = m_units_of(config, params.m);
        if (unit_ >= m_units * n_units_) return false;
        place(config, unit_, m_units, tile);
        tile.slab = 0;
        tile.d_slab = 0;
        tile.row_end = params.m;
        tile.group = 0;
        tile.shared = true;
        unit_ += stride_;
        if (config.grouping == Grouping::kRowIndex && !find_group(config, params, tile)) continue;
        tile.live = tile.live && tile.row < params.m;
        return true;
      }
      // Groups come one after the other; `unit_` only grows, so the walk over groups goes on where
      // it stood.
      while (group_ < params.num_groups) {
        if (!has_group_) enter_group(config, params);
        if (unit_ < group_units_end_) break;
        group_begin_ = group_end_;
        ++group_;
        has_group_ = false;
      }
      if (group_ >= params.num_groups) return false;
      const int m_units = m_units_of(config, group_rows_);
      place(config, unit_ - (group_units_end_ - m_units * n_units_), m_units, tile);
      tile.live = tile.row < group_rows_;
      tile.shared = true;
      tile.group = group_;
      const bool slabs = has_slabs(config.grouping);
      tile.d_slab = slabs ? group_ : 0;
      tile.slab = tile.d_slab;
      tile.row += slabs ? 0 : group_first_;
      tile.row_end = min_of(params.m, (slabs ? 0 : group_first_) + group_rows_);
      if (config.grouping == Grouping::kAlongK) {
        tile.group = 0;
        tile.slab = 0;
        tile.k_begin = group_first_;
        tile.k_end = max_of(round_up(group_end_, kQuantGroup), group_first_);
      }
      unit_ += stride_;
      return true;
    }
  }

 private:
  VOLLEY_HD static int m_units_of(const GemmConfig& config, int rows) {
    return ceil_div(ceil_div(rows, config.tile_m), config.shares_b() ? config.multicast : 1);
  }

  VOLLEY_HD void place(const GemmConfig& config, int unit, int m_units, Tile& tile) const {
    const bool along_m = config.shares_b();
    const UnitPosition at =
        unit_position(unit, m_units, n_units_,
                      along_m ? max_of(config.raster / config.multicast, 1) : config.raster);
    tile.row = (along_m ? at.m_unit * config.multicast + lane_ : at.m_unit) * config.tile_m;
    tile.col = (along_m ? at.n_unit : at.n_unit * config.multicast + lane_) * config.tile_n;
    tile.live = true;
  }

  // The weight of a tile of the row index; false: the whole unit is padding.
  VOLLEY_HD bool find_group(const GemmConfig& config, const GemmParams& params, Tile& tile) const {
    tile.group = group_at(params, tile.row);
    if (!config.shares_b()) return tile.group >= 0;
    // A tile of padding takes its partner's weight.
    const int partner = group_at(params, tile.row + (lane_ == 0 ? 1 : -1) * config.tile_m);
    tile.live = tile.group >= 0;
    tile.shared = tile.group < 0 || partner < 0 || tile.group == partner;
    if (tile.group < 0) tile.group = partner;
    return tile.group >= 0;
  }

  // The group of a tile that begins at `row`, by its first row; -1: padding.
  VOLLEY_HD static int group_at(const GemmParams& params, int row) {
    if (row >= params.m) return -1;
    const int group = params.groups[row];
    return group < params.num_groups ? max_of(group, -1) : -1;
  }

  VOLLEY_HD void enter_group(const GemmConfig& config, const GemmParams& params) {
    const int value = params.groups[group_];
    if (config.grouping == Grouping::kMasked) {
      group_rows_ = min_of(max_of(value, 0), params.m);
    } else if (config.grouping == Grouping::kAlongK) {
      group_first_ = round_up(group_begin_, kQuantGroup);
      group_end_ = min_of(max_of(value, group_begin_), params.k);
      group_rows_ = params.m;
    } else {
      group_first_ = round_up(group_begin_, params.group_align);
      group_end_ = min_of(max_of(value, group_begin_), params.m);
      group_rows_ = max_of(group_end_ - group_first_, 0);
    }
    group_units_end_ += m_units_of(config, group_rows_) * n_units_;
    has_group_ = true;
  }

  int unit_;
  int stride_;
  int lane_;
  int n_units_ = 0;
  int group_ = 0;
  bool has_group_ = false;
  int group_begin_ = 0;  // where the group before ended
  int group_first_ = 0;
  int group_end_ = 0;
  int group_rows_ = 0;
  int group_units_end_ = 0;
};

}  // namespace volley::gemm
