// The models against Transformers and the DFlash reference on the checkpoints of tests/golden
// (tests/golden/README.md): logits, tapped states, greedy tokens and whole draft blocks, on the
// reference ops and on every CPU unit this machine can run.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "base/file.h"
#include "model/dflash.h"
#include "model/target.h"
#include "ops/cpu/cpu_ops.h"
#include "ops/ref/ref_ops.h"
#include "weights/model_files.h"

namespace volley {
namespace {

const std::filesystem::path kGolden = "tests/golden";
constexpr int kPageSize = 32;
constexpr int32_t kPageTable[] = {3, 0, 2, 1, 5, 4, 7, 6};
constexpr int kNumPages = 8;
constexpr ModelLimits kLimits = {.max_rows = 128, .max_output_rows = 128, .max_positions = 256};

constexpr double kFloatTolerance = 1e-4;
constexpr double kRoundedTolerance = 0.1;
constexpr double kRoundedTokenShare = 0.85;

// A backend and what its arithmetic allows. AMX rounds activations, keys and values to bf16, and
// random networks with sharp attention amplify that: there the models must agree as two bf16
// implementations do, in the mean and in most tokens.
struct Backend {
  std::unique_ptr<Ops> ops;
  bool keeps_floats = true;        // activations, keys and values stay f32
  bool keeps_every_weight = true;  // f32, f16 and scaled fp8 weights are not rounded to bf16
};

std::vector<Backend> backends() {
  std::vector<Backend> all;
  all.push_back({make_ref_ops()});
  for (const Isa isa : {Isa::kAvx2, Isa::kAvx512, Isa::kAmxBf16}) {
    if (!isa_available(isa)) continue;
    auto ops = make_cpu_ops({.num_threads = 1, .isa = isa});
    CHECK(ops.has_value());
    all.push_back({std::move(*ops), isa != Isa::kAmxBf16, false});
  }
  return all;
}

// Results whose failure is a bug of the test's own files.
template <class T>
T must(Result<T> result) {
  if (!result) check_failed(__FILE__, __LINE__, result.error().message);
  return std::move(*result);
}

// golden.safetensors of one folder.
class Golden {
 public:
  explicit Golden(const std::filesystem::path& folder)
      : file_(must(MappedFile::open(folder / "golden.safetensors"))) {
    for (const NamedTensor& named : must(parse_safetensors(file_.bytes(), folder.string()))) {
      tensors_[named.name] = named.tensor;
    }
  }
  std::vector<float> floats(const std::string& name) const { return tensors_.at(name).to_floats(); }
  std::vector<int32_t> ints(const std::string& name) const {
    const HostTensor& tensor = tensors_.at(name);
    std::vector<int32_t> values(static_cast<size_t>(tensor.num_elements()));
    for (size_t i = 0; i < values.size(); ++i) {
      values[i] = static_cast<int32_t>(tensor.int_at(static_cast<int64_t>(i)));
    }
    return values;
  }

 private:
  MappedFile file_;
  std::map<std::string, HostTensor> tensors_;
};

void append(std::vector<float>& all, const std::vector<float>& more) {
  all.insert(all.end(), more.begin(), more.end());
}

std::vector<float> to_floats(const TensorView& view) {
  std::vector<float> values;
  for (int64_t r = 0; r < view.rows; ++r) {
    values.insert(values.end(), view.row<float>(r), view.row<float>(r) + view.cols);
  }
  return values;
}

// What was computed beside what the golden file says.
struct Comparison {
  std::vector<float> got;
  std::vector<float> want;
  int num_equal_tokens = 0;
  int num_tokens = 0;

