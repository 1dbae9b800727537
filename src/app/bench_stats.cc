#include "app/bench_stats.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <set>

namespace volley {
namespace {

double ratio(double a, double b) {
  return b > 0 ? a / b : 0;
}

// Tokens gained a target pass of decoding; the first token of an answer comes from its prefill.
class AcceptanceSum {
 public:
  void add(const Answer& answer) {
    tokens_ += answer.speculation.num_tokens - 1;
    passes_ += answer.speculation.num_target_passes - 1;
  }
  double length() const {
    return ratio(static_cast<double>(tokens_), static_cast<double>(passes_));
  }

 private:
  int64_t tokens_ = 0;
  int64_t passes_ = 0;
};

struct TimeSum {
  int64_t decode_tokens = 0;
  int64_t tokens = 0;
  double decode_s = 0;
  double prefill_s = 0;

  void add(const Answer& answer) {
    decode_tokens += std::max<int64_t>(0, answer.num_tokens() - 1);
    tokens += answer.num_tokens();
    decode_s += answer.decode_s;
    prefill_s += answer.prefill_s;
  }
  double decode_tok_s() const { return ratio(static_cast<double>(decode_tokens), decode_s); }
  double total_tok_s() const { return ratio(static_cast<double>(tokens), decode_s + prefill_s); }
};

void add_counts(const std::vector<int64_t>& from, std::vector<int64_t>& to) {
  if (to.size() < from.size()) to.resize(from.size());
  for (size_t i = 0; i < from.size(); ++i) to[i] += from[i];
}

std::string small_bar(double share) {
  static constexpr std::array<const char*, 9> kBars = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
  const int level = static_cast<int>(std::lround(share * 8));
  return kBars[static_cast<size_t>(std::clamp(level, share > 0 ? 1 : 0, 8))];
}

std::string csv_field(const std::string& text) {
  if (text.find_first_of(",\"\n\r") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) {
    if (c == '"') quoted += '"';
    quoted += c;
  }
  return quoted + "\"";
}

}  // namespace

std::vector<double> SourceSummary::histogram() const {
  std::vector<double> shares;
  for (size_t i = 0; i < drafted_at.size(); ++i) {
    shares.push_back(
        ratio(static_cast<double>(accepted_at[i]), static_cast<double>(drafted_at[i])));
  }
  return shares;
}

double percentile(std::vector<double> values, double share) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  const double at = share * static_cast<double>(values.size() - 1);
  const auto low = static_cast<size_t>(at);
  const size_t high = std::min(low + 1, values.size() - 1);
  return values[low] + (at - static_cast<double>(low)) * (values[high] - values[low]);
}

SourceSummary summarize(const std::string& name, const std::vector<const BenchAnswer*>& answers) {
  SourceSummary summary{.name = name};
  TimeSum plain, drafted;
  AcceptanceSum acceptance, timed, coupled, argmax;
  std::vector<double> speedups;
  std::set<int> prompts;
  int64_t num_drafted = 0, num_draft_passes = 0;
  for (const BenchAnswer* answer : answers) {
    prompts.insert(answer->prompt_idx);
    ++summary.num_answers;
    summary.num_tokens += answer->plain.num_tokens();
    summary.num_different += answer->identical ? 0 : 1;
    plain.add(answer->plain);
    drafted.add(answer->drafted);
    timed.add(answer->drafted);
    num_drafted += answer->drafted.speculation.num_drafted;
    num_draft_passes += answer->drafted.speculation.num_draft_passes;
    const Answer& full = answer->for_acceptance();
    acceptance.add(full);
    add_counts(full.speculation.drafted_at, summary.drafted_at);
    add_counts(full.speculation.accepted_at, summary.accepted_at);
    if (answer->other_sampling) {
      (answer->drafted_is_coupled ? coupled : argmax).add(full);
      (answer->drafted_is_coupled ? argmax : coupled).add(*answer->other_sampling);
    }
    const double plain_tok_s = answer->plain.decode_tok_s();
    if (plain_tok_s > 0) speedups.push_back(answer->drafted.decode_tok_s() / plain_tok_s);
  }
  summary.num_prompts = static_cast<int>(prompts.size());
  summary.plain_tok_s = plain.decode_tok_s();
  summary.draft_tok_s = drafted.decode_tok_s();
  summary.speedup = ratio(summary.draft_tok_s, summary.plain_tok_s);
  summary.speedup_p10 = percentile(speedups, 0.1);
  summary.speedup_p90 = percentile(speedups, 0.9);
  summary.plain_prefill_ms = 1e3 * ratio(plain.prefill_s, summary.num_answers);
  summary.draft_prefill_ms = 1e3 * ratio(drafted.prefill_s, summary.num_answers);
  summary.plain_total_tok_s = plain.total_tok_s();
  summary.draft_total_tok_s = drafted.total_tok_s();
  summary.total_speedup = ratio(summary.draft_total_tok_s, summary.plain_total_tok_s);
  summary.acceptance_length = acceptance.length();
  summary.timed_acceptance_length = timed.length();
  summary.mean_draft_length =
      ratio(static_cast<double>(num_drafted), static_cast<double>(num_draft_passes));
  summary.coupled_acceptance_length = coupled.length();
  summary.argmax_acceptance_length = argmax.length();
  return summary;
}

