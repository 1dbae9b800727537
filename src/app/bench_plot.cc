#include "app/bench_plot.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace volley {
namespace {

constexpr const char* kInk = "#1f2933";
constexpr const char* kFaint = "#66727f";
constexpr const char* kGrid = "#e3e7eb";
constexpr const char* kPlain = "#b3bcc6";
constexpr const char* kDrafted = "#2f6fde";

constexpr double kMargin = 28;
constexpr double kTop = 106;  // of the panels, under the title
constexpr double kNameWidth = 130;
constexpr double kSpeedWidth = 330;    // of the longest bar
constexpr double kSpeedupWidth = 150;  // numbers behind it
constexpr double kRowHeight = 44;
constexpr double kSurvivalWidth = 420;
constexpr double kMinPanelHeight = 264;

// Collects elements; coordinates in pixels from the top left.
class Svg {
 public:
  void rect(double x, double y, double width, double height, const char* fill, double radius = 2) {
    body_ += fmt::format(
        "<rect x=\"{:.1f}\" y=\"{:.1f}\" width=\"{:.1f}\" height=\"{:.1f}\" rx=\"{:.0f}\" "
        "fill=\"{}\"/>\n",
        x, y, std::max(width, 0.0), std::max(height, 0.0), radius, fill);
  }
  void line(double x1, double y1, double x2, double y2, const char* stroke) {
    body_ += fmt::format(
        "<line x1=\"{:.1f}\" y1=\"{:.1f}\" x2=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"{}\"/>\n", x1, y1,
        x2, y2, stroke);
  }
  void text(double x, double y, const std::string& text, int size, const char* fill,
            const char* anchor = "start", bool strong = false) {
    body_ += fmt::format(
        "<text x=\"{:.1f}\" y=\"{:.1f}\" font-size=\"{}\" fill=\"{}\" text-anchor=\"{}\"{}>{}"
        "</text>\n",
        x, y, size, fill, anchor, strong ? " font-weight=\"600\"" : "", xml_escaped(text));
  }
  std::string document(double width, double height) const {
    return fmt::format(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0:.0f}\" height=\"{1:.0f}\" "
        "viewBox=\"0 0 {0:.0f} {1:.0f}\" font-family=\"system-ui, -apple-system, 'Segoe UI', "
        "Roboto, 'DejaVu Sans', sans-serif\">\n<rect width=\"100%\" height=\"100%\" "
        "fill=\"#ffffff\"/>\n{2}</svg>\n",
        width, height, body_);
  }

 private:
  std::string body_;
};

std::string shortened(const std::string& name, size_t max_size) {
  return name.size() <= max_size ? name : name.substr(0, max_size - 2) + "..";
}

void draw_speeds(Svg& svg, const std::vector<SourceSummary>& rows) {
  const double left = kMargin + kNameWidth;
  double fastest = 1;
  for (const SourceSummary& row : rows) {
    fastest = std::max({fastest, row.plain_tok_s, row.draft_tok_s});
  }
  svg.text(kMargin, kTop - 16, "Decode speed, tokens per second", 14, kInk, "start", true);
  double y = kTop;
  for (const SourceSummary& row : rows) {
    const double plain = kSpeedWidth * row.plain_tok_s / fastest;
    const double drafted = kSpeedWidth * row.draft_tok_s / fastest;
    svg.text(left - 10, y + 21, shortened(row.name, 18), 13, kInk, "end");
    svg.rect(left, y + 2, plain, 13, kPlain);
    svg.rect(left, y + 17, drafted, 13, kDrafted);
    svg.text(left + plain + 6, y + 13, fmt::format("{:.0f}", row.plain_tok_s), 11, kFaint);
    svg.text(left + drafted + 6, y + 28,
             fmt::format("{:.0f}  ({:.2f}x)", row.draft_tok_s, row.speedup), 11, kInk, "start",
             true);
    y += kRowHeight;
  }
  svg.rect(left, y + 4, 11, 11, kPlain);
  svg.text(left + 17, y + 14, "plain", 11, kFaint);
  svg.rect(left + 66, y + 4, 11, 11, kDrafted);
  svg.text(left + 83, y + 14, "drafted, same tokens", 11, kFaint);
}

void draw_survival(Svg& svg, const SourceSummary& overall, double left, double height) {
  const std::vector<double> shares = overall.histogram();
  const double bottom = kTop + height - 40;
  const double axis_left = left + 40;
  const double axis_width = kSurvivalWidth - 40;
  svg.text(left, kTop - 16, "Drafts kept, by position in the block", 14, kInk, "start", true);
  for (int percent = 0; percent <= 100; percent += 25) {
    const double y = bottom - (bottom - kTop) * percent / 100;
    svg.line(axis_left, y, axis_left + axis_width, y, kGrid);
    svg.text(axis_left - 8, y + 4, fmt::format("{}%", percent), 11, kFaint, "end");
  }
  const double slot = axis_width / static_cast<double>(std::max<size_t>(1, shares.size()));
  for (size_t i = 0; i < shares.size(); ++i) {
    const double bar_height = (bottom - kTop) * shares[i];
    const double x = axis_left + slot * static_cast<double>(i);
    svg.rect(x + 0.12 * slot, bottom - bar_height, 0.76 * slot, bar_height, kDrafted);
    if (shares.size() <= 20) {
      svg.text(x + slot / 2, bottom + 16, std::to_string(i + 1), 11, kFaint, "middle");
    }
  }
  svg.text(axis_left + axis_width, bottom + 34,
           fmt::format("acceptance_length {:.2f}", overall.acceptance_length), 12, kInk, "end",
           true);
}

}  // namespace

std::string xml_escaped(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      default:
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

std::string bench_plot_svg(const std::vector<SourceSummary>& sources, const SourceSummary& overall,
                           const std::string& subtitle) {
  std::vector<SourceSummary> rows = sources;
  if (sources.size() > 1) rows.push_back(overall);
  const double height =
      std::max(kMinPanelHeight, kRowHeight * static_cast<double>(rows.size()) + 40);
  const double right = kMargin + kNameWidth + kSpeedWidth + kSpeedupWidth;
  Svg svg;
  svg.text(kMargin, 36, "Volley: plain against drafted decoding", 19, kInk, "start", true);
  svg.text(kMargin, 57, subtitle, 12, kFaint);
  draw_speeds(svg, rows);
  draw_survival(svg, overall, right, height);
  return svg.document(right + kSurvivalWidth + kMargin, kTop + height + kMargin);
}

std::string bench_plot_html(const std::vector<SourceSummary>& sources, const SourceSummary& overall,
                            const std::string& subtitle) {
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<title>Volley bench</title><style>body{{margin:2rem auto;max-width:1180px}}"
      "svg{{max-width:100%;height:auto}}</style></head><body>\n{}</body></html>\n",
      bench_plot_svg(sources, overall, subtitle));
}

}  // namespace volley