  void add_token(int64_t got_token, int64_t want_token) {
    num_equal_tokens += got_token == want_token ? 1 : 0;
    ++num_tokens;
  }
};

// `exact`: the backend's arithmetic is that of the golden values but for the order of sums.
void expect_close(std::string_view name, std::string_view ops_name, bool exact,
                  const Comparison& c) {
  ASSERT_EQ(c.got.size(), c.want.size());
  double largest_off = 0, largest = 0, squares_off = 0, squares = 0;
  for (size_t i = 0; i < c.got.size(); ++i) {
    const double want = c.want[i];
    const double off = std::abs(c.got[i] - want);
    largest_off = std::max(largest_off, off);
    largest = std::max(largest, std::abs(want));
    squares_off += off * off;
    squares += want * want;
  }
  const double mean_off = std::sqrt(squares_off / squares);
  fmt::print(
      "{:<24} {:<12} difference {:.1e} at most, {:.1e} in the mean; {} of {} tokens differ\n", name,
      ops_name, largest_off / largest, mean_off, c.num_tokens - c.num_equal_tokens, c.num_tokens);
  if (exact) {
    EXPECT_LE(largest_off / largest, kFloatTolerance);
    EXPECT_EQ(c.num_equal_tokens, c.num_tokens);
  } else {
    EXPECT_LE(mean_off, kRoundedTolerance);
    EXPECT_GE(c.num_equal_tokens, kRoundedTokenShare * c.num_tokens);
  }
}

// A golden target on one backend. Each run is one sequence from an empty cache.
class TargetRunner {
 public:
  TargetRunner(const std::filesystem::path& folder, Ops& ops)
      : ops_(ops), files_(must(open_target(folder))) {
    model_ = must(TargetModel::create(files_.config, files_.weights, kLimits, ops_));
  }

  struct Output {
    std::vector<float> logits;         // [n, vocab]
    std::vector<float> target_hidden;  // [n, taps * hidden]
  };

  Output run(const std::vector<int32_t>& token_ids, const std::vector<int>& taps) {
    const int n = static_cast<int>(token_ids.size());
    const auto width = static_cast<int64_t>(taps.size()) * files_.config.hidden_size;
    const Tensor hidden = must(ops_.allocate(n, width, DType::kF32));
    const Tensor logits = must(ops_.allocate(n, files_.config.vocab_size, DType::kF32));
    const auto kv = must(ops_.create_kv(model_->kv_shape(kNumPages, kPageSize)));
    RowBatch rows(n, 1);
    rows.begin_sequence(kPageTable);
    for (int i = 0; i < n; ++i) rows.add(token_ids[i], i);
    std::vector<int32_t> output_rows(n);
    std::iota(output_rows.begin(), output_rows.end(), 0);
    model_->set_taps(taps);
    model_->logits(model_->forward(rows, output_rows, *kv, {output_rows, hidden.view()}), logits);
    return {to_floats(logits), to_floats(hidden)};
  }

  TargetModel& model() { return *model_; }

 private:
  Ops& ops_;
  TargetFiles files_;
  std::unique_ptr<TargetModel> model_;
};

// A golden drafter on one backend. Each draft starts from an empty cache.
class DrafterRunner {
 public:
  DrafterRunner(const std::filesystem::path& folder, TargetModel& target, Ops& ops)
      : ops_(ops), files_(must(open_drafter(folder))) {
    model_ = must(DflashDrafter::create(files_.config, files_.weights, target, kLimits, ops_));
  }

  struct Output {
    std::vector<int32_t> tokens;  // [block_size - 1]
    std::vector<float> logits;    // [block_size - 1, draft_vocab_size]
  };

  // target_hidden [n, taps * hidden], of which the rows before `anchor` are context.
  Output draft(std::vector<float>& target_hidden, int32_t anchor_token, int anchor) {
    const auto kv = must(ops_.create_kv(model_->kv_shape(kNumPages, kPageSize)));
    // The reference has no cache; here the context goes in as two pieces.
    inject(target_hidden, 0, anchor / 2, *kv);
    inject(target_hidden, anchor / 2, anchor, *kv);
    const int block_size = files_.config.block_size;
    RowBatch rows(block_size, 1);
    rows.begin_sequence(kPageTable);
    rows.add(anchor_token, anchor);
    for (int i = 1; i < block_size; ++i) rows.add(files_.config.mask_token_id, anchor + i);
    std::vector<int32_t> output_rows(block_size - 1);
    std::iota(output_rows.begin(), output_rows.end(), 1);

    const TensorView hidden = model_->draft(rows, output_rows, *kv);
    Output output;
    output.tokens.resize(output_rows.size());
    model_->argmax(hidden, output.tokens);
    const Tensor logits =
        must(ops_.allocate(block_size - 1, files_.config.draft_vocab_size, DType::kF32));
    model_->logits(hidden, logits);
    output.logits = to_floats(logits);
    return output;
  }

  const DrafterConfig& config() const { return files_.config; }

