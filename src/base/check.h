#pragma once

// CHECK: a bug of ours. Prints the place and both values, then aborts. Bad input never reaches one.

#include <fmt/format.h>

#include <string_view>

namespace volley {

[[noreturn]] void check_failed(std::string_view file, int line, std::string_view what);

namespace check_detail {

template <class A, class B>
[[noreturn]] void compare_failed(std::string_view file, int line, std::string_view what, const A& a,
                                 const B& b) {
  check_failed(file, line, fmt::format("{} ({} vs {})", what, a, b));
}

}  // namespace check_detail
}  // namespace volley

#define VOLLEY_CHECK_COMPARE_(a, op, b)                                                      \
  do {                                                                                       \
    const auto& check_a = (a);                                                               \
    const auto& check_b = (b);                                                               \
    if (!(check_a op check_b)) [[unlikely]]                                                  \
      ::volley::check_detail::compare_failed(__FILE__, __LINE__, #a " " #op " " #b, check_a, \
                                             check_b);                                       \
  } while (false)

#define CHECK(condition)                                      \
  do {                                                        \
    if (!(condition)) [[unlikely]]                            \
      ::volley::check_failed(__FILE__, __LINE__, #condition); \
  } while (false)
#define CHECK_EQ(a, b) VOLLEY_CHECK_COMPARE_(a, ==, b)
#define CHECK_NE(a, b) VOLLEY_CHECK_COMPARE_(a, !=, b)
#define CHECK_LT(a, b) VOLLEY_CHECK_COMPARE_(a, <, b)
#define CHECK_LE(a, b) VOLLEY_CHECK_COMPARE_(a, <=, b)
#define CHECK_GT(a, b) VOLLEY_CHECK_COMPARE_(a, >, b)
#define CHECK_GE(a, b) VOLLEY_CHECK_COMPARE_(a, >=, b)
