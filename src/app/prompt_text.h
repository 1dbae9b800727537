#pragma once

#include <string>

#include "app/options.h"

namespace volley {

// The text of --prompt, --prompt-file, or standard input. Errors: empty, too long, unreadable, or
// standard input is a terminal where nobody was asked to type.
Result<std::string> read_prompt_text(const PromptOptions& options, bool stdin_is_terminal);

// Everything that can be read from a file descriptor, at most `max_bytes`.
Result<std::string> read_descriptor(int descriptor, size_t max_bytes);

// Whether `path` can be written, tried before a long run rather than after it. An empty path can.
Status check_writable(const std::string& path);

}  // namespace volley