std::vector<SourceSummary> summarize_by_source(const std::vector<BenchAnswer>& answers) {
  std::vector<std::string> names;
  for (const BenchAnswer& answer : answers) {
    if (std::find(names.begin(), names.end(), answer.source) == names.end()) {
      names.push_back(answer.source);
    }
  }
  std::vector<SourceSummary> summaries;
  for (const std::string& name : names) {
    std::vector<const BenchAnswer*> of_source;
    for (const BenchAnswer& answer : answers) {
      if (answer.source == name) of_source.push_back(&answer);
    }
    summaries.push_back(summarize(name, of_source));
  }
  return summaries;
}

Json summary_json(const SourceSummary& s) {
  Json json = {
      {"prompts", s.num_prompts},
      {"tokens", s.num_tokens},
      {"plain_tok_s", s.plain_tok_s},
      {"draft_tok_s", s.draft_tok_s},
      {"speedup", s.speedup},
      {"acceptance_length", s.acceptance_length},
      {"histogram", s.histogram()},
      {"identical", s.identical()},
      {"answers", s.num_answers},
      {"different_answers", s.num_different},
      {"speedup_p10", s.speedup_p10},
      {"speedup_p90", s.speedup_p90},
      {"timed_acceptance_length", s.timed_acceptance_length},
      {"mean_draft_length", s.mean_draft_length},
      {"plain_prefill_ms", s.plain_prefill_ms},
      {"draft_prefill_ms", s.draft_prefill_ms},
      {"plain_total_tok_s", s.plain_total_tok_s},
      {"draft_total_tok_s", s.draft_total_tok_s},
      {"total_speedup", s.total_speedup},
      {"drafted_at", s.drafted_at},
      {"accepted_at", s.accepted_at},
  };
  if (s.coupled_acceptance_length > 0) {
    json["coupled_acceptance_length"] = s.coupled_acceptance_length;
    json["argmax_acceptance_length"] = s.argmax_acceptance_length;
  }
  return json;
}

Json bench_json(const std::vector<BenchAnswer>& answers) {
  Json sources = Json::object();
  double speedups = 0, acceptances = 0;
  const std::vector<SourceSummary> summaries = summarize_by_source(answers);
  for (const SourceSummary& summary : summaries) {
    sources[summary.name] = summary_json(summary);
    speedups += summary.speedup;
    acceptances += summary.acceptance_length;
  }
  std::vector<const BenchAnswer*> all;
  for (const BenchAnswer& answer : answers) all.push_back(&answer);
  const auto count = static_cast<double>(summaries.size());
  return {
      {"sources", std::move(sources)},
      {"overall", summary_json(summarize("overall", all))},
      {"mean_of_sources",
       {{"speedup", ratio(speedups, count)}, {"acceptance_length", ratio(acceptances, count)}}}};
}

