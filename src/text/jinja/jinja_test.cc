#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <string>
#include <thread>

#include "base/file.h"
#include "text/jinja/template.h"

namespace volley::jinja {
namespace {

using testing::HasSubstr;

std::tm golden_time() {
  std::tm time = {};
  time.tm_year = 126;
  time.tm_mon = 6;
  time.tm_mday = 26;
  time.tm_hour = 12;
  time.tm_isdst = -1;
  std::mktime(&time);
  return time;
}

Result<std::string> render(std::string_view source, const Json& context = Json::object(),
                           const JinjaLimits& limits = {}) {
  const auto parsed = Template::parse(source, "t", limits);
  if (!parsed) return tl::unexpected<Error>(parsed.error());
  return parsed->render(context, golden_time);
}

std::string text_of(std::string_view source, const Json& context = Json::object()) {
  const auto text = render(source, context);
  return text ? *text : "ERROR " + text.error().message;
}

std::string error_of(std::string_view source, const JinjaLimits& limits = {}) {
  const auto text = render(source, Json::object(), limits);
  return text ? "NO ERROR: " + text->substr(0, 100) : text.error().message;
}

// What jinja2 3.1.2 makes of some six hundred snippets: tools/make_jinja_goldens.py.
TEST(Jinja, FeaturesEqualJinja2) {
  const Json context = *parse_json(*read_file("tests/data/jinja/context.json"), "context.json");
  std::ifstream lines("tests/data/jinja/features.jsonl");
  int num_snippets = 0;
  for (std::string line; std::getline(lines, line); ++num_snippets) {
    const Json golden = *parse_json(line, "features.jsonl");
    const auto source = golden["template"].get<std::string>();
    const auto text = render(source, context);
    if (golden.contains("expected")) {
      const auto expected = golden["expected"].get<std::string>();
      EXPECT_TRUE(text && *text == expected)
          << source << "\nwants: " << expected
          << "\ngot:   " << (text ? *text : text.error().message);
    } else {
      // The wording is Python's and changes with its version: its kind must be the same.
      const auto error = golden["error"].get<std::string>();
      const auto type = error.substr(0, error.find(':') + 1);
      EXPECT_TRUE(!text && text.error().message.find(type) != std::string::npos)
          << source << "\nwants: " << error << "\ngot:   " << (text ? *text : text.error().message);
    }
  }
  EXPECT_GT(num_snippets, 600);
}

TEST(Jinja, ErrorsNameTheLine) {
  EXPECT_EQ(error_of("a\n{{ x.y }}"), "t: line 2: UndefinedError: 'x' is undefined");
  EXPECT_EQ(error_of("a\n\n{% if %}"),
            "t: line 3: TemplateSyntaxError: Expected an expression, got 'end of statement block'");
  EXPECT_THAT(error_of("{% macro m() %}\n{{ 1 / 0 }}{% endmacro %}\n\n{{ m() }}"),
              HasSubstr("line 2: ZeroDivisionError"));
  EXPECT_THAT(error_of("{% for x in [1] %}\n{{ raise_exception('stop') }}{% endfor %}"),
              HasSubstr("line 2: TemplateError: stop"));
}

TEST(Jinja, OtherTemplatesAreOutOfReach) {
  for (const char* source : {"{% include 'x' %}", "{% import 'x' as y %}",
                             "{% from 'x' import y %}", "{% extends 'x' %}"}) {
    const auto parsed = Template::parse(source);
    ASSERT_FALSE(parsed) << source;
    EXPECT_EQ(parsed.error().kind, ErrorKind::kUnsupported) << source;
  }
}

TEST(Jinja, TheSandboxHidesPythonsInternals) {
  for (const char* source :
       {"{{ ''.__class__.__mro__ }}", "{{ x['__class__']['__init__'] }}",
        "{{ ''|attr('__class__')|attr('__mro__') }}", "{{ '{0.__class__.__init__}'.format(1) }}",
        "{{ range.__globals__.x }}", "{% set l = [1] %}{{ l.append(2) }}",
        "{% set d = {} %}{{ d.update({}) }}", "{{ self.__init__ }}", "{{ cycler.__init__.x }}"}) {
    const auto text = render(source, {{"x", 1}});
    EXPECT_FALSE(text && !text->empty()) << source << " gave " << (text ? *text : "");
  }
}

TEST(Jinja, LimitsAreClearErrors) {
  const JinjaLimits small = {.max_steps = 100'000, .max_memory_bytes = 4 << 20};
  const char* const sources[] = {
      "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
      "{{ 'x' * 999999999999 }}",
      "{{ [0] * 999999999999 }}",
      "{{ 'x'.center(999999999999) }}",
      "{{ '%999999999d' % 1 }}",
      "{{ '%.999999999f' % 1 }}",
      "{{ '{:>999999999}'.format(1) }}",
      "{{ 'x'|indent(999999999, true) }}",
      "{{ [1]|batch(999999999, 0)|list }}",
      "{{ []|slice(999999999)|list }}",
      "{{ '\t'.expandtabs(999999999) }}",
      "{{ '1'.zfill(999999999) }}",
      "{{ [1]|tojson(indent='"
      "x"
      "' * 99999999) }}",
      "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
      "{% macro m(x) %}{{ m(x) ~ m(x) }}{% endmacro %}{{ m(1) }}",
      "{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}"
      "{% endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(999) %}{% set ns.l = [ns.l] %}{% endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(99) %}{% set ns.l = ns.l + ns.l %}"
      "{% endfor %}",
      "{% set ns = namespace(l=[1]) %}{% for i in range(999) %}{% set ns.l = ns.l|map('int') %}"
      "{% endfor %}{{ ns.l|list }}",
      "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(90) %}{% set ns.a = [ns.a, ns.a] %}"
      "{% set ns.b = [ns.b, ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
      "{% set ns = namespace(a=(1,)) %}{% for i in range(90) %}{% set ns.a = (ns.a, ns.a) %}"
      "{% endfor %}{{ {ns.a: 1} }}",
      "{% for x in range(99999) %}{{ 'abcdefghijklmnopqrstuvwxyz' * 10000 }}{% endfor %}",
      "{{ (1, 2, 3)|sum(start=9223372036854775807) }}",
      "{{ 10 ** 100 }}",
      "{{ 9223372036854775807 + 1 }}",
      "{{ 99999999999999999999 }}",
      "{{ range(9223372036854775807) }}",
      "{{ range(99999999) }}",
  };
  for (const char* source : sources) {
    const auto text = render(source, Json::object(), small);
    ASSERT_FALSE(text) << source << "\ngave " << text->substr(0, 80);
    EXPECT_GT(text.error().message.size(), 20u) << source;
  }
}

TEST(Jinja, DeepSourceIsAClearError) {
  const auto repeated = [](std::string_view piece, int times) {
    std::string out;
    for (int i = 0; i < times; ++i) out += piece;
    return out;
  };
  const int deep = 50'000;
  EXPECT_THAT(error_of("{{ " + repeated("(", deep)), HasSubstr("nested deeper"));
  EXPECT_THAT(error_of("{{ " + repeated("[", deep)), HasSubstr("nested deeper"));
  EXPECT_THAT(error_of("{{ " + repeated("not ", deep)), HasSubstr("nested deeper"));
  EXPECT_THAT(error_of("{{ " + repeated("-", deep) + "1 }}"), HasSubstr("nested deeper"));
  EXPECT_THAT(error_of("{{ 1" + repeated("+1", deep) + " }}"), HasSubstr("nested deeper"));
  EXPECT_THAT(error_of("{{ x" + repeated(".a", deep) + " }}"), HasSubstr("nested deeper"));
  EXPECT_THAT(error_of("{{ x" + repeated("|e", deep) + " }}"), HasSubstr("nested deeper"));
  EXPECT_THAT(error_of("{{ 1" + repeated(" if 1 else 1", deep) + " }}"),
              HasSubstr("nested deeper"));
  EXPECT_THAT(error_of(repeated("{% if 1 %}", deep)), HasSubstr("nested deeper"));
  EXPECT_EQ(text_of("{{ 1" + repeated("+1", 300) + " }}"), "301");
  EXPECT_THAT(error_of(std::string(2 << 20, 'x')), HasSubstr("bytes of template"));
}

TEST(Jinja, CyclesOfNamespaces) {
  EXPECT_EQ(
      text_of("{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = [b] %}{{ a }}"),
      "<Namespace {'b': [<Namespace {'a': <Namespace {...}>}>]}>");
  EXPECT_THAT(error_of("{% set ns = namespace() %}{% for i in range(1000) %}"
                       "{% set ns.last = namespace(next=ns.last) %}{% endfor %}{{ ns }}"),
              HasSubstr("RecursionError"));
  EXPECT_EQ(text_of("{% set ns = namespace() %}{% macro m() %}{{ caller() }}{% endmacro %}"
                    "{% set ns.m = m %}{% set ns.ns = ns %}{% call m() %}x{% endcall %}"),
            "x");
}

TEST(Jinja, LongFlatTemplatesAreFine) {
  std::string chain = "{% if n == 0 %}0";
  for (int i = 1; i < 2000; ++i) chain += fmt::format("{{% elif n == {} %}}{}", i, i);
  EXPECT_EQ(text_of(chain + "{% endif %}", {{"n", 1999}}), "1999");
}

TEST(Jinja, BadBytes) {
  EXPECT_THAT(error_of("abc\xff"), HasSubstr("not valid UTF-8"));
  EXPECT_EQ(text_of("{{ s }}{{ s|length }}", {{"s", "a\xff"}}),
            "a\xef\xbf\xbd"
            "2");
  EXPECT_FALSE(Template::parse("x")->render(Json::array()));
}

TEST(Jinja, NumbersOfJson) {
  const Json context = *parse_json(R"({"i": -5, "u": 18446744073709551615, "f": 0.1})", "context");
  EXPECT_EQ(text_of("{{ i }} {{ u }} {{ f }}", context), "-5 1.8446744073709552e+19 0.1");
}

TEST(Jinja, OneTemplateManyThreads) {
  const auto parsed = Template::parse(
      "{% macro m(x) %}{{ 'a' ~ x }}{% endmacro %}{% for i in range(100) %}{{ m(i) ~ 'const' }}"
      "{% endfor %}");
  ASSERT_TRUE(parsed);
  const std::string expected = *parsed->render(Json::object());
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 20; ++round) {
        EXPECT_EQ(parsed->render(Json::object()).value_or(""), expected);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace
}  // namespace volley::jinja
