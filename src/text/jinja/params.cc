#include "text/jinja/params.h"

#include <algorithm>

namespace volley::jinja {

Params::Params(const char* function, Args& args, std::initializer_list<std::string_view> names,
               size_t required)
    : function_(function) {
  if (args.positional.size() > names.size()) {
    fail_type("{}() takes at most {} arguments ({} given)", function, names.size(),
              args.positional.size());
  }
  std::move(args.positional.begin(), args.positional.end(), values_.begin());
  for (auto& [name, value] : args.named) {
    const auto* found = std::find(names.begin(), names.end(), name);
    if (name.empty() || found == names.end()) {
      fail_type("{}() got an unexpected keyword argument '{}'", function, name);
    }
    Value& slot = values_[static_cast<size_t>(found - names.begin())];
    if (!slot.missing()) fail_type("{}() got multiple values for argument '{}'", function, name);
    slot = std::move(value);
  }
  for (size_t i = 0; i < required; ++i) {
    if (!has(i)) {
      const std::string_view name = names.begin()[i];
      fail_type("{}() missing required argument: '{}'", function,
                name.empty() ? std::to_string(i + 1) : std::string(name));
    }
  }
}

std::string_view Params::text(size_t i) const {
  require_defined(values_[i]);
  if (!values_[i].is(Kind::kStr)) {
    fail_type("{}() argument {} must be str, not {}", function_, i + 1, type_name(values_[i]));
  }
  return values_[i].text();
}

}  // namespace volley::jinja
