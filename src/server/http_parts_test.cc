// The small parts between HTTP and the endpoints: keys, trace ids, metrics.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "server/api_keys.h"
#include "server/http.h"
#include "server/metrics.h"
#include "server/trace.h"

namespace volley::server {
namespace {

using testing::HasSubstr;

TEST(Http, PercentCodesAreBytes) {
  EXPECT_EQ(percent_decoded("org%2Fname%20a"), "org/name a");
  EXPECT_EQ(percent_decoded("100%"), "100%");
  EXPECT_EQ(percent_decoded("%2"), "%2");
  EXPECT_EQ(percent_decoded("%zz%4a"), "%zzJ");
}

TEST(ApiKeys, AcceptsItsKeysAlone) {
  const ApiKeys keys = *ApiKeys::create({"secret", "other-key"});
  EXPECT_TRUE(keys.required());
  EXPECT_TRUE(keys.accepts_authorization("Bearer secret"));
  EXPECT_TRUE(keys.accepts_authorization("bearer other-key"));
  for (const char* wrong : {"", "secret", "Bearer ", "Bearer secre", "Bearer secret2",
                            "Bearer  secret", "Basic secret", "Bearer SECRET"}) {
    EXPECT_FALSE(keys.accepts_authorization(wrong)) << wrong;
  }
  EXPECT_FALSE(keys.accepts(std::string("secret\0", 7)));
  EXPECT_FALSE(keys.accepts(std::string(300, 'x')));
  EXPECT_FALSE(ApiKeys().required());
}

TEST(ApiKeys, RefusesKeysThatCannotBe) {
  EXPECT_FALSE(ApiKeys::create({""}));
  EXPECT_FALSE(ApiKeys::create({std::string(257, 'x')}));
  EXPECT_FALSE(ApiKeys::create(std::vector<std::string>(1025, "k")));
}

TEST(Trace, ContinuesAValidTraceAndStartsAnotherOtherwise) {
  IdMaker ids;
  const std::string trace = "4bf92f3577b34da6a3ce929d0e0e4736";
  const TraceIds given = ids.trace("00-" + trace + "-00f067aa0ba902b7-00");
  EXPECT_EQ(given.trace_id, trace);
  EXPECT_EQ(given.parent_id, "00f067aa0ba902b7");
  EXPECT_FALSE(given.sampled);
  EXPECT_EQ(given.traceparent(), "00-" + trace + "-" + given.span_id + "-00");
  for (const std::string& bad :
       {std::string(), std::string("00-zz"), "ff-" + trace + "-00f067aa0ba902b7-01",
        "00-" + std::string(32, '0') + "-00f067aa0ba902b7-01",
        "00-" + trace + "-0000000000000000-01", "00-" + trace + "-00F067AA0BA902B7-01",
        "00-" + trace + "-00f067aa0ba902b7-01x"}) {
    const TraceIds fresh = ids.trace(bad);
    EXPECT_NE(fresh.trace_id, trace) << bad;
    EXPECT_EQ(fresh.trace_id.size(), 32u);
    EXPECT_EQ(fresh.parent_id, "");
  }
}

TEST(Trace, RequestIdsAreClean) {
  EXPECT_EQ(clean_request_id("a-1_B.c:9"), "a-1_B.c:9");
  EXPECT_EQ(clean_request_id("a\r\nSet-Cookie: x"), "");
  EXPECT_EQ(clean_request_id(std::string(129, 'a')), "");
}

TEST(Metrics, HistogramsCumulate) {
  Histogram histogram({1, 2, 5});
  for (const double value : {0.5, 1.0, 1.5, 4.0, 9.0}) histogram.observe(value);
  std::string text;
  histogram.render("h", "help", "m\"x", text);
  EXPECT_THAT(text, HasSubstr("h_bucket{model_name=\"m\\\"x\",le=\"1\"} 2\n"));
  EXPECT_THAT(text, HasSubstr("le=\"2\"} 3\n"));
  EXPECT_THAT(text, HasSubstr("le=\"5\"} 4\n"));
  EXPECT_THAT(text, HasSubstr("le=\"+Inf\"} 5\n"));
  EXPECT_THAT(text, HasSubstr("h_sum{model_name=\"m\\\"x\"} 16\n"));
  EXPECT_THAT(text, HasSubstr("h_count{model_name=\"m\\\"x\"} 5\n"));
}

TEST(Metrics, SpeculationHasTheNamesOfVllm) {
  Metrics metrics;
  metrics.observe_http("/v1/completions", 200);
  metrics.observe_answer(0.1, 1, 0.01, "stop", 3.5);
  EngineSnapshot engine;
  engine.num_drafts = 3;
  engine.num_draft_tokens = 21;
  engine.num_accepted_drafts = 9;
  engine.accepted_at = {3, 3, 2, 1, 0, 0, 0};
  engine.drafted_at = {3, 3, 3, 3, 3, 3, 3};
  const std::string text = metrics.render("m", engine, {.ready = true});
  for (const char* row :
       {"vllm:spec_decode_num_drafts_total{model_name=\"m\"} 3\n",
        "vllm:spec_decode_num_draft_tokens_total{model_name=\"m\"} 21\n",
        "vllm:spec_decode_num_accepted_tokens_total{model_name=\"m\"} 9\n",
        "vllm:spec_decode_num_accepted_tokens_per_pos_total{model_name=\"m\",position=\"2\"} 2\n",
        "vllm:request_success_total{model_name=\"m\",finished_reason=\"stop\"} 1\n",
        "volley:http_requests_total{model_name=\"m\",endpoint=\"/v1/completions\",status=\"200\"} "
        "1\n",
        "volley:ready{model_name=\"m\"} 1\n", "vllm:kv_cache_usage_perc{model_name=\"m\"} 0\n"}) {
    EXPECT_THAT(text, HasSubstr(row));
  }
}

TEST(HttpLimits, AreValidated) {
  EXPECT_TRUE(HttpLimits{}.validate());
  EXPECT_FALSE(HttpLimits{.max_connections = 0}.validate());
  EXPECT_FALSE(HttpLimits{.read_timeout_s = 0}.validate());
}

}  // namespace
}  // namespace volley::server
