#pragma once

#include <cstddef>
#include <cstdint>

namespace volley::jinja {

// A template comes with a model, from strangers: everything it can spend is bounded here. The
// defaults leave two orders of magnitude above what published chat templates need.
struct JinjaLimits {
  size_t max_template_bytes = size_t{1} << 20;
  int max_parse_depth = 400;  // nesting of expressions and of statements in the source
  int max_recursion = 1200;   // evaluation frames: expressions, statements, macro calls
  int max_value_depth = 100;  // lists in lists, lazy filters over lazy filters
  // One for every evaluated node, iterated item and object made; more where text is long.
  uint64_t max_steps = 10'000'000;
  size_t max_output_bytes = size_t{16} << 20;
  size_t max_value_bytes = size_t{16} << 20;    // one string
  size_t max_items = 1'000'000;                 // one list or dict
  size_t max_memory_bytes = size_t{256} << 20;  // all live values of one rendering
  int64_t max_range = 100'000;                  // jinja2's own limit on range()
};

}  // namespace volley::jinja
