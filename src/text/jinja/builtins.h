#pragma once

// Jinja's filters, tests and global functions, by name.

#include <string_view>

#include "text/jinja/ast.h"

namespace volley::jinja {

FilterFunction find_filter(std::string_view name);  // null if there is none
TestFunction find_test(std::string_view name);
Value make_global(Interpreter& interpreter, std::string_view name);  // kMissing if there is none

// The groups that find_filter looks through.
FilterFunction find_text_filter(std::string_view name);
FilterFunction find_sequence_filter(std::string_view name);
FilterFunction find_value_filter(std::string_view name);

struct FilterEntry {
  std::string_view name;
  FilterFunction function;
};

template <size_t kCount>
FilterFunction find_in(const FilterEntry (&entries)[kCount], std::string_view name) {
  for (const FilterEntry& entry : entries) {
    if (entry.name == name) return entry.function;
  }
  return nullptr;
}

}  // namespace volley::jinja
