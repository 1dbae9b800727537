#include "app/weight_error.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "app/load.h"
#include "model/target.h"
#include "weights/model_files.h"

namespace volley {
namespace {

constexpr int kPositions = 192;
constexpr int kPageSize = 64;
constexpr const char* kStart = "Here is what I know about the sea and the ships that cross it. ";

struct ErrorSum {
  double squared_error = 0;
  double squares = 0;

  void add(const HostMatrix& matrix, WeightFormat format) {
    const int64_t cols = matrix.cols(), group = quant_group_size(format);
    std::vector<float> row(static_cast<size_t>(cols));
    std::array<uint8_t, kMaxQuantGroup> codes;
    for (int64_t r = 0; r < matrix.rows(); ++r) {
      matrix.dequantize_row(r, row.data());
      for (int64_t first = 0; first < cols; first += group) {
        const auto count = static_cast<size_t>(std::min(group, cols - first));
        const float scale = quantize_group(format, {&row[first], count}, codes.data());
        for (size_t i = 0; i < count; ++i) {
          const double value = row[first + i];
          const double off = dequantize(format, codes[i], scale) - value;
          squared_error += off * off;
          squares += value * value;
        }
      }
    }
  }
  double relative() const { return squares > 0 ? std::sqrt(squared_error / squares) : 0; }
};

// One target on its own ops and cache.
struct Model {
  std::unique_ptr<Ops> ops;
  std::unique_ptr<TargetModel> target;
  std::unique_ptr<KvCache> kv;
  std::vector<int32_t> pages;
  Tensor logits;

  static Result<Model> create(const TargetFiles& files, const Backend& backend,
                              WeightFormat format) {
    Model model;
    VOLLEY_TRY(model.ops, make_cpu_ops({.num_threads = backend.num_threads,
                                        .isa = backend.isa,
                                        .weight_format = format}));
    const ModelLimits limits{
        .max_rows = kPositions, .max_output_rows = kPositions, .max_positions = kPositions};
    VOLLEY_TRY(model.target, TargetModel::create(files.config, files.weights, limits, *model.ops));
    const int num_pages = (kPositions + kPageSize - 1) / kPageSize;
    VOLLEY_TRY(model.kv, model.ops->create_kv(model.target->kv_shape(num_pages, kPageSize)));
    model.pages.resize(static_cast<size_t>(num_pages));
    std::iota(model.pages.begin(), model.pages.end(), 0);
    VOLLEY_TRY(model.logits, model.ops->allocate(kPositions, files.config.vocab_size, DType::kF32));
    return model;
  }

  // Logits of tokens [first, ids.size()), one row each.
  TensorView run(const std::vector<int32_t>& ids, int first) {
    const int count = static_cast<int>(ids.size()) - first;
    RowBatch batch(count, 1);
    batch.begin_sequence(pages.data());
    for (int i = 0; i < count; ++i) batch.add(ids[first + i], first + i);
    std::vector<int32_t> rows(static_cast<size_t>(count));
    std::iota(rows.begin(), rows.end(), 0);
    const TensorView out = logits.first_rows(count);
    target->logits(target->forward(batch, rows, *kv, {}), out);
    return out;
  }
};

int32_t argmax(const float* logits, int64_t count) {
  return static_cast<int32_t>(std::max_element(logits, logits + count) - logits);
}

// log(sum of e^x).
double log_sum(const float* logits, int64_t count) {
  const double largest = *std::max_element(logits, logits + count);
  double sum = 0;
  for (int64_t i = 0; i < count; ++i) sum += std::exp(logits[i] - largest);
  return largest + std::log(sum);
}

double divergence(const float* p, const float* q, int64_t count) {
  const double p_sum = log_sum(p, count), q_sum = log_sum(q, count);
  double kl = 0;
  for (int64_t i = 0; i < count; ++i)
    kl += std::exp(p[i] - p_sum) * ((p[i] - p_sum) - (q[i] - q_sum));
  return kl;
}

}  // namespace

Result<WeightError> measure_weight_error(const std::string& folder, WeightFormat format,
                                         const ModelOptions& options) {
  VOLLEY_TRY(const Backend backend, choose_backend(options));
  VOLLEY_TRY(const TargetFiles files, open_target(folder));
  VOLLEY_TRY(const TextSide text, load_text(folder));
  WeightError error{.format = format};
  for (const LayerWeights& layer : files.weights.layers) {
    ErrorSum sum;
    for (const HostMatrix* matrix :
         {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down})
      sum.add(*matrix, format);
    error.layers.push_back(sum.relative());
  }
  ErrorSum head;
  head.add(files.weights.lm_head, format);
  error.head = head.relative();

  VOLLEY_TRY(Model plain, Model::create(files, backend, WeightFormat::kBf16));
  VOLLEY_TRY(Model coded, Model::create(files, backend, format));
  std::vector<int32_t> ids = text.tokenizer.encode(kStart);
  if (ids.empty() || ids.size() >= kPositions) return invalid("{}: odd tokenizer", folder);
  const int64_t vocab = files.config.vocab_size;
  for (int known = 0; static_cast<int>(ids.size()) < kPositions;) {
    const TensorView logits = plain.run(ids, known);
    known = static_cast<int>(ids.size());
    ids.push_back(argmax(logits.row<float>(logits.rows - 1), vocab));
  }
  const TensorView want = plain.run(ids, 0), got = coded.run(ids, 0);
  for (int64_t row = 0; row < want.rows; ++row) {
    const float *p = want.row<float>(row), *q = got.row<float>(row);
    error.mean_kl += divergence(p, q, vocab);
    error.argmax_agreement += argmax(p, vocab) == argmax(q, vocab) ? 1 : 0;
  }
  error.num_positions = static_cast<int>(want.rows);
  error.mean_kl /= error.num_positions;
  error.argmax_agreement /= error.num_positions;
  return error;
}

std::string WeightError::table() const {
  std::string out = fmt::format("{} against the checkpoint, relative error of the weights:\n",
                                weight_format_name(format));
  for (size_t i = 0; i < layers.size(); ++i)
    out += fmt::format("  layer {:<3} {:.4f}\n", i, layers[i]);
  out += fmt::format("  head      {:.4f}\n", head);
  out += fmt::format(
      "logits against bf16 over {} positions of text: mean KL {:.5f} nats, same most likely token "
      "at {:.1f}%\n",
      num_positions, mean_kl, 100 * argmax_agreement);
  return out;
}

Json WeightError::json() const {
  return {{"format", weight_format_name(format)},
          {"relative_error", {{"layers", layers}, {"head", head}}},
          {"positions", num_positions},
          {"mean_kl", mean_kl},
          {"argmax_agreement", argmax_agreement}};
}

}  // namespace volley
