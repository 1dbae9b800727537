#include "ops/cpu/cpu_ops.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/thread_pool.h"
#include "ops/cpu/attention.h"
#include "ops/cpu/candidates.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/kv_cache.h"
#include "ops/cpu/matmul.h"
#include "ops/cpu/memory.h"
#include "ops/cpu/pack_cache.h"
#include "ops/cpu/packing.h"
#include "ops/cpu/row_split.h"
#include "ops/op_checks.h"
#include "ops/pack_checks.h"

namespace volley {
namespace {

using cpu::ArgmaxState;
using cpu::Bf16Layout;
using cpu::Buffer;
using cpu::CpuKv;
using cpu::CpuMatrix;
using cpu::Epilogue;
using cpu::kChunkCols;
using cpu::PackedPanels;
using cpu::RowNorm;
using cpu::SectionSums;

constexpr int64_t kSerialRopeElements = 4 * 1024;  // of queries, keys and values: on one thread
constexpr int64_t kRopeRows = 64;                  // of each thread, from which on rows are split

constexpr std::string_view kGateUp = "gate and up";

class CpuOps final : public Ops {
 public:
  CpuOps(const cpu::Unit& unit, const CpuOpsConfig& config)
      : unit_(unit),
        kernels_(*unit.kernels),
        weight_format_(config.weight_format),
        pack_cache_(config.pack_cache),
        on_packed_(config.on_packed),
        pool_(config.num_threads),
        matmul_(kernels_, pool_),
        attention_(kernels_, pool_) {}

  std::string_view name() const override { return unit_.ops_name; }

  Result<Tensor> allocate(int64_t rows, int64_t cols, DType dtype) override {
    const int64_t bytes = rows * cols * dtype_bytes(dtype);
    VOLLEY_TRY(Buffer buffer, Buffer::create(bytes));
    void* data = buffer.release();
    return Tensor({data, dtype, rows, cols, cols},
                  {data, [bytes](void* p) { Buffer::unmap(p, bytes); }});
  }

  Result<std::unique_ptr<PackedMatrix>> pack_matrix(std::span<const HostMatrix> parts) override {
    VOLLEY_TRY_STATUS(check_parts(parts));
    int64_t n = 0;
    for (const HostMatrix& part : parts) n += part.rows();
    return pack(parts, "stack", cpu::stacked_columns(parts),
                cpu::panel_format(weight_format_, parts), n);
  }

  Result<std::unique_ptr<PackedMatrix>> pack_gate_up(const HostMatrix& gate,
                                                     const HostMatrix& up) override {
    VOLLEY_TRY_STATUS(check_gate_up(gate, up));
    const std::array parts = {gate, up};
    return pack(parts, kGateUp, cpu::gate_up_columns(gate, up),
                cpu::panel_format(weight_format_, parts), gate.rows());
  }

  Result<Tensor> pack_vector(std::span<const HostTensor> parts) override {
    std::vector<float> all;
    for (const HostTensor& part : parts) {
      const std::vector<float> floats = part.to_floats();
      all.insert(all.end(), floats.begin(), floats.end());
    }
    VOLLEY_TRY(Tensor tensor, allocate(1, static_cast<int64_t>(all.size()), DType::kF32));
    std::copy(all.begin(), all.end(), tensor.view().row<float>(0));
    return tensor;
  }

  // bf16 tables stay as they are; others become f32. Both exact.
  Result<Tensor> pack_embedding(const HostMatrix& table) override {
    VOLLEY_TRY_STATUS(check_parts({&table, 1}));
    const bool is_bf16 = table.weight.dtype == DType::kBF16 && !table.is_quantized();
    VOLLEY_TRY(Tensor tensor,
               allocate(table.rows(), table.cols(), is_bf16 ? DType::kBF16 : DType::kF32));
    if (is_bf16) {
      std::memcpy(tensor.view().data, table.weight.data,
                  static_cast<size_t>(table.weight.num_bytes()));
    } else {
      for (int64_t row = 0; row < table.rows(); ++row)
        table.dequantize_row(row, tensor.view().row<float>(row));
    }
    return tensor;
  }

