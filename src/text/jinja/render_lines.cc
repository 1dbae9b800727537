// Renders templates line by line, for comparison with jinja2 (tools/jinja_differential.py): each
// input line is {"template": ..., "context": {...}}, each output line {"text": ...} or
// {"error": ...}.

#include <cstdio>
#include <iostream>
#include <string>

#include "text/jinja/template.h"

namespace volley {
namespace {

Json render_line(const std::string& line) {
  const auto request = parse_json(line, "request");
  if (!request) return {{"error", request.error().message}};
  const auto parsed = jinja::Template::parse((*request)["template"].get<std::string>());
  if (!parsed) return {{"error", parsed.error().message}};
  const auto text = parsed->render((*request)["context"]);
  if (!text) return {{"error", text.error().message}};
  return {{"text", *text}};
}

}  // namespace
}  // namespace volley

int main() {
  for (std::string line; std::getline(std::cin, line);) {
    std::puts(volley::dump_json(volley::render_line(line)).c_str());
  }
  return 0;
}