std::string bench_csv(const std::vector<BenchAnswer>& answers) {
  std::string csv =
      "source,prompt,turn,prompt_tokens,tokens,plain_tok_s,draft_tok_s,speedup,acceptance_length,"
      "timed_acceptance_length,mean_draft_length,plain_prefill_ms,draft_prefill_ms,identical\n";
  for (const BenchAnswer& a : answers) {
    csv +=
        fmt::format("{},{},{},{},{},{:.2f},{:.2f},{:.4f},{:.4f},{:.4f},{:.3f},{:.3f},{:.3f},{}\n",
                    csv_field(a.source), a.prompt_idx, a.turn_idx, a.plain.num_prompt_tokens,
                    a.plain.num_tokens(), a.plain.decode_tok_s(), a.drafted.decode_tok_s(),
                    ratio(a.drafted.decode_tok_s(), a.plain.decode_tok_s()),
                    a.for_acceptance().speculation.acceptance_length(),
                    a.drafted.speculation.acceptance_length(), a.drafted.mean_draft_length(),
                    1e3 * a.plain.prefill_s, 1e3 * a.drafted.prefill_s, a.identical ? "yes" : "no");
  }
  return csv;
}

std::string bench_table(const std::vector<SourceSummary>& sources, const SourceSummary& overall) {
  size_t width = 12;
  for (const SourceSummary& s : sources)
    width = std::max(width, std::min<size_t>(s.name.size(), 40));
  const bool compared = overall.coupled_acceptance_length > 0;
  std::string table =
      fmt::format("{:{}}  {:>7} {:>7}  {:>8} {:>9}  {:>7} {:>11}  {:>17}{}  {}\n", "source", width,
                  "prompts", "tokens", "plain", "drafted", "speedup", "p10..p90",
                  "acceptance_length", compared ? "  coupled  argmax" : "", "identical");
  table += fmt::format("{:{}}  {:>7} {:>7}  {:>8} {:>9}\n", "", width, "", "", "tok/s", "tok/s");
  const auto line = [&](const SourceSummary& s) {
    table += fmt::format(
        "{:{}}  {:>7} {:>7}  {:>8.1f} {:>9.1f}  {:>6.2f}x {:>11}  {:>17.2f}{}  {}\n",
        s.name.substr(0, 40), width, s.num_prompts, s.num_tokens, s.plain_tok_s, s.draft_tok_s,
        s.speedup, fmt::format("{:.2f}..{:.2f}", s.speedup_p10, s.speedup_p90), s.acceptance_length,
        compared ? fmt::format("  {:>7.2f} {:>7.2f}", s.coupled_acceptance_length,
                               s.argmax_acceptance_length)
                 : std::string(),
        s.identical() ? "yes" : fmt::format("NO ({} differ)", s.num_different));
  };
  for (const SourceSummary& s : sources) line(s);
  if (sources.size() > 1) line(overall);
  return table;
}

std::string acceptance_bars(const std::vector<SourceSummary>& sources,
                            const SourceSummary& overall) {
  constexpr int kBarWidth = 40;
  std::string out = "drafts kept, by position in the block\n";
  const std::vector<double> shares = overall.histogram();
  for (size_t i = 0; i < shares.size(); ++i) {
    if (overall.drafted_at[i] == 0) continue;
    std::string bar;
    const int length = static_cast<int>(std::lround(shares[i] * kBarWidth));
    for (int j = 0; j < length; ++j) bar += "█";
    for (int j = length; j < kBarWidth; ++j) bar += "·";
    out += fmt::format("{:>4}  {}  {:>4.0f}%\n", i + 1, bar, 100 * shares[i]);
  }
  if (sources.size() < 2) return out;
  size_t width = 0;
  for (const SourceSummary& s : sources)
    width = std::max(width, std::min<size_t>(s.name.size(), 40));
  for (const SourceSummary& s : sources) {
    std::string bars;
    for (const double share : s.histogram()) bars += small_bar(share);
    out += fmt::format("  {:{}}  {}\n", s.name.substr(0, 40), width, bars);
  }
  return out;
}

}  // namespace volley
