#include "app/serve_options.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <iterator>
#define TOML_EXCEPTIONS 0
#include <toml++/toml.h>

#include "base/file.h"

namespace volley {
namespace {

using Values = std::vector<std::string>;
using Apply = std::function<Status(ServeOptions&, const Values&)>;

// One setting: its flags ("--max-num-seqs", "-np"), of which the first gives the names in the
// environment (VOLLEY_MAX_NUM_SEQS) and in the file (max_num_seqs).
struct Setting {
  std::string_view group;
  std::vector<std::string> flags;
  std::string_view value;  // what stands for it in the help; empty: a switch
  std::string_view help;
  Apply apply;
  bool repeats = false;

  std::string key() const {
    std::string name = flags.front().substr(flags.front().find_first_not_of('-'));
    std::replace(name.begin(), name.end(), '-', '_');
    return name;
  }
  std::string variable() const {
    std::string name = "VOLLEY_" + key();
    std::transform(name.begin(), name.end(), name.begin(),
                   [](unsigned char c) { return static_cast<char>(std::toupper(c)); });
    return name;
  }
};

template <class T>
Result<T> parse_number(const std::string& text, T low, T high) {
  T value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error == std::errc() && end == text.data() + text.size() && value >= low && value <= high) {
    return value;
  }
  return invalid("expected a number from {} to {}, got '{}'", low, high, text);
}

Result<bool> parse_bool(const std::string& text) {
  if (text == "1" || text == "true" || text == "yes" || text == "on") return true;
  if (text == "0" || text == "false" || text == "no" || text == "off") return false;
  return invalid("expected true or false, got '{}'", text);
}

template <class T>
Apply number(T ServeOptions::*member, T low, T high) {
  return [=](ServeOptions& o, const Values& values) -> Status {
    VOLLEY_TRY(o.*member, parse_number<T>(values.back(), low, high));
    return {};
  };
}
template <class Part, class T>
Apply number(Part ServeOptions::*part, T Part::*member, T low, T high) {
  return [=](ServeOptions& o, const Values& values) -> Status {
    VOLLEY_TRY((o.*part).*member, parse_number<T>(values.back(), low, high));
    return {};
  };
}
Apply text(std::string ServeOptions::*member) {
  return [=](ServeOptions& o, const Values& values) -> Status {
    o.*member = values.back();
    return {};
  };
}
Apply text(std::string ModelOptions::*member) {
  return [=](ServeOptions& o, const Values& values) -> Status {
    o.model.*member = values.back();
    return {};
  };
}
Apply list(std::vector<std::string> ServeOptions::*member) {
  return [=](ServeOptions& o, const Values& values) -> Status {
    o.*member = values;
    return {};
  };
}
template <class Set>
Apply choice(std::vector<std::string> choices, Set set) {
  return [choices = std::move(choices), set](ServeOptions& o, const Values& values) -> Status {
    const auto found = std::find(choices.begin(), choices.end(), values.back());
    if (found == choices.end()) {
      return invalid("expected one of {}, got '{}'", fmt::join(choices, ", "), values.back());
    }
    set(o, static_cast<int>(found - choices.begin()));
    return {};
  };
}
template <class Set>
Apply on_off(Set set) {
  return [set](ServeOptions& o, const Values& values) -> Status {
    VOLLEY_TRY(const bool on, parse_bool(values.back()));
    set(o, on);
    return {};
  };
}

// SGLang counts the anchor among the draft tokens, vLLM and llama.cpp do not.
Apply draft_length(int not_drafted) {
  return [=](ServeOptions& o, const Values& values) -> Status {
    std::string length = values.back();
    if (not_drafted > 0) {
      VOLLEY_TRY(const int total, parse_number<int>(length, not_drafted, 1024));
      length = std::to_string(total - not_drafted);
    }
    VOLLEY_TRY(o.model.draft_length, DraftLengthChoice::parse(length));
    return {};
  };
}

// Other programs' ways to say "DFlash", which is all there is.
Apply only_dflash(std::vector<std::string> spellings) {
  return [spellings = std::move(spellings)](ServeOptions&, const Values& values) -> Status {
    if (std::find(spellings.begin(), spellings.end(), values.back()) != spellings.end()) return {};
    return make_error(ErrorKind::kUnsupported, "'{}' is not supported, {} is", values.back(),
                      spellings.front());
  };
}

std::vector<Setting> model_settings() {
  const std::string_view group = "Models";
  return {
      {group,
       {"--model", "-m", "--target", "--model-path"},
       "DIR|ID",
       "the target: a model folder, or a hub id, which is downloaded (also first argument)",
       text(&ModelOptions::target)},
      {group,
       {"--draft", "-md", "--model-draft", "--draft-model", "--speculative-draft-model-path"},
       "DIR|ID",
       "its DFlash drafter; without one, plain decoding",
       text(&ModelOptions::draft)},
      {group,
       {"--speculative-config"},
       "JSON",
       R"(the drafter in vLLM's form: {"method":"dflash","model":DIR,"num_speculative_tokens":N})",
       [](ServeOptions& o, const Values& values) {
         return apply_speculative_config(values.back(), o.model);
       }},
      {group,
       {"--draft-length", "--num-speculative-tokens", "--spec-draft-n-max"},
       "N|auto|full",
       "tokens drafted a cycle; auto drafts what pays at present [auto]",
       draft_length(0)},
      {group,
       {"--speculative-num-draft-tokens", "--speculative-dflash-block-size"},
       "N",
       "the same as SGLang counts it, the anchor included",
       draft_length(1)},
      {group,
       {"--speculative-algorithm"},
       "NAME",
       "DFLASH, as SGLang has it",
       only_dflash({"DFLASH"})},
      {group,
       {"--spec-type"},
       "NAME",
       "draft-dflash, as llama.cpp has it",
       only_dflash({"draft-dflash"})},
      {group,
       {"--draft-sampling"},
       "NAME",
       "at temperature > 0: coupled or argmax; changes speed alone [coupled]",
       choice(
           {"coupled", "argmax"},
           [](ServeOptions& o, int i) { o.model.draft_sampling = static_cast<DraftSampling>(i); })},
      {group,
       {"--served-model-name", "--alias", "-a"},
       "NAME",
       "what clients call it; may be repeated [the folder's name]",
       list(&ServeOptions::served_names),
       true},
      {group,
       {"--revision"},
       "REV",
       "branch, tag or commit of a target that is a hub id [main]",
       text(&ModelOptions::revision)},
      {group,
       {"--draft-revision"},
       "REV",
       "that of the drafter [main]",
       text(&ModelOptions::draft_revision)},
      {group,
       {"--hub-cache", "--download-dir"},
       "DIR",
       "the Hugging Face cache [HF_HUB_CACHE, HF_HOME/hub or ~/.cache/huggingface/hub]",
       text(&ModelOptions::hub_cache)},
      {group,
       {"--reasoning-parser"},
       "NAME",
       "auto: <think> parts become reasoning_content if the tokenizer has that tag; none [auto]",
       choice({"auto", "none"},
              [](ServeOptions& o, int i) { o.reasoning_parser = i == 0 ? "auto" : "none"; })},
  };
}

std::vector<Setting> engine_settings() {
  const std::string_view group = "Engine";
  constexpr auto kEngine = &ServeOptions::engine;
  return {
      {group,
       {"--max-num-seqs", "-np", "--parallel", "--max-running-requests"},
       "N",
       "requests computed at the same time [16]",
       number(kEngine, &EngineConfig::max_num_seqs, 1, 1024)},
      {group,
       {"--max-model-len", "-c", "--ctx-size", "--context-length"},
       "N",
       "positions of a request [the checkpoint's, at most 8192]",
       number(kEngine, &EngineConfig::max_model_len, 0, 1 << 24)},
      {group,
       {"--max-queued", "--max-queued-requests"},
       "N",
       "requests that may wait; more get 429 [256]",
       number(kEngine, &EngineConfig::max_queued, 0, 1 << 16)},
      {group,
       {"--kv-positions", "--max-total-tokens"},
       "N",
       "positions that all KV pages hold [32768, or one request's if that is more]",
       number<EngineConfig, int64_t>(kEngine, &EngineConfig::kv_positions, 0, int64_t{1} << 32)},
      {group,
       {"--page-size", "--block-size"},
       "N",
       "positions a KV page, a multiple of 32 [64]",
       number(kEngine, &EngineConfig::page_size, 32, 4096)},
      {group,
       {"--prefill-chunk", "--chunked-prefill-size"},
       "N",
       "prompt tokens a step [256]",
       number(kEngine, &EngineConfig::prefill_chunk, 1, 1 << 14)},
      {group,
       {"--prefix-caching", "--enable-prefix-caching"},
       "BOOL",
       "share KV pages between equal prefixes [true]",
       on_off([](ServeOptions& o, bool on) { o.engine.prefix_caching = on; })},
      {group,
       {"--threads", "-t"},
       "N",
       "threads [the physical cores this process may use]",
       [](ServeOptions& o, const Values& values) -> Status {
         VOLLEY_TRY(o.model.num_threads, parse_number(values.back(), 0, 1024));
         return {};
       }},
      {group,
       {"--isa"},
       "NAME",
       "CPU unit: auto, avx2, avx512 or amx [auto]",
       text(&ModelOptions::isa)},
      {group,
       {"--backend"},
       "NAME",
       "cpu, or ref: the slow oracle [cpu]",
       text(&ModelOptions::backend)},
      {group,
       {"--weight-format"},
       "NAME",
       "how the CPU holds weights: bf16, fp8, int8, int4, or auto: as stored where that is fp8, "
       "bf16 otherwise [auto]",
       text(&ModelOptions::weight_format)},
      {group,
       {"--pack-cache"},
       "DIR|off",
       "where quantised weights are kept for the next start, or off [VOLLEY_CACHE/packed, "
       "XDG_CACHE_HOME/volley/packed or ~/.cache/volley/packed]",
       text(&ModelOptions::pack_cache)},
      {group,
       {"--pack-cache-gib"},
       "N",
       "how large that may grow; what was not used for longest goes first [32]",
       number(&ServeOptions::model, &ModelOptions::pack_cache_gib, 1, 1 << 20)},
  };
}

std::vector<Setting> server_settings() {
  const std::string_view group = "Server";
  constexpr auto kHttp = &ServeOptions::http;
  constexpr auto kApi = &ServeOptions::api;
  return {
      {group,
       {"--host"},
       "IP",
       "address to listen on; 0.0.0.0 is everywhere [127.0.0.1]",
       text(&ServeOptions::host)},
      {group,
       {"--port"},
       "N",
       "port, 0 takes a free one [8080]",
       number(&ServeOptions::port, 0, 65535)},
      {group,
       {"--api-key"},
       "KEY",
       "clients must present it; may be repeated. Prefer the file or the environment: flags show "
       "in "
       "process lists",
       list(&ServeOptions::api_keys),
       true},
      {group, {"--api-key-file"}, "FILE", "keys, one a line", text(&ServeOptions::api_key_file)},
      {group,
       {"--cors-origin", "--allowed-origins"},
       "ORIGIN",
       "pages of this origin may call from a browser, * for all; may be repeated [none]",
       list(&ServeOptions::cors_origins),
       true},
      {group,
       {"--allowed-host"},
       "NAME",
       "listening on the loopback without keys, requests may call the server by this name as well "
       "as "
       "localhost; may be repeated [none]",
       list(&ServeOptions::allowed_hosts),
       true},
      {group,
       {"--max-connections"},
       "N",
       "open connections [4096]",
       number(kHttp, &server::HttpLimits::max_connections, 1, 1 << 20)},
      {group,
       {"--max-body-bytes"},
       "N",
       "of a request [4194304]",
       number<server::HttpLimits, int64_t>(kHttp, &server::HttpLimits::max_body_bytes, 1 << 10,
                                           1 << 30)},
      {group,
       {"--max-header-bytes"},
       "N",
       "of a request [16384]",
       number(kHttp, &server::HttpLimits::max_header_bytes, 1 << 10, 1 << 20)},
      {group,
       {"--max-outbound-bytes"},
       "N",
       "a stream's client that leaves more unread is dropped [262144]",
       number(kHttp, &server::HttpLimits::max_outbound_bytes, 1 << 12, 1 << 30)},
      {group,
       {"--idle-timeout"},
       "SECONDS",
       "between two requests of a connection [75]",
       number(kHttp, &server::HttpLimits::idle_timeout_s, 0.1, 86400.0)},
      {group,
       {"--read-timeout"},
       "SECONDS",
       "for a request to arrive [30]",
       number(kHttp, &server::HttpLimits::read_timeout_s, 0.1, 86400.0)},
      {group,
       {"--write-timeout"},
       "SECONDS",
       "for a client to take what was sent [30]",
       number(kHttp, &server::HttpLimits::write_timeout_s, 0.1, 86400.0)},
      {group,
       {"--max-n"},
       "N",
       "answers a prompt [16]",
       number(kApi, &server::ApiLimits::max_n, 1, 1024)},
      {group,
       {"--drain-timeout"},
       "SECONDS",
       "after SIGTERM, for requests in flight [30]",
       number(&ServeOptions::drain_timeout_s, 0.0, 86400.0)},
      {group,
       {"--per-request-spec-decode-metrics"},
       "NAME",
       "none, summary or detailed, for requests that do not say [none]",
       choice(
           {"none", "summary", "detailed"},
           [](ServeOptions& o, int i) { o.spec_metrics = static_cast<server::SpecMetrics>(i); })},
      {group,
       {"--log-format"},
       "NAME",
       "text or json [text]",
       choice({"text", "json"}, [](ServeOptions& o, int i) { o.log_json = i == 1; })},
      {group,
       {"--log-requests"},
       "BOOL",
       "a line for every request [true]",
       on_off([](ServeOptions& o, bool on) { o.log_requests = on; })},
      {group,
       {"--log-level"},
       "NAME",
       "debug, info, warning, error or off [info]",
       choice({"debug", "info", "warning", "error", "off"},
              [](ServeOptions& o, int i) { o.log_level = static_cast<LogLevel>(i); })},
  };
}

std::vector<Setting> all_settings() {
  std::vector<Setting> settings = model_settings();
  for (auto part : {engine_settings(), server_settings()}) {
    settings.insert(settings.end(), std::make_move_iterator(part.begin()),
                    std::make_move_iterator(part.end()));
  }
  return settings;
}

std::string help_text(const std::vector<Setting>& settings) {
  std::string text =
      "Usage: volley serve TARGET [--draft DRAFTER] [options]\n\n"
      "An OpenAI-compatible server with continuous batching: the page at /, the API at /v1.\n"
      "Settings come from a TOML file (--config FILE), the environment (VOLLEY_MAX_NUM_SEQS for\n"
      "--max-num-seqs, and so on) and flags; each wins over the one before it.\n";
  std::string_view group;
  for (const Setting& setting : settings) {
    if (setting.group != group) {
      group = setting.group;
      text += fmt::format("\n{}:\n", group);
    }
    std::string left = fmt::format("  {} {}", setting.flags.front(), setting.value);
    for (size_t i = 1; i < setting.flags.size(); ++i) {
      left += (i == 1 ? "  (also " : ", ") + setting.flags[i];
    }
    if (setting.flags.size() > 1) left += ")";
    text += fmt::format("{}\n        {}\n", left, setting.help);
  }
  return text +
         "\nExamples:\n"
         "  volley serve models/demo-target --draft models/demo-draft\n"
         "  volley serve Qwen/Qwen3-4B --speculative-config "
         R"('{"method":"dflash","model":"z-lab/Qwen3-4B-DFlash-b16","num_speculative_tokens":15}')"
         "\n  VOLLEY_API_KEY=secret volley serve DIR --host 0.0.0.0\n";
}

struct Given {
  Values values;
  std::string where;
};

Result<Values> toml_values(const toml::node& node, const std::string& where) {
  const auto scalar = [](const toml::node& one) -> std::optional<std::string> {
    if (const auto text = one.value_exact<std::string>()) return *text;
    if (const auto flag = one.value_exact<bool>()) return *flag ? "true" : "false";
    if (const auto whole = one.value_exact<int64_t>()) return std::to_string(*whole);
    if (const auto real = one.value_exact<double>()) return fmt::format("{}", *real);
    return std::nullopt;
  };
  Values values;
  if (const toml::array* items = node.as_array()) {
    for (const toml::node& item : *items) {
      const auto value = scalar(item);
      if (!value) return invalid("{}: expected texts or numbers", where);
      values.push_back(*value);
    }
    return values;
  }
  const auto value = scalar(node);
  if (!value) return invalid("{}: expected a text, a number, true or false, or a list", where);
  values.push_back(*value);
  return values;
}

Status read_config_file(const std::string& path, const std::vector<Setting>& settings,
                        std::vector<Given>& given) {
  VOLLEY_TRY(const std::string content, read_file(path, 1 << 20));
  const toml::parse_result parsed = toml::parse(content, path);
  if (!parsed) {
    return invalid("{}: line {}: {}", path, parsed.error().source().begin.line,
                   parsed.error().description());
  }
  for (const auto& [key, node] : parsed.table()) {
    const std::string name(key.str());
    const std::string where = fmt::format("{}: {}", path, name);
    const auto setting = std::find_if(settings.begin(), settings.end(),
                                      [&](const Setting& each) { return each.key() == name; });
    if (setting == settings.end()) return invalid("{}: there is no such setting", where);
    VOLLEY_TRY(Values values, toml_values(node, where));
    if (values.empty()) continue;
    if (values.size() > 1 && !setting->repeats) return invalid("{}: expected one value", where);
    given[setting - settings.begin()] = {std::move(values), where};
  }
  return {};
}

struct Flags {
  std::vector<Given> given;
  std::string config_file;
  bool help = false;
};

Result<Flags> read_flags(const std::vector<std::string>& arguments,
                         const std::vector<Setting>& settings) {
  Flags flags;
  flags.given.resize(settings.size());
  for (size_t i = 0; i < arguments.size(); ++i) {
    std::string name = arguments[i];
    if (name == "--help" || name == "-h") {
      flags.help = true;
      return flags;
    }
    std::optional<std::string> value;
    if (const size_t equals = name.find('='); name.starts_with("--") && equals != name.npos) {
      value = name.substr(equals + 1);
      name.resize(equals);
    }
    if (!name.starts_with('-')) {
      if (!flags.given[0].values.empty()) {
        return invalid("'{}': the target is named already: {}", name, flags.given[0].values[0]);
      }
      flags.given[0] = {{name}, "TARGET"};
      continue;
    }
    const bool negated = name.starts_with("--no-");
    if (negated) name = "--" + name.substr(5);
    const auto setting = std::find_if(settings.begin(), settings.end(), [&](const Setting& each) {
      return std::find(each.flags.begin(), each.flags.end(), name) != each.flags.end();
    });
    const bool is_config = name == "--config";
    if (!is_config && setting == settings.end()) {
      return invalid("there is no option {}; see volley serve --help", name);
    }
    const bool is_bool = !is_config && setting->value == "BOOL";
    if (negated && !is_bool) return invalid("there is no option --no-{}", name.substr(2));
    const bool bare = i + 1 == arguments.size() || arguments[i + 1].starts_with("--");
    if (!value && negated) value = "false";
    if (!value && is_bool && (bare || !parse_bool(arguments[i + 1]))) value = "true";
    if (!value) {
      if (i + 1 == arguments.size()) return invalid("{}: a value is missing", name);
      value = arguments[++i];
    }
    if (is_config) {
      flags.config_file = *value;
      continue;
    }
    Given& given = flags.given[setting - settings.begin()];
    if (!setting->repeats) given.values.clear();
    given.values.push_back(*value);
    given.where = name;
  }
  return flags;
}

Status check_whole(const ServeOptions& options) {
  if (options.model.target.empty()) {
    return invalid("no model: volley serve TARGET, a folder or a hub id");
  }
  VOLLEY_TRY_STATUS(options.http.validate());
  return {};
}

}  // namespace

