#pragma once

// Binds the arguments of a call to a signature, with Python's errors.

#include <array>
#include <initializer_list>

#include "text/jinja/operators.h"
#include "text/jinja/value.h"

namespace volley::jinja {

class Params {
 public:
  // `names` in order; an empty name can be given by position only. The first `required` must be
  // given. Takes the values out of `args`.
  Params(const char* function, Args& args, std::initializer_list<std::string_view> names,
         size_t required = 0);

  bool has(size_t i) const { return !values_[i].missing(); }
  // Neither left out nor None.
  bool given(size_t i) const { return has(i) && !values_[i].is(Kind::kNone); }
  const Value& at(size_t i) const { return values_[i]; }
  Value value(size_t i, Value otherwise) const { return has(i) ? values_[i] : otherwise; }
  bool flag(size_t i, bool otherwise) const { return has(i) ? truth(values_[i]) : otherwise; }
  int64_t integer(size_t i, int64_t otherwise) const {
    return has(i) ? to_index(values_[i]) : otherwise;
  }
  std::string_view text(size_t i) const;  // TypeError unless it is a str

 private:
  const char* function_;
  std::array<Value, 8> values_;
};

}  // namespace volley::jinja
