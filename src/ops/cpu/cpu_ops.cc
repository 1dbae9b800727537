#include "ops/cpu/cpu_ops.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "base/thread_pool.h"
#include "ops/cpu/cpu_features.h"
#include "ops/cpu/kernels.h"
#include "ops/cpu/memory.h"
#include "ops/cpu/pack_cache.h"
#include "ops/cpu/packing.h"
#include "ops/op_checks.h"
#include "ops/pack_checks.h"
#include "tensor/float_formats.h"

namespace volley {
namespace {

using cpu::ArgmaxState;
using cpu::AttentionTask;
using cpu::Bf16Layout;
using cpu::Buffer;
using cpu::Epilogue;
using cpu::kChunkCols;
using cpu::kMaxRowsPerPass;
using cpu::MatmulTask;
using cpu::PackedPanels;
using cpu::QueryBlock;
using cpu::SectionSums;

// Work below these sizes stays on the calling thread: a dispatch costs about as much.
constexpr int64_t kSerialRowElements = 32 * 1024;    // activations read by a row-by-row op
constexpr int64_t kSerialPackedElements = 4 * 1024;  // activations made integers by one thread
constexpr int64_t kSerialNormedElements = 8 * 1024;  // activations normed and packed
constexpr int64_t kSerialWeightBytes = 32 * 1024;    // of one thread's share of a matmul
constexpr int64_t kSerialRopeElements = 4 * 1024;    // of queries, keys and values
constexpr int64_t kRopeRows = 64;                    // of each thread, from which on rows are split
constexpr int64_t kLeastBlockRows = 32;              // of a matmul whose rows are split
constexpr int64_t kWeightsPerActivation = 4;         // with more, its columns are split
constexpr int64_t kSerialKeyElements = 16 * 1024;    // key and value elements of an attention call
constexpr int64_t kBlocksPerUnit = 4;                // of queries, one after the other
constexpr size_t kReservedBlocks = 16 * 1024;

constexpr std::string_view kGateUp = "gate and up";

constexpr ArgmaxState kNothing = [] {
  ArgmaxState state{};
  for (int i = 0; i < 16; ++i) {
    state.values[i] = -std::numeric_limits<float>::infinity();
    state.columns[i] = std::numeric_limits<float>::infinity();
  }
  return state;
}();
constexpr SectionSums kNoSums = [] {
  SectionSums sums{};
  for (float& max : sums.max) max = -std::numeric_limits<float>::infinity();
  return sums;
}();

class CpuMatrix final : public PackedMatrix {
 public:
  CpuMatrix(int64_t n, int64_t k, bool is_gate_up, PackedPanels panels)
      : PackedMatrix(n, k), is_gate_up(is_gate_up), panels(std::move(panels)) {}
  int64_t num_bytes() const override { return panels.num_bytes(); }

  const bool is_gate_up;
  const PackedPanels panels;
};

class CpuKv final : public KvCache {
 public:
  CpuKv(const KvShape& shape, int64_t keys_bytes, int64_t values_bytes, Buffer data)
      : KvCache(shape),
        values_offset_(keys_bytes),
        head_bytes_(keys_bytes + values_bytes),
        data_(std::move(data)) {}
  int64_t num_bytes() const override { return data_.size(); }

  cpu::KvLayer layer(int layer_idx) const {
    const int64_t page_bytes = head_bytes_ * shape().num_kv_heads;
    return {.data = data_.data() + layer_idx * shape().num_pages * page_bytes,
            .page_bytes = page_bytes,
            .head_bytes = head_bytes_,
            .values_offset = values_offset_,
            .page_size = shape().page_size,
            .head_dim = shape().head_dim};
  }

 private:
  int64_t values_offset_;
  int64_t head_bytes_;
  Buffer data_;
};

// Units of attention that one thread begins with: from `next` - 1 down to `begin`.
struct alignas(64) AttentionShare {
  std::atomic<int64_t> next = 0;
  int64_t begin = 0;
};

class CpuOps final : public Ops {
 public:
  CpuOps(std::string_view name, const cpu::KernelTable& kernels, const CpuOpsConfig& config)
      : name_(name),
        kernels_(kernels),
        weight_format_(config.weight_format),
        pack_cache_(config.pack_cache),
        on_packed_(config.on_packed),
        pool_(config.num_threads) {
    scratch_ = std::make_unique<cpu::ThreadScratch[]>(static_cast<size_t>(config.num_threads));
    blocks_.reserve(kReservedBlocks);
    shares_ = std::make_unique<AttentionShare[]>(static_cast<size_t>(config.num_threads));
  }

