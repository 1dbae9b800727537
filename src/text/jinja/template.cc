#include "text/jinja/template.h"

#include <new>

#include "text/jinja/parser.h"
#include "text/jinja/unicode.h"

namespace volley::jinja {
namespace {

tl::unexpected<Error> to_error(std::string_view name, const Failure& failure) {
  return tl::unexpected<Error>(
      Error{failure.kind,
            fmt::format("{}: line {}: {}: {}", name, failure.line, failure.type, failure.message)});
}

}  // namespace

Result<Template> Template::parse(std::string_view source, std::string_view name,
                                 const JinjaLimits& limits) {
  if (source.size() > limits.max_template_bytes) {
    return make_error(ErrorKind::kExhausted, "{}: {} bytes of template, at most {} are accepted",
                      name, source.size(), limits.max_template_bytes);
  }
  if (!is_valid_utf8(source)) return invalid("{}: the template is not valid UTF-8", name);
  try {
    return Template(std::string(name), limits, jinja::parse(source, limits));
  } catch (const Failure& failure) {
    return to_error(name, failure);
  } catch (const std::bad_alloc&) {
    return make_error(ErrorKind::kExhausted, "{}: out of memory", name);
  }
}

Result<std::string> Template::render(const Json& context, const Clock& clock) const {
  if (!context.is_object()) return invalid("{}: the context must be a JSON object", name_);
  try {
    return Interpreter(*program_, limits_, clock).render(context);
  } catch (const Failure& failure) {
    return to_error(name_, failure);
  } catch (const std::bad_alloc&) {
    return make_error(ErrorKind::kExhausted, "{}: out of memory", name_);
  }
}

Result<std::string> Template::render(const Json& context) const {
  return render(context, local_time);
}

std::tm local_time() {
  const std::time_t now = std::time(nullptr);
  std::tm parts = {};
  localtime_r(&now, &parts);
  return parts;
}

}  // namespace volley::jinja
