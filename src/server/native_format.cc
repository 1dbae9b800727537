// SGLang's /generate: each event of a stream carries the whole text so far.

#include <algorithm>

#include "server/answer_format.h"

namespace volley::server {
namespace {

class NativeFormat : public AnswerFormat {
 public:
  NativeFormat(FormatConfig config, bool list, bool return_logprob)
      : AnswerFormat(std::move(config)), list_(list), return_logprob_(return_logprob) {}

  std::string step(int idx, const AnswerRecord& record, const AnswerDelta&) override {
    return record.answer->done() ? std::string() : sse_event(answer_json(idx, record));
  }
  std::string end_answer(int idx, const AnswerRecord& record) override {
    return sse_event(answer_json(idx, record));
  }
  std::string end(std::span<const AnswerRecord>) override { return std::string(kSseDone); }

  Json whole(std::span<const AnswerRecord> records) override {
    if (!list_) return answer_json(0, records[0]);
    Json answers = Json::array();
    for (size_t i = 0; i < records.size(); ++i) {
      answers.push_back(answer_json(static_cast<int>(i), records[i]));
    }
    return answers;
  }

 private:
  Json finish_json(const Answer& answer) const {
    if (!answer.done()) return {};
    Json reason{{"type", answer.finish_reason()}};
    if (answer.finish() == FinishReason::kLength) reason["length"] = answer.tokens().size();
    if (!answer.matched_string().empty()) reason["matched"] = answer.matched_string();
    if (answer.stop_token()) reason["matched"] = *answer.stop_token();
    return reason;
  }

  Json logprob_triple(int32_t id, float logprob) const {
    return Json::array({std::max(logprob, -9999.0f), id, config_.tokenizer->token_bytes(id)});
  }

  Json answer_json(int idx, const AnswerRecord& record) const {
    const Answer& answer = *record.answer;
    const AnswerSpeculation& spec = answer.speculation();
    Json meta;
    meta["id"] = fmt::format("{}-{}", config_.id, idx);
    meta["finish_reason"] = finish_json(answer);
    meta["prompt_tokens"] = record.num_prompt_tokens;
    meta["completion_tokens"] = answer.tokens().size();
    meta["cached_tokens"] = record.num_cached_tokens;
    meta["e2e_latency"] = record.end_s;
    meta["spec_verify_ct"] = spec.num_steps;
    meta["spec_accept_length"] = spec.acceptance_length();
    if (return_logprob_) {
      Json chosen = Json::array(), tops = Json::array();
      for (const TokenLogprob& token : answer.logprobs()) {
        chosen.push_back(logprob_triple(token.id, token.value.logprob));
        Json top = Json::array();
        for (const auto& [id, logprob] : token.value.top) {
          top.push_back(logprob_triple(id, logprob));
        }
        tops.push_back(std::move(top));
      }
      meta["output_token_logprobs"] = std::move(chosen);
      meta["output_top_logprobs"] = std::move(tops);
    }
    if (config_.spec_metrics != SpecMetrics::kNone && answer.done()) {
      meta["metrics"] = metrics_json(record, config_.spec_metrics);
    }
    Json body;
    body["text"] = answer.text();
    body["output_ids"] = answer.tokens();
    body["meta_info"] = std::move(meta);
    return body;
  }

  bool list_;
  bool return_logprob_;
};

}  // namespace

std::unique_ptr<AnswerFormat> make_native_format(FormatConfig config, bool list,
                                                 bool return_logprob) {
  return std::make_unique<NativeFormat>(std::move(config), list, return_logprob);
}

}  // namespace volley::server
