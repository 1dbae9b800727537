// Reports of bench --shape as text, JSON and a picture. Pure functions of the figures.

#include <algorithm>
#include <cmath>

#include "app/bench_plot.h"
#include "app/bench_shape.h"

namespace volley {
namespace {

// Every second shape is drawn in a darker shade.
const char* colour_of(WeightFormat format, size_t shape_idx) {
  const bool is_dark = shape_idx % 2 == 1;
  switch (format) {
    case WeightFormat::kInt8:
      return is_dark ? "#7d3206" : "#dd7a3c";
    case WeightFormat::kInt4:
      return is_dark ? "#0b5334" : "#2fb37a";
    case WeightFormat::kFp8:
      return is_dark ? "#55217a" : "#a866cc";
    default:
      return is_dark ? "#163f94" : "#5b93ee";
  }
}

struct Curve {
  std::vector<std::pair<double, double>> points;  // x, milliseconds
  std::vector<std::pair<double, double>> floors;
  const char* colour;
  std::string label;
};

// One panel: x from `first` to `last` on a scale of `position` in [0, 1].
template <class F>
std::string draw_panel(const std::vector<Curve>& curves, double left, const std::string& title,
                       const std::vector<double>& ticks, F position) {
  constexpr double kTop = 100, kHeight = 300, kWidth = 400;
  double highest = 1;
  for (const Curve& curve : curves) {
    for (const auto& point : curve.points) highest = std::max(highest, point.second * 1.05);
  }
  const auto x_of = [&](double x) { return left + position(x) * kWidth; };
  const auto y_of = [&](double ms) { return kTop + kHeight * (1 - ms / highest); };
  std::string out = fmt::format(
      "<text x=\"{:.0f}\" y=\"84\" font-size=\"14\" font-weight=\"600\">{}</text>\n", left, title);
  const double step = std::pow(10, std::floor(std::log10(highest / 2)));
  for (double ms = 0; ms <= highest; ms += highest / step > 6 ? 2 * step : step) {
    out += fmt::format(
        "<line x1=\"{0:.1f}\" x2=\"{1:.1f}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\" stroke=\"#e3e7eb\"/>"
        "<text x=\"{3:.1f}\" y=\"{4:.1f}\" font-size=\"11\" fill=\"#66727f\" "
        "text-anchor=\"end\">{5:g}</text>\n",
        left, left + kWidth, y_of(ms), left - 6, y_of(ms) + 4, ms);
  }
  for (const double tick : ticks)
    out += fmt::format(
        "<text x=\"{:.1f}\" y=\"{:.0f}\" font-size=\"11\" fill=\"#66727f\" "
        "text-anchor=\"middle\">{:g}</text>\n",
        x_of(tick), kTop + kHeight + 18, tick);
  for (const Curve& curve : curves) {
    const auto line = [&](const auto& points, const char* dash) {
      std::string path;
      for (const auto& [x, ms] : points) path += fmt::format("{:.1f},{:.1f} ", x_of(x), y_of(ms));
      out += fmt::format(
          "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"{}/>\n", path,
          curve.colour, dash);
    };
    line(curve.points, "");
    line(curve.floors, " stroke-dasharray=\"3 4\" opacity=\"0.7\"");
  }
  // Labels from the bottom up, none nearer to the one below than a line.
  std::vector<const Curve*> labelled;
  for (const Curve& curve : curves) {
    if (!curve.points.empty()) labelled.push_back(&curve);
  }
  std::sort(labelled.begin(), labelled.end(), [](const Curve* a, const Curve* b) {
    return a->points.back().second < b->points.back().second;
  });
  constexpr double kLineHeight = 12;
  double last_y = kTop + kHeight + kLineHeight;
  for (const Curve* curve : labelled) {
    last_y = std::min(y_of(curve->points.back().second) + 4, last_y - kLineHeight);
    out += fmt::format("<text x=\"{:.1f}\" y=\"{:.1f}\" font-size=\"11\" fill=\"{}\">{}</text>\n",
                       x_of(curve->points.back().first) + 5, last_y, curve->colour,
                       xml_escaped(curve->label));
  }
  return out;
}

}  // namespace

double ShapeReport::floor_ms(const ShapeFigure& figure) const {
  return 1e3 * std::max(figure.bytes / read_bytes_s, figure.flops / multiply_flop_s);
}

const ShapeFigure* ShapeReport::find(std::string_view name, int rows, int context) const {
  for (const ShapeFigure& figure : figures) {
    if (figure.name == name && (rows == 0 || figure.rows == rows) && figure.context == context)
      return &figure;
  }
  return nullptr;
}

std::vector<ShapeBar> ShapeReport::bars() const {
  std::vector<ShapeBar> bars;
  for (const ShapeFigure& f : figures) {
    if (f.context != figures[0].context) continue;
    if (f.name == "step")
      bars.push_back({"one row, % of the read bandwidth", 100 * f.bytes / f.ms * 1e3 / read_bytes_s,
                      format == WeightFormat::kBf16 ? 88.0 : 80.0, true});
    if (f.name == "verify" && f.rows == 16)
      bars.push_back({"16 rows, times one row", f.times_one_row, 1.20});
    if (f.name == "draft")
      bars.push_back({"draft pass, times its floor", f.ms / floor_ms(f), 1.15});
  }
  return bars;
}

double ShapeReport::computed_speedup() const {
  const ShapeFigure* draft = nullptr;
  for (const ShapeFigure& figure : figures) {
    if (figure.name == "draft") draft = &figure;
  }
  if (draft == nullptr) return 0;
  const ShapeFigure* step = find("step", 1, draft->context);
  const ShapeFigure* inject = find("inject", 0, draft->context);
  // The measured pass of no fewer rows than the block.
  const ShapeFigure* verify = nullptr;
  for (const ShapeFigure& figure : figures) {
    if (figure.name == "verify" && figure.rows >= block_size &&
        (verify == nullptr || figure.rows < verify->rows))
      verify = &figure;
  }
  if (step == nullptr || inject == nullptr || verify == nullptr) return 0;
  return acceptance_length * step->ms / (draft->ms + inject->ms + verify->times_one_row * step->ms);
}

std::string ShapeReport::table() const {
  std::string out = fmt::format(
      "{} {}: {:.0f} MB a pass, made and packed in {:.1f} s; {}, {} threads\n"
      "read bandwidth {:.2f} GB/s (median between the figures; p10 {:.2f}, p90 {:.2f}), products "
      "on "
      "registers {:.2f} TFLOP/s\n\n"
      "{:>8} {:>5} {:>8} {:>9} {:>9} {:>9} {:>8} {:>7} {:>9} {:>8} {:>9}\n",
      shape, weight_format_name(format), weight_bytes * 1e-6, load_s, ops, num_threads,
      read_bytes_s * 1e-9, read_p10_bytes_s * 1e-9, read_p90_bytes_s * 1e-9,
      multiply_flop_s * 1e-12, "pass", "rows", "context", "ms", "p10", "MB", "GB/s", "% read",
      "floor ms", "x floor", "x one row");
  for (const ShapeFigure& f : figures) {
    const double rate = f.bytes / f.ms * 1e3;
    out += fmt::format(
        "{:>8} {:>5} {:>8} {:>9.2f} {:>9.2f} {:>9.0f} {:>8.2f} {:>7.1f} {:>9.2f} {:>8.2f} {:>9}\n",
        f.name, f.rows, f.context, f.ms, f.p10_ms, f.bytes * 1e-6, rate * 1e-9,
        100 * rate / read_bytes_s, floor_ms(f), f.ms / floor_ms(f),
        f.times_one_row > 0 ? fmt::format("{:.2f}", f.times_one_row) : "");
  }
  out += '\n';
  for (const ShapeBar& bar : bars()) {
    out +=
        fmt::format("{}: {:.2f}, {} {:.2f}: {}\n", bar.name, bar.value,
                    bar.at_least ? "at least" : "at most", bar.bar, bar.met() ? "met" : "missed");
  }
  for (const ShapeFigure& f : figures) {
    if (f.name != "prefill") continue;
    out += fmt::format("prefill of {}: {:.0f} tokens/s, {:.2f} TFLOP/s, {:.0f}% of the products\n",
                       f.rows, f.rows / f.ms * 1e3, f.flops / f.ms * 1e-9,
                       100 * f.flops / f.ms * 1e3 / multiply_flop_s);
  }
  if (const double speedup = computed_speedup(); speedup > 0) {
    out += fmt::format(
        "computed, not measured: {:.2f}x plain decoding at acceptance_length {:.2f} ({}; arXiv "
        "2602.06036), from draft, inject and verify above\n",
        speedup, acceptance_length, acceptance_source);
  }
  return out;
}

Json ShapeReport::json() const {
  Json list = Json::array();
  for (const ShapeFigure& f : figures) {
    Json one = {{"pass", f.name},
                {"rows", f.rows},
                {"context", f.context},
                {"ms", f.ms},
                {"p10_ms", f.p10_ms},
                {"p90_ms", f.p90_ms},
                {"samples", f.num_samples},
                {"bytes", f.bytes},
                {"flops", f.flops},
                {"gb_s", f.bytes / f.ms * 1e-6},
                {"percent_of_read", 100 * f.bytes / f.ms * 1e3 / read_bytes_s},
                {"floor_ms", floor_ms(f)},
                {"times_floor", f.ms / floor_ms(f)}};
    if (f.times_one_row > 0) one["times_one_row"] = f.times_one_row;
    list.push_back(std::move(one));
  }
  Json bar_list = Json::array();
  for (const ShapeBar& bar : bars())
    bar_list.push_back({{"name", bar.name},
                        {"value", bar.value},
                        {"bar", bar.bar},
                        {"at_least", bar.at_least},
                        {"met", bar.met()}});
  return {{"shape", shape},
          {"format", weight_format_name(format)},
          {"ops", ops},
          {"threads", num_threads},
          {"weight_bytes", weight_bytes},
          {"load_s", load_s},
          {"read_gb_s", read_bytes_s * 1e-9},
          {"read_p10_gb_s", read_p10_bytes_s * 1e-9},
          {"read_p90_gb_s", read_p90_bytes_s * 1e-9},
          {"multiply_tflop_s", multiply_flop_s * 1e-12},
          {"figures", std::move(list)},
          {"bars", std::move(bar_list)},
          {"computed",
           {{"speedup", computed_speedup()},
            {"acceptance_length", acceptance_length},
            {"acceptance_source", acceptance_source}}}};
}

std::string shape_plot_svg(const std::vector<ShapeReport>& reports, const std::string& subtitle) {
  std::vector<Curve> by_rows, by_context;
  size_t shape_idx = 0;
  for (size_t i = 0; i < reports.size(); ++i) {
    const ShapeReport& report = reports[i];
    if (i > 0 && report.shape != reports[i - 1].shape) ++shape_idx;
    Curve rows{.colour = colour_of(report.format, shape_idx),
               .label = fmt::format("{} {}", report.shape, weight_format_name(report.format))};
    Curve contexts = rows;
    for (const ShapeFigure& f : report.figures) {
      const bool is_base = f.context == report.figures[0].context;
      if ((f.name == "step" && is_base) || f.name == "verify") {
        rows.points.emplace_back(f.rows, f.ms);
        rows.floors.emplace_back(f.rows, report.floor_ms(f));
      }
      if (f.name == "step") {
        contexts.points.emplace_back(f.context, f.ms);
        contexts.floors.emplace_back(f.context, report.floor_ms(f));
      }
    }
    by_rows.push_back(std::move(rows));
    by_context.push_back(std::move(contexts));
  }
  const auto by_count = [](double x) { return x / 64; };
  const auto by_log = [](double x) { return std::log2(x / 128) / 6; };
  return fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"1240\" height=\"450\" viewBox=\"0 0 1240 "
      "450\" font-family=\"system-ui, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\" "
      "fill=\"#1f2933\">\n<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
      "<text x=\"28\" y=\"34\" font-size=\"19\" font-weight=\"600\">Milliseconds a pass, and their "
      "floors (dashed)</text>\n<text x=\"28\" y=\"55\" font-size=\"12\" "
      "fill=\"#66727f\">{}</text>\n{}{}</svg>\n",
      xml_escaped(subtitle),
      draw_panel(by_rows, 60, "by rows of the pass", {1, 8, 16, 32, 48, 64}, by_count),
      draw_panel(by_context, 680, "one row, by context", {128, 512, 2048, 8192}, by_log));
}

}  // namespace volley