Result<ServeOptions> parse_serve_options(const std::vector<std::string>& arguments,
                                         const Environment& environment) {
  const std::vector<Setting> settings = all_settings();
  VOLLEY_TRY(Flags flags, read_flags(arguments, settings));
  ServeOptions options;
  if (flags.help) {
    options.help = help_text(settings);
    return options;
  }
  std::vector<Given> given(settings.size());
  if (flags.config_file.empty()) {
    if (const char* path = environment("VOLLEY_CONFIG")) flags.config_file = path;
  }
  if (!flags.config_file.empty()) {
    VOLLEY_TRY_STATUS(read_config_file(flags.config_file, settings, given));
  }
  for (size_t i = 0; i < settings.size(); ++i) {
    const std::string variable = settings[i].variable();
    if (const char* value = environment(variable.c_str())) given[i] = {{value}, variable};
    if (!flags.given[i].values.empty()) given[i] = std::move(flags.given[i]);
  }
  for (size_t i = 0; i < settings.size(); ++i) {
    if (given[i].values.empty()) continue;
    if (const Status status = settings[i].apply(options, given[i].values); !status) {
      return make_error(status.error().kind, "{}: {}", given[i].where, status.error().message);
    }
  }
  VOLLEY_TRY_STATUS(check_whole(options));
  return options;
}

}  // namespace volley