  Result<std::unique_ptr<KvCache>> create_kv(const KvShape& shape) override {
    return CpuKv::create(shape, unit_);
  }

  void embed(const TensorView& table, std::span<const int32_t> token_ids,
             const TensorView& out) override {
    op_checks::embed(table, token_ids, out);
    for_rows(out, [&](int64_t row) {
      if (table.dtype == DType::kBF16)
        kernels_.widen_bf16(table.row<uint16_t>(token_ids[row]), out.cols, out.row<float>(row));
      else
        copy_row(table.row<float>(token_ids[row]), out, row);
    });
  }

  void rms_norm(const TensorView& x, const TensorView& weight, float eps,
                const TensorView& out) override {
    op_checks::rms_norm(x, weight, out);
    for_rows(out, [&](int64_t row) {
      kernels_.rms_norm(x.row<float>(row), weight.row<float>(0), x.cols, eps, out.row<float>(row));
    });
  }

  void matmul(const TensorView& a, const PackedMatrix& w, const TensorView* bias,
              const TensorView& out) override {
    op_checks::matmul(a, w, bias, out);
    matmul_.multiply(a, nullptr, matrix(w), Epilogue::kStore, bias, out);
  }

  void norm_matmul(const TensorView& x, const TensorView& norm, float eps, const PackedMatrix& w,
                   const TensorView* bias, const TensorView& out) override {
    op_checks::matmul(x, w, bias, out);
    op_checks::vector(norm, x.cols);
    const RowNorm row_norm = {norm.row<float>(0), eps};
    matmul_.multiply(x, &row_norm, matrix(w), Epilogue::kStore, bias, out);
  }

  void feed_forward(const TensorView& x, const TensorView& norm, float eps,
                    const PackedMatrix& gate_up, const PackedMatrix& down) override {
    op_checks::feed_forward(x, norm, gate_up, down);
    const RowNorm row_norm = {norm.row<float>(0), eps};
    matmul_.feed_forward(x, row_norm, matrix(gate_up), matrix(down));
  }

  void matmul_add(const TensorView& a, const PackedMatrix& w, const TensorView& residual) override {
    op_checks::matmul(a, w, nullptr, residual);
    matmul_.multiply(a, nullptr, matrix(w), Epilogue::kAdd, nullptr, residual);
  }

  void swiglu(const TensorView& a, const PackedMatrix& w, const TensorView& out) override {
    op_checks::matmul(a, w, nullptr, out);
    matmul_.multiply(a, nullptr, matrix(w), Epilogue::kSwiglu, nullptr, out);
  }

  void top_candidates(const TensorView& logits, std::span<int32_t> token_ids,
                      std::span<float> probabilities) override {
    const int k = op_checks::top_candidates(logits.rows, token_ids, probabilities);
    const int64_t n = logits.cols;
    for_rows(logits, [&](int64_t row) {
      ArgmaxState best = cpu::kNoBest;
      SectionSums sums = cpu::kNoSums;
      for (int64_t first = 0; first < n; first += kChunkCols) {
        const int64_t section = first / cpu::section_cols(n);
        kernels_.add_candidates(logits.row<float>(row) + first, first,
                                std::min(kChunkCols, n - first), k, best, sums.max[section],
                                sums.sum[section]);
      }
      kernels_.finish_candidates(best, sums, k, &token_ids[row * k], &probabilities[row * k]);
    });
  }

  void matmul_candidates(const TensorView& a, const PackedMatrix& w, std::span<int32_t> token_ids,
                         std::span<float> probabilities) override {
    op_checks::f32_rows(a, w.k());
    CHECK_LT(w.n(), int64_t{1} << 24);  // columns are kept as floats
    const int k = op_checks::top_candidates(a.rows, token_ids, probabilities);
    matmul_.candidates(a, matrix(w), k, token_ids.data(), probabilities.data());
  }

