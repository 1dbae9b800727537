#pragma once

// How scoring is cut into work: which key tiles each query tile needs, and which CTA takes which of
// them. Pure functions of integers; the kernel and the host's tests share them.
//
// Query rows stand in runs: not paged, a run is `queries` consecutive rows; paged, a run is a
// sequence's rows. A run is cut into query tiles of at most `queries` rows, a query tile needs the
// key tiles (64 keys, aligned) that its rows' ranges together touch. All (query tile, key tile)
// pairs in order, runs, then query tiles, then keys, are one line, of which each of the launch's
// CTAs takes an equal part: at most one pair more than another, whatever the lengths are.

#include "gemm/device/scoring_config.h"

namespace volley::gemm {

struct ScoringWork {
  int num_rows;  // query rows
  int num_keys;  // columns of the logits
  int num_runs;
  int next_n;  // paged, uniform: rows of each sequence
  // Device arrays, null where they do not belong to the kind of call (scoring.h).
  const int* starts;        // [num_rows]
  const int* ends;          // [num_rows]
  const int* context_lens;  // [num_runs]
  const int* query_starts;  // [num_runs + 1]
};

struct RowRun {
  int first, count;
};
struct KeyRange {
  int begin, end;  // begin == end: none

  VOLLEY_HD constexpr bool has(int key) const { return key >= begin && key < end; }
};
struct QueryTile {
  int row, num_rows;
  int first_tile, num_tiles;  // of keys
};

VOLLEY_HD constexpr int clamp_to(int value, int low, int high) {
  return max_of(low, min_of(value, high));
}

VOLLEY_HD RowRun run_of(const ScoringWork& work, const ScoringConfig& c, int run) {
  if (!c.paged) return {run * c.queries, min_of(c.queries, work.num_rows - run * c.queries)};
  if (work.query_starts == nullptr) return {run * work.next_n, work.next_n};
  const int first = clamp_to(work.query_starts[run], 0, work.num_rows);
  return {first, clamp_to(work.query_starts[run + 1], first, work.num_rows) - first};
}

// The keys that a row, one of `rows` of run `run`, may see.
VOLLEY_HD KeyRange range_of(const ScoringWork& work, const ScoringConfig& c, int run, RowRun rows,
                            int row) {
  if (c.paged) {
    // The sequence's last rows are its last keys; each row sees the keys up to its own.
    const int later = rows.first + rows.count - 1 - row;
    return {0, clamp_to(work.context_lens[run] - later, 0, work.num_keys)};
  }
  const int begin = work.starts == nullptr ? 0 : clamp_to(work.starts[row], 0, work.num_keys);
  if (work.ends == nullptr) return {begin, work.num_keys};
  return {begin, clamp_to(work.ends[row], begin, work.num_keys)};
}

VOLLEY_HD int query_tiles_of(const ScoringConfig& c, RowRun rows) {
  return ceil_div(rows.count, c.queries);
}

VOLLEY_HD QueryTile query_tile_of(const ScoringWork& work, const ScoringConfig& c, int run,
                                  RowRun rows, int index) {
  QueryTile tile;
  tile.row = rows.first + index * c.queries;
  tile.num_rows = min_of(c.queries, rows.count - index * c.queries);
  int begin = work.num_keys, end = 0;
  // Paged, the last row sees all that the others do.
  for (int i = c.paged ? tile.num_rows - 1 : 0; i < tile.num_rows; ++i) {
    const KeyRange range = range_of(work, c, run, rows, tile.row + i);
    if (range.begin < range.end) {
      begin = min_of(begin, range.begin);
      end = max_of(end, range.end);
    }
  }
  tile.first_tile = begin < end ? begin / kKeyTile : 0;
  tile.num_tiles = begin < end ? ceil_div(end, kKeyTile) - tile.first_tile : 0;
  return tile;
}

VOLLEY_HD int tiles_of_run(const ScoringWork& work, const ScoringConfig& c, int run) {
  const RowRun rows = run_of(work, c, run);
  int sum = 0;
  for (int i = 0; i < query_tiles_of(c, rows); ++i) {
    sum += query_tile_of(work, c, run, rows, i).num_tiles;
  }
  return sum;
}

// Where part `part` of `num_parts` of a line of `total` pairs begins.
VOLLEY_HD constexpr int share_begin(int total, int part, int num_parts) {
  return static_cast<int>(static_cast<long long>(total) * part / num_parts);
}

// A place on the line, and how many pairs from there on are to be done.
struct WorkCursor {
  int run = 0;
  int query_tile = 0;  // of the run
  int tile = 0;        // key tiles of that query tile before this place
  int left = 0;

  // Goes `pairs` further, without doing them.
  VOLLEY_HD void skip(const ScoringWork& work, const ScoringConfig& c, int pairs) {
    for (; run < work.num_runs; ++run, query_tile = 0) {
      const RowRun rows = run_of(work, c, run);
      for (; query_tile < query_tiles_of(c, rows); ++query_tile, tile = 0) {
        const int here = query_tile_of(work, c, run, rows, query_tile).num_tiles - tile;
        if (pairs < here) {
          tile += pairs;
          return;
        }
        pairs -= here;
      }
    }
  }

  // The next query tile, with those of its key tiles that are to be done; false at the end.
  VOLLEY_HD bool next(const ScoringWork& work, const ScoringConfig& c, QueryTile& out,
                      int& out_run) {
    for (; left > 0 && run < work.num_runs; ++run, query_tile = 0) {
      const RowRun rows = run_of(work, c, run);
      for (; query_tile < query_tiles_of(c, rows); ++query_tile, tile = 0) {
        const QueryTile whole = query_tile_of(work, c, run, rows, query_tile);
        if (tile >= whole.num_tiles) continue;
        out = whole;
        out_run = run;
        out.first_tile += tile;
        out.num_tiles = min_of(left, whole.num_tiles - tile);
        left -= out.num_tiles;
        tile += out.num_tiles;
        return true;
      }
    }
    return false;
  }
};

// What a kernel is launched with beside its tensor maps.
struct ScoringParams {
  ScoringWork work;
  const unsigned char* keys;  // FP4: a map would bring rows of 64 bytes, each on its own
  long long page_stride;      // bytes
  int num_pages;
  const int* block_table;  // paged: [num_runs, table_stride]
  long long table_stride;
  const float* weights;
  long long weights_stride;  // floats
  float* logits;
  long long logits_stride;  // floats
  int fill_outside;         // not 0: -infinity where a row sees no key
};

}  // namespace volley::gemm