  std::string_view name() const override { return name_; }

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
    VOLLEY_TRY_STATUS(check_kv_shape(shape, 16));
    if (shape.head_dim > cpu::kMaxHeadDim)
      return make_error(ErrorKind::kUnsupported, "head_dim {} is above {}, the most that {} holds",
                        shape.head_dim, cpu::kMaxHeadDim, name_);
    const int64_t element = kernels_.kv_is_bf16 ? 2 : 4;
    const int64_t key_dim = kernels_.kv_is_bf16 ? (shape.head_dim + 31) / 32 * 32 : shape.head_dim;
    const int64_t keys = shape.page_size * key_dim * element;
    const int64_t values = int64_t{shape.page_size} * shape.head_dim * element;
    const int64_t heads = int64_t{shape.num_layers} * shape.num_pages * shape.num_kv_heads;
    VOLLEY_TRY(Buffer data, Buffer::create(heads * (keys + values)));
    return std::make_unique<CpuKv>(shape, keys, values, std::move(data));
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
    multiply(a, nullptr, w, Epilogue::kStore, bias, out);
  }

  void norm_matmul(const TensorView& x, const TensorView& norm, float eps, const PackedMatrix& w,
                   const TensorView* bias, const TensorView& out) override {
    op_checks::matmul(x, w, bias, out);
    op_checks::vector(norm, x.cols);
    const Norm row_norm = {norm.row<float>(0), eps};
    multiply(x, &row_norm, w, Epilogue::kStore, bias, out);
  }

  void feed_forward(const TensorView& x, const TensorView& norm, float eps,
                    const PackedMatrix& gate_up, const PackedMatrix& down) override {
    op_checks::feed_forward(x, norm, gate_up, down);
    const Norm row_norm = {norm.row<float>(0), eps};
    for (int64_t first = 0; first < x.rows; first += kMaxRowsPerPass) {
      feed_forward_pass(x.row_range(first, std::min(kMaxRowsPerPass, x.rows - first)), row_norm,
                        static_cast<const CpuMatrix&>(gate_up),
                        static_cast<const CpuMatrix&>(down));
    }
  }

  void matmul_add(const TensorView& a, const PackedMatrix& w, const TensorView& residual) override {
    op_checks::matmul(a, w, nullptr, residual);
    multiply(a, nullptr, w, Epilogue::kAdd, nullptr, residual);
  }

  void swiglu(const TensorView& a, const PackedMatrix& w, const TensorView& out) override {
    op_checks::matmul(a, w, nullptr, out);
    multiply(a, nullptr, w, Epilogue::kSwiglu, nullptr, out);
  }