  void matmul_argmax(const TensorView& a, const PackedMatrix& w,
                     std::span<int32_t> token_ids) override {
    op_checks::matmul_argmax(a, w, token_ids);
    CHECK_LT(w.n(), int64_t{1} << 24);  // columns are kept as floats
    matmul_.argmax(a, matrix(w), token_ids.data());
  }

  void rope_and_store(const TensorView& qkv, const QkvLayout& layout, const TensorView* q_norm,
                      const TensorView* k_norm, float eps, const TensorView& rope,
                      const RowPlaces& rows, KvCache& kv, int layer_idx) override {
    op_checks::rope_and_store(qkv, layout, q_norm, k_norm, rope, rows, kv.shape(), layer_idx);
    const cpu::RopeStoreTask task = {.qkv = qkv.row<float>(0),
                                     .qkv_stride = qkv.row_stride,
                                     .num_heads = layout.num_heads,
                                     .num_kv_heads = layout.num_kv_heads,
                                     .q_norm = q_norm != nullptr ? q_norm->row<float>(0) : nullptr,
                                     .k_norm = k_norm != nullptr ? k_norm->row<float>(0) : nullptr,
                                     .eps = eps,
                                     .rope = rope.row<float>(0),
                                     .rope_stride = rope.row_stride,
                                     .positions = rows.positions.data(),
                                     .sequences = rows.sequences.data(),
                                     .page_tables = rows.page_tables.data(),
                                     .kv = static_cast<CpuKv&>(kv).layer(layer_idx)};
    // Neighbouring positions share lines of the cache, so few rows are split by heads.
    if (qkv.rows >= kRopeRows * pool_.num_threads()) {
      pool_.split(qkv.rows, kRopeRows, [&](ItemRange range, int) {
        kernels_.rope_and_store(task, {range.begin, range.end, 0, layout.num_kv_heads});
      });
      return;
    }
    const int64_t elements_per_head =
        std::max<int64_t>(1, qkv.rows * layout.cols() / layout.num_kv_heads);
    const int64_t min_heads = std::max<int64_t>(1, kSerialRopeElements / elements_per_head);
    pool_.split(layout.num_kv_heads, min_heads, [&](ItemRange range, int) {
      kernels_.rope_and_store(
          task, {0, qkv.rows, static_cast<int32_t>(range.begin), static_cast<int32_t>(range.end)});
    });
  }

  void attention(const TensorView& qkv, const QkvLayout& layout, const RowPlaces& rows,
                 const KeyRanges& keys, const KvCache& kv, int layer_idx,
                 const TensorView& out) override {
    op_checks::attention(qkv, layout, rows, keys, kv.shape(), layer_idx, out);
    const cpu::AttentionTask task = {.qkv = qkv.row<float>(0),
                                     .qkv_stride = qkv.row_stride,
                                     .num_heads = layout.num_heads,
                                     .num_kv_heads = layout.num_kv_heads,
                                     .out = out.row<float>(0),
                                     .out_stride = out.row_stride,
                                     .key_begin = keys.begin.data(),
                                     .key_end = keys.end.data(),
                                     .sequences = rows.sequences.data(),
                                     .page_tables = rows.page_tables.data(),
                                     .kv = static_cast<const CpuKv&>(kv).layer(layer_idx)};
    attention_.run(task, static_cast<int32_t>(qkv.rows));
  }

  void copy(const TensorView& x, const TensorView& out) override {
    op_checks::same_shape(x, out);
    for_rows(out, [&](int64_t row) { copy_row(x.row<float>(row), out, row); });
  }

