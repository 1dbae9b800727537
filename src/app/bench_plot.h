#pragma once

// A benchmark as a picture: speed per source, and how far drafts survive.

#include <string>
#include <vector>

#include "app/bench_stats.h"

namespace volley {

// A self-contained SVG: left, plain and drafted tokens per second of each source; right, the share
// of drafts kept at each position, all sources together. `subtitle` says on what machine and how.
std::string bench_plot_svg(const std::vector<SourceSummary>& sources, const SourceSummary& overall,
                           const std::string& subtitle);
// The same in a page of its own.
std::string bench_plot_html(const std::vector<SourceSummary>& sources, const SourceSummary& overall,
                            const std::string& subtitle);

// Text made safe for an XML document.
std::string xml_escaped(const std::string& text);

}  // namespace volley