  void top_candidates(const TensorView& logits, std::span<int32_t> token_ids,
                      std::span<float> probabilities) override {
    const int k = op_checks::top_candidates(logits.rows, token_ids, probabilities);
    const int64_t n = logits.cols;
    for_rows(logits, [&](int64_t row) {
      ArgmaxState best = kNothing;
      SectionSums sums = kNoSums;
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
    for (int64_t first = 0; first < a.rows; first += kMaxRowsPerPass) {
      const int64_t count = std::min(kMaxRowsPerPass, a.rows - first);
      candidates_pass(a.row_range(first, count), w, k, &token_ids[first * k],
                      &probabilities[first * k]);
    }
  }

  void matmul_argmax(const TensorView& a, const PackedMatrix& w,
                     std::span<int32_t> token_ids) override {
    op_checks::matmul_argmax(a, w, token_ids);
    CHECK_LT(w.n(), int64_t{1} << 24);  // columns are kept as floats
    for (int64_t first = 0; first < a.rows; first += kMaxRowsPerPass) {
      const int64_t count = std::min(kMaxRowsPerPass, a.rows - first);
      forget_best(count);
      multiply_pass(a.row_range(first, count), nullptr, static_cast<const CpuMatrix&>(w),
                    {.epilogue = Epilogue::kArgmax});
      for (int64_t row = 0; row < count; ++row) token_ids[first + row] = best_column(row);
    }
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
    const AttentionTask task = {.qkv = qkv.row<float>(0),
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
    const int64_t num_keys = list_query_blocks(layout, rows, keys);
    const auto num_blocks = static_cast<int64_t>(blocks_.size());
    const int64_t num_tasks = num_blocks * layout.num_kv_heads;
    // A thread takes neighbouring blocks of one kv head, whose keys then come from its own cache.
    const int64_t unit =
        std::clamp<int64_t>(num_tasks / pool_.num_threads(), 1,
                            std::min(kBlocksPerUnit, std::max<int64_t>(1, num_blocks)));
    const int64_t units_per_head = (num_blocks + unit - 1) / unit;
    // Which thread takes which unit does not matter. Each begins with the kv heads that it has
    // rotated and stored: lines that another core has written are as far away as memory. Who is
    // done helps the others. Of one kv head the last rows come first, since under a causal mask
    // they have the most keys, and a long unit at the end would leave the other threads waiting.
    const int num_shares = pool_.num_threads();
    for (int i = 0; i < num_shares; ++i) {
      const ItemRange heads = ItemRange::of_part(layout.num_kv_heads, num_shares, i);
      shares_[i].begin = heads.begin * units_per_head;
      shares_[i].next.store(heads.end * units_per_head, std::memory_order_relaxed);
    }
    const auto attend_unit = [&](int64_t i, int64_t first_unit) {
      const auto kv_head = static_cast<int32_t>(i / units_per_head);
      const int64_t begin = i % units_per_head * unit;
      const int64_t end = std::min(begin + unit, num_blocks);
      for (int64_t j = end - 1; j >= begin; --j) {
        QueryBlock block = blocks_[j];
        block.fetches =
            units_per_head == 1 && (j == end - 1 || blocks_[j + 1].first_row != block.first_row);
        if (units_per_head == 1 && j == begin && i > first_unit) block.next_kv_head = kv_head - 1;
        kernels_.attend(task, block, kv_head);
      }
    };
    const auto work = [&](int thread_idx) {
      for (int other = 0; other < num_shares; ++other) {
        AttentionShare& share = shares_[(thread_idx + other) % num_shares];
        for (int64_t i;
             (i = share.next.fetch_sub(1, std::memory_order_relaxed) - 1) >= share.begin;)
          attend_unit(i, share.begin);
      }
    };
    if (num_tasks == 1 || num_keys * layout.num_kv_heads * layout.head_dim < kSerialKeyElements)
      work(0);
    else
      pool_.run(work);
  }

  void copy(const TensorView& x, const TensorView& out) override {
    op_checks::same_shape(x, out);
    for_rows(out, [&](int64_t row) { copy_row(x.row<float>(row), out, row); });
  }

  void copy_page(KvCache& kv, int32_t from, int32_t to, int num_positions) override {
    op_checks::copy_page(kv, from, to, num_positions);
    // Every layout keeps 32 positions of a head together.
    const int64_t count = (num_positions + 31) / 32 * 32;
    for (int layer_idx = 0; layer_idx < kv.shape().num_layers; ++layer_idx) {
      const cpu::KvLayer layer = static_cast<CpuKv&>(kv).layer(layer_idx);
      const int64_t key_bytes = layer.values_offset / layer.page_size * count;
      const int64_t value_bytes =
          (layer.head_bytes - layer.values_offset) / layer.page_size * count;
      for (int kv_head = 0; kv_head < kv.shape().num_kv_heads; ++kv_head) {
        const char* source = layer.data + from * layer.page_bytes + kv_head * layer.head_bytes;
        char* target = layer.data + to * layer.page_bytes + kv_head * layer.head_bytes;
        std::memcpy(target, source, static_cast<size_t>(key_bytes));
        std::memcpy(target + layer.values_offset, source + layer.values_offset,
                    static_cast<size_t>(value_bytes));
      }
    }
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
  static void copy_row(const float* x, const TensorView& out, int64_t row) {
    std::memcpy(out.row<float>(row), x, static_cast<size_t>(out.cols) * sizeof(float));
  }

  static int64_t rows_per_share(int64_t cols) {
    return std::max<int64_t>(1, kSerialRowElements / std::max<int64_t>(1, cols));
  }

  template <class F>
  void for_rows(const TensorView& out, F body) {
    pool_.split(out.rows, rows_per_share(out.cols), [&](ItemRange range, int) {
      for (int64_t row = range.begin; row < range.end; ++row) body(row);
    });
  }

  Result<std::unique_ptr<PackedMatrix>> pack(std::span<const HostMatrix> parts,
                                             std::string_view kind,
                                             const std::vector<cpu::PanelColumn>& columns,
                                             WeightFormat format, int64_t n) {
    const int64_t k = parts[0].cols();
    VOLLEY_TRY(PackedPanels panels, find_or_pack(parts, kind, columns, format));
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

  struct Norm {  // of rows on their way into a matmul
    const float* weight;
    float eps;
  };

  void multiply(const TensorView& a, const Norm* norm, const PackedMatrix& w, Epilogue epilogue,
                const TensorView* bias, const TensorView& out) {
    for (int64_t first = 0; first < a.rows; first += kMaxRowsPerPass) {
      const int64_t count = std::min(kMaxRowsPerPass, a.rows - first);
      multiply_pass(a.row_range(first, count), norm, static_cast<const CpuMatrix&>(w),
                    {.epilogue = epilogue,
                     .bias = bias != nullptr ? bias->row<float>(0) : nullptr,
                     .out = out.row<float>(first),
                     .out_stride = out.row_stride});
    }
  }

  void forget_best(int64_t num_rows) {
    for (int thread_idx = 0; thread_idx < pool_.num_threads(); ++thread_idx)
      std::fill_n(scratch_[thread_idx].best, num_rows, kNothing);
  }

  // Fills in what a task knows of its weights.
  static void use_weights(const CpuMatrix& matrix, MatmulTask& task) {
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
  void use_rows(const TensorView& a, const Norm* norm, MatmulTask& task) {
    pack_rows(a, norm, task.format);
    task.packed_rows = packed_rows_.data();
    task.num_rows = a.rows;
  }

  void feed_forward_pass(const TensorView& x, const Norm& norm, const CpuMatrix& gate_up,
                         const CpuMatrix& down) {
    const bool packs = kernels_.packs_swiglu && !cpu::has_blocks(down.panels.format);
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

    MatmulTask add = {
        .epilogue = Epilogue::kAdd, .out = x.row<float>(0), .out_stride = x.row_stride};
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
  void candidates_pass(const TensorView& a, const PackedMatrix& w, int k, int32_t* token_ids,
                       float* probabilities) {
    MatmulTask task;
    use_weights(static_cast<const CpuMatrix&>(w), task);
    use_rows(a, nullptr, task);
    forget_best(a.rows);
    std::fill_n(sums_.begin(), a.rows, kNoSums);
    const int64_t section_cols = cpu::section_cols(task.n);
    const int64_t section_bytes = section_cols / cpu::kPanelCols * task.panel_bytes;
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

  void add_chunk(const MatmulTask& whole, int64_t first, int64_t count, int k, int64_t section,
                 cpu::ThreadScratch& scratch) {
    MatmulTask task = whole;
    task.weights += first / cpu::kPanelCols * task.panel_bytes;
    task.n = count;
    task.out = scratch.logits;
    task.out_stride = kChunkCols;
    kernels_.matmul(task, 0, (count + cpu::kPanelCols - 1) / cpu::kPanelCols, scratch);
    for (int64_t row = 0; row < task.num_rows; ++row) {
      kernels_.add_candidates(scratch.logits + row * kChunkCols, first, count, k, scratch.best[row],
                              sums_[row].max[section], sums_[row].sum[section]);
    }
  }

  // Those of higher columns join those of lower ones, which come first on a tie.
  static void merge_candidates(const ArgmaxState& others, int k, ArgmaxState& best) {
    for (int i = 0; i < k && others.values[i] > best.values[k - 1]; ++i) {
      int at = k - 1;
      for (; at > 0 && others.values[i] > best.values[at - 1]; --at) {
        best.values[at] = best.values[at - 1];
        best.columns[at] = best.columns[at - 1];
      }
      best.values[at] = others.values[i];
      best.columns[at] = others.columns[i];
    }
  }

  // `task` says where results go.
  void multiply_pass(const TensorView& a, const Norm* norm, const CpuMatrix& matrix,
                     MatmulTask task) {
    use_weights(matrix, task);
    use_rows(a, norm, task);
    run_matmul(task, matrix.panels.num_panels);
  }

  void run_matmul(const MatmulTask& task, int64_t num_panels) {
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
  int num_row_blocks(const MatmulTask& task, int64_t num_panels) const {
    const int64_t num_weights = num_panels * cpu::kPanelCols * task.k;
    if (cpu::has_blocks(task.format) ||
        num_weights > kWeightsPerActivation * task.num_rows * (task.k + task.n))
      return 1;
    int num_blocks = 1;
    while (pool_.num_threads() % (2 * num_blocks) == 0 &&
           task.num_rows >= 2 * num_blocks * kLeastBlockRows)
      num_blocks *= 2;
    return num_blocks;
  }

  void multiply_blocks(const MatmulTask& task, int64_t num_panels, int num_blocks) {
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

  // Of one pass.
  float* float_rows() { return reinterpret_cast<float*>(float_rows_.data()); }

  void norm_rows(const TensorView& x, const Norm& norm, const TensorView& out) {
    pool_.split(x.rows, rows_per_share(x.cols), [&](ItemRange range, int) {
      for (int64_t row = range.begin; row < range.end; ++row)
        kernels_.rms_norm(x.row<float>(row), norm.weight, x.cols, norm.eps, out.row<float>(row));
    });
  }

  void pack_rows(TensorView a, const Norm* norm, WeightFormat format) {
    const bool by_blocks = cpu::has_blocks(format) && kernels_.pack_blocks != nullptr;
    const int64_t group = kernels_.rows_per_group;
    // Groups are normed and packed by one thread, out of its L1, if its scratch holds one.
    const bool norms_groups = !by_blocks && group * a.cols <= std::ssize(scratch_[0].logits);
    if (norm != nullptr && !norms_groups) {
      const TensorView normed = {float_rows(), DType::kF32, a.rows, a.cols, a.cols};
      norm_rows(a, *norm, normed);
      a = normed;
      norm = nullptr;
    }
    const cpu::PackRowsTask task = {.format = format,
                                    .a = a.row<float>(0),
                                    .a_stride = a.row_stride,
                                    .num_rows = a.rows,
                                    .k = a.cols,
                                    .packed_rows = packed_rows_.data()};
    if (by_blocks) {
      const int64_t num_blocks = (a.cols + cpu::kBlockK - 1) / cpu::kBlockK;
      const int64_t min_blocks =
          std::max<int64_t>(1, kSerialPackedElements / (a.rows * cpu::kBlockK));
      pool_.split(num_blocks, min_blocks, [&](ItemRange range, int) {
        cpu::PackRowsTask part = task;
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
      cpu::PackRowsTask part = task;
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
  int32_t best_column(int64_t row) {
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

  // Fills blocks_ and returns how many keys all of them read, for one kv head.
  int64_t list_query_blocks(const QkvLayout& layout, const RowPlaces& rows, const KeyRanges& keys) {
    blocks_.clear();
    const int32_t num_rows = static_cast<int32_t>(rows.sequences.size());
    const int32_t group = layout.num_heads / layout.num_kv_heads;
    int64_t num_keys = 0;
    for (int32_t first = 0, last; first < num_rows; first = last) {
      for (last = first + 1; last < num_rows && rows.sequences[last] == rows.sequences[first];)
        ++last;
      const int32_t num_queries = (last - first) * group;
      for (int32_t query = 0; query < num_queries; query += kernels_.queries_per_block) {
        const int32_t count = std::min(kernels_.queries_per_block, num_queries - query);
        blocks_.push_back({first, query, count});
        const int32_t row = first + (query + count - 1) / group;
        num_keys += keys.end[row] - keys.begin[row];
      }
    }
    return num_keys;
  }

  std::string_view name_;
  const cpu::KernelTable& kernels_;
  const WeightFormat weight_format_;
  cpu::PackCache* const pack_cache_;
  const std::function<void(int64_t)> on_packed_;
  ThreadPool pool_;
  // Activations of one pass: in the unit's layout, likewise between the two matmuls of a feed
  // forward, and as floats; sized by the widest k.
  Buffer packed_rows_;
  Buffer packed_act_;
  Buffer float_rows_;
  std::unique_ptr<cpu::ThreadScratch[]> scratch_;  // one for each thread
  std::vector<QueryBlock> blocks_;
  std::vector<SectionSums> sums_ = std::vector<SectionSums>(kMaxRowsPerPass);
  std::unique_ptr<AttentionShare[]> shares_;  // one for each thread
};

struct Unit {
  Isa isa;
  std::string_view name;      // as a flag
  std::string_view ops_name;  // as Ops::name()
  std::string_view needs;
  const cpu::KernelTable* (*kernels)();
  bool cpu::CpuFeatures::*feature;
};

constexpr std::array<Unit, 3> kUnits = {{
    {Isa::kAvx2, "avx2", "cpu/avx2", "AVX2, FMA and F16C", cpu::avx2_kernels,
     &cpu::CpuFeatures::avx2},
    {Isa::kAvx512, "avx512", "cpu/avx512", "AVX-512 F, BW, DQ and VL", cpu::avx512_kernels,
     &cpu::CpuFeatures::avx512},
    {Isa::kAmxBf16, "amx-bf16", "cpu/amx-bf16",
     "AMX-BF16, AMX-INT8, AVX512-VNNI, VBMI, BF16 and FP16, and tile state from the kernel",
     cpu::amx_bf16_kernels, &cpu::CpuFeatures::amx_bf16},
}};

bool available(const Unit& unit) {
  return cpu::cpu_features().*unit.feature && unit.kernels() != nullptr;
}

}  // namespace

std::string_view isa_name(Isa isa) {
  for (const Unit& unit : kUnits) {
    if (unit.isa == isa) return unit.name;
  }
  return "auto";
}

Result<Isa> parse_isa(std::string_view name) {
  if (name == "auto") return Isa::kAuto;
  for (const Unit& unit : kUnits) {
    if (unit.name == name) return unit.isa;
  }
  return invalid("unknown ISA '{}': expected auto, avx2, avx512 or amx-bf16", name);
}

bool isa_available(Isa isa) {
  return std::any_of(kUnits.begin(), kUnits.end(), [&](const Unit& unit) {
    return (isa == Isa::kAuto || unit.isa == isa) && available(unit);
  });
}

namespace {

Result<const Unit*> choose_unit(Isa isa) {
  for (auto unit = kUnits.rbegin(); unit != kUnits.rend(); ++unit) {
    if (isa != Isa::kAuto && isa != unit->isa) continue;
    if (available(*unit)) return &*unit;
    if (isa == unit->isa)
      return make_error(ErrorKind::kUnsupported,
                        "this machine cannot run the {} unit: it needs {}; use another or 'auto'",
                        unit->name, unit->needs);
  }
  return make_error(ErrorKind::kUnsupported,
                    "this machine has none of AVX2, AVX-512 and AMX; use the ref backend");
}

}  // namespace

Result<const cpu::KernelTable*> cpu::kernels_of(Isa isa) {
  VOLLEY_TRY(const Unit* unit, choose_unit(isa));
  return unit->kernels();
}

Result<std::unique_ptr<Ops>> make_cpu_ops(const CpuOpsConfig& config) {
  if (config.num_threads < 1 || config.num_threads > 1024)
    return invalid("{} threads: expected 1 to 1024", config.num_threads);
  VOLLEY_TRY(const Unit* unit, choose_unit(config.isa));
  return std::make_unique<CpuOps>(unit->ops_name, *unit->kernels(), config);
}

}  // namespace volley
