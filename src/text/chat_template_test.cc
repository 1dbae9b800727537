#include "text/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/file.h"
#include "base/temporary_folder.h"

namespace volley {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class ChatTemplateTest : public testing::Test {
 protected:
  void put(const char* name, std::string_view text) {
    ASSERT_TRUE(write_file_atomic(folder_ / name, text));
  }
  std::string rendered(const Json& messages, const ChatTemplateOptions& options = {}) {
    const auto loaded = ChatTemplate::load(folder_);
    if (!loaded) return "ERROR " + loaded.error().message;
    const auto text = loaded->render(messages, options);
    return text ? *text : "ERROR " + text.error().message;
  }

  const Json messages_ = Json::array({{{"role", "user"}, {"content", "Hi"}}});
  const TemporaryFolder temporary_;
  const fs::path& folder_ = temporary_.path();
};

TEST_F(ChatTemplateTest, FileComesBeforeConfig) {
  put("tokenizer_config.json", R"({"chat_template": "config", "bos_token": "<s>"})");
  EXPECT_EQ(rendered(messages_), "config");
  put("chat_template.jinja", "{{ bos_token }}file {{ messages[0].content }}");
  EXPECT_EQ(rendered(messages_), "<s>file Hi");
}

TEST_F(ChatTemplateTest, SpecialTokensAreStringsOrObjects) {
  put("tokenizer_config.json",
      R"({"bos_token": {"content": "<b>", "lstrip": false}, "eos_token": "</e>", "pad_token": null,
          "chat_template": "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}"})");
  EXPECT_EQ(rendered(messages_), "<b></e>False");
}

TEST_F(ChatTemplateTest, NamedTemplates) {
  put("tokenizer_config.json",
      R"({"chat_template": [{"name": "default", "template": "plain {{ tools }}"},
                            {"name": "tool_use", "template": "tools {{ tools|length }}"}]})");
  EXPECT_EQ(rendered(messages_), "plain None");
  ChatTemplateOptions options;
  options.tools = Json::array({{{"type", "function"}}});
  EXPECT_EQ(rendered(messages_, options), "tools 1");
}

TEST_F(ChatTemplateTest, OptionsReachTheTemplate) {
  put("chat_template.jinja",
      "{{ add_generation_prompt }} {{ documents }} {{ enable_thinking }} {{ bos_token }}");
  ChatTemplateOptions options;
  options.add_generation_prompt = false;
  options.documents = Json::array({"d"});
  options.extra = {{"enable_thinking", false}, {"bos_token", "mine"}};
  EXPECT_EQ(rendered(messages_, options), "False ['d'] False mine");
}

TEST_F(ChatTemplateTest, PartsOfContent) {
  put("chat_template.jinja",
      "{% for p in messages[0].content %}{{ p.text if p.type == 'text' else '<img>' }}{% endfor "
      "%}");
  const Json parts = Json::array({{{"type", "text"}, {"text", "look: "}}, {{"type", "image"}}});
  EXPECT_EQ(rendered(Json::array({{{"role", "user"}, {"content", parts}}})), "look: <img>");
}

TEST_F(ChatTemplateTest, TheClockIsInjected) {
  put("chat_template.jinja", "{{ strftime_now('%Y-%m-%d') }}");
  auto loaded = ChatTemplate::load(folder_);
  ASSERT_TRUE(loaded);
  loaded->set_clock([] {
    std::tm time = {};
    time.tm_year = 99;
    time.tm_mday = 2;
    return time;
  });
  EXPECT_EQ(loaded->render(messages_).value_or(""), "1999-01-02");
}

TEST_F(ChatTemplateTest, ErrorsNameFileAndLine) {
  put("chat_template.jinja", "ok\n{% if messages %}");
  EXPECT_THAT(rendered(messages_), HasSubstr("chat_template.jinja: line 2: TemplateSyntaxError"));
  put("chat_template.jinja", "ok\n\n{{ raise_exception('Roles must alternate') }}");
  EXPECT_THAT(rendered(messages_), HasSubstr("line 3: TemplateError: Roles must alternate"));
}

TEST_F(ChatTemplateTest, BadFolders) {
  EXPECT_EQ(ChatTemplate::load(folder_).error().kind, ErrorKind::kNotFound);
  put("tokenizer_config.json", "{}");
  EXPECT_EQ(ChatTemplate::load(folder_).error().kind, ErrorKind::kNotFound);
  for (const char* config : {"[]", "{", R"({"chat_template": 5})", R"({"chat_template": [5]})",
                             R"({"chat_template": [{"name": 1, "template": "x"}]})"}) {
    put("tokenizer_config.json", config);
    const auto loaded = ChatTemplate::load(folder_);
    ASSERT_FALSE(loaded) << config;
    EXPECT_THAT(loaded.error().message, HasSubstr("tokenizer_config.json")) << config;
  }
  put("tokenizer_config.json", R"({"chat_template": [{"name": "a", "template": "x"},
                                                     {"name": "b", "template": "y"}]})");
  EXPECT_THAT(rendered(messages_), HasSubstr("none named `default`"));
}

TEST_F(ChatTemplateTest, BadArguments) {
  put("chat_template.jinja", "x");
  EXPECT_THAT(rendered(Json::object()), HasSubstr("messages must be a list"));
  EXPECT_THAT(rendered(Json::array({"text"})), HasSubstr("every message must be an object"));
  ChatTemplateOptions options;
  options.extra = Json::array();
  EXPECT_THAT(rendered(messages_, options), HasSubstr("must be an object"));
}

}  // namespace
}  // namespace volley