  void copy_page(KvCache& kv, int32_t from, int32_t to, int num_positions) override {
    op_checks::copy_page(kv, from, to, num_positions);
    static_cast<CpuKv&>(kv).copy_page(from, to, num_positions);
  }

  void add_bias(const TensorView& x, const TensorView& bias) override {
    op_checks::add_bias(x, bias);
    for_rows(x, [&](int64_t row) {
      float* out = x.row<float>(row);
      for (int64_t c = 0; c < x.cols; ++c) out[c] += bias.row<float>(0)[c];
    });
  }

  void gather_rows(const TensorView& x, std::span<const int32_t> row_ids,
                   const TensorView& out) override {
    op_checks::gather_rows(x, row_ids, out);
    for_rows(out, [&](int64_t row) { copy_row(x.row<float>(row_ids[row]), out, row); });
  }

 private:
  static const CpuMatrix& matrix(const PackedMatrix& w) { return static_cast<const CpuMatrix&>(w); }

  static void copy_row(const float* x, const TensorView& out, int64_t row) {
    std::memcpy(out.row<float>(row), x, static_cast<size_t>(out.cols) * sizeof(float));
  }

  template <class F>
  void for_rows(const TensorView& out, F body) {
    cpu::for_rows(pool_, out.rows, out.cols, body);
  }

  Result<std::unique_ptr<PackedMatrix>> pack(std::span<const HostMatrix> parts,
                                             std::string_view kind,
                                             const std::vector<cpu::PanelColumn>& columns,
                                             WeightFormat format, int64_t n) {
    const int64_t k = parts[0].cols();
    VOLLEY_TRY(PackedPanels panels, find_or_pack(parts, kind, columns, format));
    VOLLEY_TRY_STATUS(matmul_.reserve(format, k));
    if (on_packed_) {
      int64_t bytes = 0;
      for (const HostMatrix& part : parts) bytes += part.weight.num_bytes();
      on_packed_(bytes);
    }
    return std::make_unique<CpuMatrix>(n, k, kind == kGateUp, std::move(panels));
  }

  Result<PackedPanels> find_or_pack(std::span<const HostMatrix> parts, std::string_view kind,
                                    const std::vector<cpu::PanelColumn>& columns,
                                    WeightFormat format) {
    const int64_t k = parts[0].cols();
    const Bf16Layout layout = kernels_.weight_layout;
    PackedPanels wanted;
    wanted.format = format;
    wanted.num_panels = static_cast<int64_t>(columns.size()) / cpu::kPanelCols;
    wanted.panel_bytes = cpu::panel_bytes(format, layout, k);
    if (pack_cache_ == nullptr || !cpu::needs_quantiser(format, parts) ||
        !pack_cache_->takes(wanted.num_bytes()))
      return cpu::pack_panels(columns, k, format, layout, pool_);
    const cpu::PackKey key = cpu::pack_key(parts, kind, format, layout, pool_);
    if (auto found = pack_cache_->find(key, wanted, layout, pool_)) return std::move(*found);
    VOLLEY_TRY(PackedPanels panels, cpu::pack_panels(columns, k, format, layout, pool_));
    pack_cache_->store(key, panels, layout, pool_);
    return panels;
  }

  const cpu::Unit unit_;
  const cpu::KernelTable& kernels_;
  const WeightFormat weight_format_;
  cpu::PackCache* const pack_cache_;
  const std::function<void(int64_t)> on_packed_;
  ThreadPool pool_;
  cpu::Matmul matmul_;
  cpu::Attention attention_;
};

}  // namespace

Result<std::unique_ptr<Ops>> make_cpu_ops(const CpuOpsConfig& config) {
  if (config.num_threads < 1 || config.num_threads > 1024)
    return invalid("{} threads: expected 1 to 1024", config.num_threads);
  VOLLEY_TRY(const cpu::Unit unit, cpu::choose_unit(config.isa));
  return std::make_unique<CpuOps>(unit, config);
}

}  // namespace volley
