#pragma once

// Matmuls of a call: rows are normed and packed as a unit wants them, and panels or rows shared out
// among threads, kMaxRowsPerPass rows at a time.

#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/memory.h"
#include "ops/cpu/packing.h"
#include "ops/ops.h"

namespace volley::cpu {

class CpuMatrix final : public PackedMatrix {
 public:
  CpuMatrix(int64_t n, int64_t k, bool is_gate_up, PackedPanels panels)
      : PackedMatrix(n, k), is_gate_up(is_gate_up), panels(std::move(panels)) {}
  int64_t num_bytes() const override { return panels.num_bytes(); }

  const bool is_gate_up;
  const PackedPanels panels;
};

struct RowNorm {  // of rows on their way into a matmul
  const float* weight;
  float eps;
};

// Shapes have passed op_checks.
class Matmul {
 public:
  // Both outlive it.
  Matmul(const KernelTable& kernels, ThreadPool& pool);

  // Makes room for the rows of matmuls with weights of this format and k. Errors: no memory.
  Status reserve(WeightFormat format, int64_t k);

  // A null `norm` or `bias`: none.
  void multiply(const TensorView& a, const RowNorm* norm, const CpuMatrix& w, Epilogue epilogue,
                const TensorView* bias, const TensorView& out);
  void feed_forward(const TensorView& x, const RowNorm& norm, const CpuMatrix& gate_up,
                    const CpuMatrix& down);
  // token_ids and probabilities: [a.rows, k]
  void candidates(const TensorView& a, const CpuMatrix& w, int k, int32_t* token_ids,
                  float* probabilities);
  void argmax(const TensorView& a, const CpuMatrix& w, int32_t* token_ids);

 private:
  static void use_weights(const CpuMatrix& matrix, MatmulTask& task);
  void use_rows(const TensorView& a, const RowNorm* norm, MatmulTask& task);
  void pack_rows(TensorView a, const RowNorm* norm, WeightFormat format);
  void norm_rows(const TensorView& x, const RowNorm& norm, const TensorView& out);

  void multiply_pass(const TensorView& a, const RowNorm* norm, const CpuMatrix& matrix,
                     MatmulTask task);
  void feed_forward_pass(const TensorView& x, const RowNorm& norm, const CpuMatrix& gate_up,
                         const CpuMatrix& down);
  void candidates_pass(const TensorView& a, const CpuMatrix& w, int k, int32_t* token_ids,
                       float* probabilities);
  void add_chunk(const MatmulTask& whole, int64_t first, int64_t count, int k, int64_t section,
                 ThreadScratch& scratch);

  void run_matmul(const MatmulTask& task, int64_t num_panels);
  int num_row_blocks(const MatmulTask& task, int64_t num_panels) const;
  void multiply_blocks(const MatmulTask& task, int64_t num_panels, int num_blocks);

  void forget_best(int64_t num_rows);
  int32_t best_column(int64_t row);

  // Of one pass.
  float* float_rows() { return reinterpret_cast<float*>(float_rows_.data()); }

  const KernelTable& kernels_;
  ThreadPool& pool_;
  // Activations of one pass: in the unit's layout, likewise between the two matmuls of a feed
  // forward, and as floats; sized by the widest k.
  Buffer packed_rows_;
  Buffer packed_act_;
  Buffer float_rows_;
  std::unique_ptr<ThreadScratch[]> scratch_;  // one for each thread
  std::vector<SectionSums> sums_ = std::vector<SectionSums>(kMaxRowsPerPass);
};

}  // namespace volley::cpu
