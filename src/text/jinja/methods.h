#pragma once

// Methods and properties of Python's own types.

#include "text/jinja/params.h"
#include "text/jinja/value.h"

namespace volley::jinja {

using MethodFunction = Value (*)(Interpreter&, const Value& self, Args&);

struct Method {
  std::string_view name;
  MethodFunction function;
};

// A method bound to its object, a property's value, or kMissing.
Value builtin_attribute(Interpreter& interpreter, const Value& value, std::string_view name);

// Methods the sandbox hides, because they change a list or a dict.
bool modifies(const Value& value, std::string_view name);

// Of str; null if there is no such method.
const Method* find_str_method(std::string_view name);

}  // namespace volley::jinja
