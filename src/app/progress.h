#pragma once

// One line on stderr that says how far a long run is.

#include <string>
#include <string_view>

namespace volley {

// On a terminal the line is rewritten in place; otherwise a line is written now and then, so that a
// log shows life without drowning in it.
class Progress {
 public:
  Progress(bool err_is_terminal, bool quiet, int num_columns);
  ~Progress() { clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void show(std::string_view line);
  // Takes the line off the screen, before something else is written.
  void clear();

 private:
  const bool in_place_;
  const bool quiet_;
  const size_t num_columns_;
  double last_shown_s_;
  bool visible_ = false;
};

}  // namespace volley
