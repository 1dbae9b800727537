#include "server/parse_params.h"

#include <charconv>
#include <limits>

namespace volley::server {
namespace {

void read_sampling(Fields& fields, const ApiLimits& limits, const SamplingDefaults& defaults,
                   GenerationParams& params) {
  SamplingParams& s = params.sampling;
  const auto real = [&](const char* name, double low, double high, float otherwise) {
    return static_cast<float>(fields.number(name, low, high).value_or(otherwise));
  };
  s.temperature = real("temperature", 0, 100, defaults.temperature);
  s.top_p = real("top_p", 0, 1, defaults.top_p);
  if (s.top_p == 0) s.top_p = std::numeric_limits<float>::min();  // the most likely token alone
  s.min_p = real("min_p", 0, 1, defaults.min_p);
  s.presence_penalty = real("presence_penalty", -2, 2, 0);
  s.frequency_penalty = real("frequency_penalty", -2, 2, 0);
  s.repetition_penalty = real("repetition_penalty", 0.01, 100, defaults.repetition_penalty);
  // vLLM and SGLang say -1 for "all".
  const auto top_k = fields.integer("top_k", -1, std::numeric_limits<int32_t>::max());
  s.top_k = std::max<int32_t>(0, static_cast<int32_t>(top_k.value_or(defaults.top_k)));
  if (const auto seed = fields.integer("seed", std::numeric_limits<int64_t>::min(),
                                       std::numeric_limits<int64_t>::max())) {
    s.seed = static_cast<uint64_t>(*seed);
    params.has_seed = true;
  }
  const Json* bias = fields.object("logit_bias");
  if (bias == nullptr) return;
  if (bias->size() > static_cast<size_t>(limits.max_logit_bias)) {
    return fields.fail("logit_bias", "{} entries, at most {} are accepted", bias->size(),
                       limits.max_logit_bias);
  }
  for (const auto& [key, value] : bias->items()) {
    int32_t id = -1;
    const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
    if (error != std::errc() || end != key.data() + key.size() || id < 0 || !value.is_number() ||
        !(value.get<double>() >= -100 && value.get<double>() <= 100)) {
      return fields.fail("logit_bias",
                         "expected token ids with numbers from -100 to 100, got "
                         "\"{}\": {}",
                         key.substr(0, 40), excerpt(value));
    }
    s.logit_bias.emplace_back(id, value.get<float>());
  }
}

void read_stop(Fields& fields, const ApiLimits& limits, GenerationParams& params) {
  params.stop = fields.strings("stop", limits.max_stop_strings, limits.max_stop_bytes)
                    .value_or(std::vector<std::string>{});
  for (const std::string& text : params.stop) {
    if (text.empty()) fields.fail("stop", "an empty string would end every answer at once");
  }
  params.stop_token_ids =
      fields.token_ids("stop_token_ids", limits.max_stop_ids).value_or(std::vector<int32_t>{});
  params.ignore_eos = fields.boolean("ignore_eos").value_or(false);
}

// 0 turns drafting off for this request; "auto" lets the measured cost decide.
void read_draft(Fields& fields, GenerationParams& params) {
  const Json* value = fields.find("num_speculative_tokens");
  if (value != nullptr && *value == "auto") {
    params.draft = DraftPolicy{};
  } else if (const auto length = fields.integer("num_speculative_tokens", 0, kMaxDraftLength)) {
    params.draft =
        *length == 0 ? DraftPolicy::off() : DraftPolicy::fixed(static_cast<int>(*length));
  }
  const auto metrics = fields.string("spec_decode_metrics", 16);
  if (!metrics) return;
  if (*metrics == "none") {
    params.spec_metrics = SpecMetrics::kNone;
  } else if (*metrics == "summary") {
    params.spec_metrics = SpecMetrics::kSummary;
  } else if (*metrics == "detailed") {
    params.spec_metrics = SpecMetrics::kDetailed;
  } else {
    fields.fail("spec_decode_metrics", "expected none, summary or detailed, got \"{}\"", *metrics);
  }
}

// FNV-1a; never 0, which is "no salt". Who does not know a salt cannot look for one that collides.
uint64_t salt_of(std::string_view text) {
  uint64_t hash = 0xcbf29ce484222325u;
  for (const char c : text) hash = (hash ^ static_cast<unsigned char>(c)) * 0x100000001b3u;
  return hash == 0 ? 1 : hash;
}

void set_constraint(Fields& fields, std::string_view name, Constraint constraint,
                    GenerationParams& params) {
  if (params.constraint.kind != Constraint::Kind::kNone) {
    return fields.fail(name, "the request constrains its answer twice");
  }
  params.constraint = std::move(constraint);
}

void read_response_format(Fields& fields, const ApiLimits& limits, GenerationParams& params) {
  const Json* format = fields.object("response_format");
  if (format == nullptr) return;
  Fields inner(*format, "response_format.");
  const std::string type = inner.string("type", 64).value_or("");
  if (type == "json_object") {
    set_constraint(fields, "response_format", {.kind = Constraint::Kind::kJsonObject}, params);
  } else if (type == "json_schema") {
    const Json* named = inner.object("json_schema");
    const Json* schema = named != nullptr ? Fields(*named).find("schema") : nullptr;
    if (schema == nullptr) {
      inner.fail("json_schema.schema", "is required");
    } else {
      check_schema(inner, "json_schema.schema", *schema, limits);
      set_constraint(fields, "response_format",
                     {.kind = Constraint::Kind::kJsonSchema, .schema = *schema}, params);
    }
  } else if (type != "text") {
    inner.fail("type", "expected text, json_object or json_schema, got \"{}\"", type);
  }
  if (inner.error()) fields.fail(*inner.error());
}

// vLLM's structured_outputs: {"json" | "regex" | "choice" | "grammar": ...}.
void read_structured_outputs(Fields& fields, const ApiLimits& limits, GenerationParams& params) {
  const Json* outer = fields.object("structured_outputs");
  if (outer == nullptr) return;
  Fields inner(*outer, "structured_outputs.");
  if (const Json* given = inner.find("json")) {
    Json schema = *given;
    if (schema.is_string()) {  // a schema may come as text
      auto parsed =
          parse_json(schema.get_ref<const std::string&>(), "structured_outputs.json",
                     {.max_bytes = limits.max_schema_bytes, .max_depth = limits.max_schema_depth});
      if (!parsed) return fields.fail(api_error(parsed.error(), "structured_outputs.json"));
      schema = std::move(*parsed);
    }
    check_schema(inner, "json", schema, limits);
    set_constraint(inner, "json",
                   {.kind = Constraint::Kind::kJsonSchema, .schema = std::move(schema)}, params);
  }
  if (const auto regex = inner.string("regex", limits.max_schema_bytes)) {
    set_constraint(inner, "regex", {.kind = Constraint::Kind::kRegex, .text = *regex}, params);
  }
  if (const auto grammar = inner.string("grammar", limits.max_schema_bytes)) {
    set_constraint(inner, "grammar", {.kind = Constraint::Kind::kGrammar, .text = *grammar},
                   params);
  }
  if (inner.has("choice")) {
    const auto choices = inner.strings("choice", limits.max_choices, limits.max_schema_bytes);
    if (choices && choices->empty()) inner.fail("choice", "expected at least one string");
    set_constraint(inner, "choice",
                   {.kind = Constraint::Kind::kChoice,
                    .choices = choices.value_or(std::vector<std::string>{})},
                   params);
  }
  if (inner.error()) fields.fail(*inner.error());
}

void read_delivery(Fields& fields, GenerationParams& params) {
  params.stream = fields.boolean("stream").value_or(false);
  const Json* options = fields.object("stream_options");
  if (options == nullptr) return;
  if (!params.stream) return fields.fail("stream_options", "only a request with stream may set it");
  Fields inner(*options, "stream_options.");
  params.include_usage = inner.boolean("include_usage").value_or(false);
  if (inner.error()) fields.fail(*inner.error());
}

}  // namespace

void check_schema(Fields& fields, std::string_view name, const Json& schema,
                  const ApiLimits& limits) {
  if (!schema.is_object() && !schema.is_boolean()) {
    return fields.fail(name, "expected a JSON schema, got {}", excerpt(schema));
  }
  if (const int depth = json_depth(schema); depth > limits.max_schema_depth) {
    return fields.fail(name, "nested {} deep, at most {} is accepted", depth,
                       limits.max_schema_depth);
  }
  if (const size_t bytes = dump_json(schema).size(); bytes > limits.max_schema_bytes) {
    return fields.fail(name, "{} bytes, at most {} are accepted", bytes, limits.max_schema_bytes);
  }
}

GenerationParams read_generation_params(Fields& fields, const ApiLimits& limits,
                                        const SamplingDefaults& defaults) {
  GenerationParams params;
  params.n = static_cast<int>(fields.integer("n", 1, limits.max_n).value_or(1));
  if (const auto max_tokens = fields.integer("max_tokens", 1, limits.max_tokens)) {
    params.max_tokens = static_cast<int>(*max_tokens);
  }
  read_sampling(fields, limits, defaults, params);
  read_stop(fields, limits, params);
  read_draft(fields, params);
  read_response_format(fields, limits, params);
  read_structured_outputs(fields, limits, params);
  read_delivery(fields, params);
  params.skip_special_tokens = fields.boolean("skip_special_tokens").value_or(true);
  params.priority = static_cast<int>(fields.integer("priority", -1000, 1000).value_or(0));
  if (const auto salt = fields.string("cache_salt", limits.max_salt_bytes)) {
    params.cache_salt = salt_of(*salt);
  }
  return params;
}

}  // namespace volley::server
