#pragma once

#include <string_view>

namespace volley::server {

// web/index.html, put into the program at build.
std::string_view web_page();

}  // namespace volley::server
