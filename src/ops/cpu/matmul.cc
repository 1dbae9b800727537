#include "ops/cpu/matmul.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/check.h"
#include "ops/cpu/candidates.h"
#include "ops/cpu/row_split.h"

namespace volley::cpu {
namespace {

// Work below these sizes stays on the calling thread: a dispatch costs about as much.
constexpr int64_t kSerialPackedElements = 4 * 1024;  // activations made integers by one thread
constexpr int64_t kSerialNormedElements = 8 * 1024;  // activations normed and packed
constexpr int64_t kSerialWeightBytes = 32 * 1024;    // of one thread's share of a matmul

constexpr int64_t kLeastBlockRows = 32;       // of a matmul whose rows are split
constexpr int64_t kWeightsPerActivation = 4;  // with more, its columns are split

}  // namespace

Matmul::Matmul(const KernelTable& kernels, ThreadPool& pool)
    : kernels_(kernels),
      pool_(pool),
      scratch_(std::make_unique<ThreadScratch[]>(static_cast<size_t>(pool.num_threads()))) {}

Status Matmul::reserve(WeightFormat format, int64_t k) {
  const int64_t groups = kMaxRowsPerPass / kernels_.rows_per_group;
  const int64_t scratch_bytes = groups * kernels_.packed_group_bytes(format, k);
  if (scratch_bytes > packed_rows_.size()) {
    VOLLEY_TRY(packed_rows_, Buffer::create(scratch_bytes));
    VOLLEY_TRY(packed_act_, Buffer::create(scratch_bytes));
  }
  const int64_t float_bytes = kMaxRowsPerPass * k * static_cast<int64_t>(sizeof(float));
  if (float_bytes > float_rows_.size()) {
    VOLLEY_TRY(float_rows_, Buffer::create(float_bytes));
  }
  return {};
}

void Matmul::multiply(const TensorView& a, const RowNorm* norm, const CpuMatrix& w,
                      Epilogue epilogue, const TensorView* bias, const TensorView& out) {
  for (int64_t first = 0; first < a.rows; first += kMaxRowsPerPass) {
    const int64_t count = std::min(kMaxRowsPerPass, a.rows - first);
    multiply_pass(a.row_range(first, count), norm, w,
                  {.epilogue = epilogue,
                   .bias = bias != nullptr ? bias->row<float>(0) : nullptr,
                   .out = out.row<float>(first),
                   .out_stride = out.row_stride});
  }
}

void Matmul::feed_forward(const TensorView& x, const RowNorm& norm, const CpuMatrix& gate_up,
                          const CpuMatrix& down) {
  for (int64_t first = 0; first < x.rows; first += kMaxRowsPerPass) {
    feed_forward_pass(x.row_range(first, std::min(kMaxRowsPerPass, x.rows - first)), norm, gate_up,
                      down);
  }
}

void Matmul::candidates(const TensorView& a, const CpuMatrix& w, int k, int32_t* token_ids,
                        float* probabilities) {
  for (int64_t first = 0; first < a.rows; first += kMaxRowsPerPass) {
    const int64_t count = std::min(kMaxRowsPerPass, a.rows - first);
    candidates_pass(a.row_range(first, count), w, k, token_ids + first * k,
                    probabilities + first * k);
  }
}

void Matmul::argmax(const TensorView& a, const CpuMatrix& w, int32_t* token_ids) {
  for (int64_t first = 0; first < a.rows; first += kMaxRowsPerPass) {
    const int64_t count = std::min(kMaxRowsPerPass, a.rows - first);
    forget_best(count);
    multiply_pass(a.row_range(first, count), nullptr, w, {.epilogue = Epilogue::kArgmax});
    for (int64_t row = 0; row < count; ++row) token_ids[first + row] = best_column(row);
  }
}

void Matmul::forget_best(int64_t num_rows) {
  for (int thread_idx = 0; thread_idx < pool_.num_threads(); ++thread_idx)
    std::fill_n(scratch_[thread_idx].best, num_rows, kNoBest);
}

// Fills in what a task knows of its weights.
void Matmul::use_weights(const CpuMatrix& matrix, MatmulTask& task) {
  const bool is_swiglu =
      task.epilogue == Epilogue::kSwiglu || task.epilogue == Epilogue::kPackedSwiglu;
  CHECK_EQ(matrix.is_gate_up, is_swiglu);
  task.format = matrix.panels.format;
  task.weights = matrix.panels.panels();
  task.panel_bytes = matrix.panels.panel_bytes;
  task.n = matrix.n();
  task.k = matrix.k();
}

// Rows, normed where `norm` is not null, as the task's weights will want them.
void Matmul::use_rows(const TensorView& a, const RowNorm* norm, MatmulTask& task) {
  pack_rows(a, norm, task.format);
  task.packed_rows = packed_rows_.data();
  task.num_rows = a.rows;
}

void Matmul::feed_forward_pass(const TensorView& x, const RowNorm& norm, const CpuMatrix& gate_up,
                               const CpuMatrix& down) {
  const bool packs = kernels_.packs_swiglu && !has_blocks(down.panels.format);
  MatmulTask up = {.epilogue = packs ? Epilogue::kPackedSwiglu : Epilogue::kSwiglu};
  if (packs) {
    up.packed_out = packed_act_.data();
    up.packed_format = down.panels.format;
    up.out_rows = x.rows;
  } else {
    up.out = float_rows();
    up.out_stride = gate_up.n();
  }
  use_weights(gate_up, up);
  use_rows(x, &norm, up);
  run_matmul(up, gate_up.panels.num_panels);

  MatmulTask add = {.epilogue = Epilogue::kAdd, .out = x.row<float>(0), .out_stride = x.row_stride};
  use_weights(down, add);
  if (packs) {
    add.packed_rows = packed_act_.data();
    add.num_rows = x.rows;
  } else {
    use_rows({up.out, DType::kF32, x.rows, gate_up.n(), gate_up.n()}, nullptr, add);
  }
  run_matmul(add, down.panels.num_panels);
}

// Logits live for one chunk, in the scratch of the thread that made them.
void Matmul::candidates_pass(const TensorView& a, const CpuMatrix& w, int k, int32_t* token_ids,
                             float* probabilities) {
  MatmulTask task;
  use_weights(w, task);
  use_rows(a, nullptr, task);
  forget_best(a.rows);
  std::fill_n(sums_.begin(), a.rows, kNoSums);
  const int64_t section_cols = cpu::section_cols(task.n);
  const int64_t section_bytes = section_cols / kPanelCols * task.panel_bytes;
  const int64_t min_sections = std::max<int64_t>(1, kSerialWeightBytes / section_bytes);
  const int64_t num_sections = (task.n + section_cols - 1) / section_cols;
  pool_.split(num_sections, min_sections, [&](ItemRange range, int thread_idx) {
    for (int64_t section = range.begin; section < range.end; ++section) {
      const int64_t begin = section * section_cols;
      const int64_t end = std::min(begin + section_cols, task.n);
      for (int64_t c = begin; c < end; c += kChunkCols)
        add_chunk(task, c, std::min(kChunkCols, end - c), k, section, scratch_[thread_idx]);
    }
  });
  for (int64_t row = 0; row < a.rows; ++row) {
    ArgmaxState best = scratch_[0].best[row];
    for (int thread_idx = 1; thread_idx < pool_.num_threads(); ++thread_idx)
      merge_candidates(scratch_[thread_idx].best[row], k, best);
    kernels_.finish_candidates(best, sums_[row], k, token_ids + row * k, probabilities + row * k);
  }
}

void Matmul::add_chunk(const MatmulTask& whole, int64_t first, int64_t count, int k,
                       int64_t section, ThreadScratch& scratch) {
  MatmulTask task = whole;
  task.weights += first / kPanelCols * task.panel_bytes;
  task.n = count;
  task.out = scratch.logits;
  task.out_stride = kChunkCols;
  kernels_.matmul(task, 0, (count + kPanelCols - 1) / kPanelCols, scratch);
  for (int64_t row = 0; row < task.num_rows; ++row) {
    kernels_.add_candidates(scratch.logits + row * kChunkCols, first, count, k, scratch.best[row],
                            sums_[row].max[section], sums_[row].sum[section]);
  }
}

// `task` says where results go.
void Matmul::multiply_pass(const TensorView& a, const RowNorm* norm, const CpuMatrix& matrix,
                           MatmulTask task) {
  use_weights(matrix, task);
  use_rows(a, norm, task);
  run_matmul(task, matrix.panels.num_panels);
}

void Matmul::run_matmul(const MatmulTask& task, int64_t num_panels) {
  const int num_blocks = num_row_blocks(task, num_panels);
  if (num_blocks > 1) return multiply_blocks(task, num_panels, num_blocks);
  const int64_t min_panels = std::max<int64_t>(1, kSerialWeightBytes / task.panel_bytes);
  pool_.split(num_panels, min_panels, [&](ItemRange range, int thread_idx) {
    kernels_.matmul(task, range.begin, range.end, scratch_[thread_idx]);
  });
}

// Into how many blocks of rows a matmul is cut, each with its share of the threads. All threads
// on the same rows read each weight once, but they read rows that others have packed, and write
// where others have read, which is as slow as memory. int8 and int4 cost more to decode twice.
int Matmul::num_row_blocks(const MatmulTask& task, int64_t num_panels) const {
  const int64_t num_weights = num_panels * kPanelCols * task.k;
  if (has_blocks(task.format) ||
      num_weights > kWeightsPerActivation * task.num_rows * (task.k + task.n))
    return 1;
  int num_blocks = 1;
  while (pool_.num_threads() % (2 * num_blocks) == 0 &&
         task.num_rows >= 2 * num_blocks * kLeastBlockRows)
    num_blocks *= 2;
  return num_blocks;
}

void Matmul::multiply_blocks(const MatmulTask& task, int64_t num_panels, int num_blocks) {
  const int64_t group = kernels_.rows_per_group;
  const int64_t group_bytes = kernels_.packed_group_bytes(task.format, task.k);
  const int num_shares = pool_.num_threads() / num_blocks;
  pool_.run([&](int thread_idx) {
    const ItemRange groups = ItemRange::of_part((task.num_rows + group - 1) / group, num_blocks,
                                                thread_idx / num_shares);
    MatmulTask part = task;
    part.first_row = groups.begin * group;
    part.num_rows = std::min(groups.end * group, task.num_rows) - part.first_row;
    part.packed_rows = static_cast<const char*>(task.packed_rows) + groups.begin * group_bytes;
    if (part.out != nullptr) part.out += part.first_row * part.out_stride;
    if (part.packed_out != nullptr) {
      part.packed_out = static_cast<char*>(task.packed_out) +
                        groups.begin * kernels_.packed_group_bytes(task.packed_format, task.n);
    }
    const ItemRange panels = ItemRange::of_part(num_panels, num_shares, thread_idx % num_shares);
    kernels_.matmul(part, panels.begin, panels.end, scratch_[thread_idx]);
  });
}

void Matmul::norm_rows(const TensorView& x, const RowNorm& norm, const TensorView& out) {
  for_rows(pool_, x.rows, x.cols, [&](int64_t row) {
    kernels_.rms_norm(x.row<float>(row), norm.weight, x.cols, norm.eps, out.row<float>(row));
  });
}

void Matmul::pack_rows(TensorView a, const RowNorm* norm, WeightFormat format) {
  const bool by_blocks = has_blocks(format) && kernels_.pack_blocks != nullptr;
  const int64_t group = kernels_.rows_per_group;
  // Groups are normed and packed by one thread, out of its L1, if its scratch holds one.
  const bool norms_groups = !by_blocks && group * a.cols <= std::ssize(scratch_[0].logits);
  if (norm != nullptr && !norms_groups) {
    const TensorView normed = {float_rows(), DType::kF32, a.rows, a.cols, a.cols};
    norm_rows(a, *norm, normed);
    a = normed;
    norm = nullptr;
  }
  const PackRowsTask task = {.format = format,
                             .a = a.row<float>(0),
                             .a_stride = a.row_stride,
                             .num_rows = a.rows,
                             .k = a.cols,
                             .packed_rows = packed_rows_.data()};
  if (by_blocks) {
    const int64_t num_blocks = (a.cols + kBlockK - 1) / kBlockK;
    const int64_t min_blocks = std::max<int64_t>(1, kSerialPackedElements / (a.rows * kBlockK));
    pool_.split(num_blocks, min_blocks, [&](ItemRange range, int) {
      PackRowsTask part = task;
      part.block_begin = range.begin;
      part.block_end = range.end;
      kernels_.pack_blocks(part);
    });
    return;
  }
  const int64_t num_groups = (a.rows + group - 1) / group;
  if (norm == nullptr) {
    const int64_t groups_per_share = (rows_per_share(a.cols) + group - 1) / group;
    pool_.split(num_groups, groups_per_share,
                [&](ItemRange range, int) { kernels_.pack_rows(task, range.begin, range.end); });
    return;
  }
  const int64_t groups_per_share = std::max<int64_t>(1, kSerialNormedElements / (group * a.cols));
  pool_.split(num_groups, groups_per_share, [&](ItemRange range, int thread_idx) {
    PackRowsTask part = task;
    part.a = scratch_[thread_idx].logits;
    part.a_stride = a.cols;
    for (int64_t i = range.begin; i < range.end; ++i) {
      part.a_row = i * group;
      float* out = scratch_[thread_idx].logits;
      for (int64_t row = i * group; row < std::min((i + 1) * group, a.rows); ++row) {
        kernels_.rms_norm(a.row<float>(row), norm->weight, a.cols, norm->eps, out);
        out += a.cols;
      }
      kernels_.pack_rows(part, i, i + 1);
    }
  });
}

// The lowest column of the largest value over all threads and lanes; 0 where all were NaN.
int32_t Matmul::best_column(int64_t row) {
  float best_value = -std::numeric_limits<float>::infinity();
  float column = std::numeric_limits<float>::infinity();
  for (int thread_idx = 0; thread_idx < pool_.num_threads(); ++thread_idx) {
    const ArgmaxState& state = scratch_[thread_idx].best[row];
    for (int lane = 0; lane < 16; ++lane) {
      const float value = state.values[lane];
      if (value < best_value || (value == best_value && state.columns[lane] >= column)) continue;
      best_value = value;
      column = state.columns[lane];
    }
  }
  return std::isinf(column) ? 0 : static_cast<int32_t>(column);
}

}  // namespace volley::cpu