 private:
  void inject(std::vector<float>& target_hidden, int begin, int end, KvCache& kv) {
    if (begin == end) return;
    const auto width =
        static_cast<int64_t>(files_.config.taps.size()) * files_.config.target_hidden_size;
    RowBatch rows(end - begin, 1);
    rows.begin_sequence(kPageTable);
    for (int p = begin; p < end; ++p) rows.add(0, p);
    const TensorView piece = {target_hidden.data() + begin * width, DType::kF32, end - begin, width,
                              width};
    model_->inject(rows, piece, kv);
  }

  Ops& ops_;
  DrafterFiles files_;
  std::unique_ptr<DflashDrafter> model_;
};

struct TargetCase {
  const char* name;
  bool is_bf16;
};

void check_target(const TargetCase& c, const Backend& backend) {
  const Golden golden(kGolden / c.name);
  TargetRunner target(kGolden / c.name, *backend.ops);
  const int vocab = target.model().config().vocab_size;
  Comparison logits, taps;
  for (int s = 0; s < 3; ++s) {
    const std::string sequence = fmt::format("sequence{}.", s);
    const auto token_ids = golden.ints(sequence + "token_ids");
    const auto output = target.run(token_ids, golden.ints("taps"));
    append(logits.got, output.logits);
    append(logits.want, golden.floats(sequence + "logits"));
    append(taps.got, output.target_hidden);
    append(taps.want, golden.floats(sequence + "target_hidden"));
    for (size_t i = golden.ints(sequence + "prompt_length")[0]; i < token_ids.size(); ++i) {
      const auto row = output.logits.begin() + (i - 1) * vocab;
      logits.add_token(std::max_element(row, row + vocab) - row, token_ids[i]);
    }
  }
  const bool exact = backend.keeps_floats && (backend.keeps_every_weight || c.is_bf16);
  expect_close(c.name, backend.ops->name(), exact, logits);
  expect_close("  its target_hidden", backend.ops->name(), exact, taps);
}

TEST(GoldenParity, TargetsMatchTransformers) {
  for (const Backend& backend : backends()) {
    for (const TargetCase& c : {TargetCase{"qwen3-tied-bf16-sharded", true},
                                {"qwen2-window-bf16", true},
                                {"qwen3-untied-f32", false},
                                {"qwen3-fp8", false},
                                {"llama3-f16", false}}) {
      SCOPED_TRACE(fmt::format("{} on {}", c.name, backend.ops->name()));
      check_target(c, backend);
    }
  }
}

void check_drafter(const char* name, TargetRunner& target, const Backend& backend) {
  const Golden golden(kGolden / name);
  DrafterRunner drafter(kGolden / name, target.model(), *backend.ops);
  std::vector<std::vector<int32_t>> token_ids;
  std::vector<std::vector<float>> target_hidden;
  for (int s = 0; s < 2; ++s) {
    token_ids.push_back(golden.ints(fmt::format("sequence{}.token_ids", s)));
    target_hidden.push_back(target.run(token_ids.back(), drafter.config().taps).target_hidden);
  }
  const auto sequences = golden.ints("blocks.sequence");
  const auto anchors = golden.ints("blocks.anchor");
  const auto want_tokens = golden.ints("blocks.draft_tokens");
  const auto blocks_with_logits = golden.ints("logits.block");
  const size_t num_drafted = drafter.config().block_size - 1;
  Comparison comparison;
  comparison.want = golden.floats("logits.values");
  EXPECT_GE(anchors.size(), 100u);
  for (size_t b = 0; b < anchors.size(); ++b) {
    const int s = sequences[b];
    const auto output = drafter.draft(target_hidden[s], token_ids[s][anchors[b]], anchors[b]);
    for (size_t i = 0; i < num_drafted; ++i) {
      comparison.add_token(output.tokens[i], want_tokens[b * num_drafted + i]);
    }
    if (std::count(blocks_with_logits.begin(), blocks_with_logits.end(), static_cast<int>(b)) > 0) {
      append(comparison.got, output.logits);
    }
  }
  expect_close(name, backend.ops->name(), backend.keeps_floats, comparison);
}

TEST(GoldenParity, DraftersMatchTheReference) {
  for (const Backend& backend : backends()) {
    TargetRunner target(kGolden / "qwen3-tied-bf16-sharded", *backend.ops);
    for (const char* name : {"drafter-z-lab", "drafter-z-lab-window", "drafter-speculators"}) {
      SCOPED_TRACE(fmt::format("{} on {}", name, backend.ops->name()));
      check_drafter(name, target, backend);
    }
  }
}

}  // namespace
}  // namespace volley
