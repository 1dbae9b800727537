#include "jit/kernel_source.h"

#include <algorithm>
#include <map>
#include <set>

namespace volley::jit {
namespace {

std::string_view trim_left(std::string_view text) {
  return text.substr(std::min(text.find_first_not_of(" \t"), text.size()));
}

// What `line` includes, with its quotes or brackets; empty when it is no include.
std::string_view included_by(std::string_view line) {
  line = trim_left(line);
  if (!line.starts_with('#')) return {};
  line = trim_left(line.substr(1));
  if (!line.starts_with("include")) return {};
  line = trim_left(line.substr(7));
  const size_t close = line.find_first_of("\">", 1);
  return line.substr(0, close == std::string_view::npos ? close : close + 1);
}

// Adds the headers that `text` includes to `names`, in order.
Status add_includes(std::string_view kernel, std::string_view text,
                    std::vector<std::string_view>& names) {
  while (!text.empty()) {
    const size_t newline = std::min(text.find('\n'), text.size());
    const std::string_view what = included_by(text.substr(0, newline));
    text.remove_prefix(std::min(newline + 1, text.size()));
    if (what.empty()) continue;
    if (what.size() < 3 || what.front() != '"' || what.back() != '"') {
      return invalid("kernel {}: cannot include {}; expected a \"name\" among its own headers",
                     kernel, what);
    }
    names.push_back(what.substr(1, what.size() - 2));
  }
  return {};
}

}  // namespace

Result<std::vector<Header>> include_closure(const KernelSource& source) {
  std::map<std::string_view, const Header*> known;
  for (const Header& header : source.headers) known.emplace(header.name, &header);
  std::map<std::string_view, const Header*> reached;
  std::vector<std::string_view> pending;
  VOLLEY_TRY_STATUS(add_includes(source.name, source.text, pending));
  while (!pending.empty()) {
    const std::string_view name = pending.back();
    pending.pop_back();
    if (reached.contains(name)) continue;
    const auto found = known.find(name);
    if (found == known.end()) {
      return make_error(ErrorKind::kNotFound, "kernel {}: no header \"{}\"", source.name, name);
    }
    reached.insert(*found);
    VOLLEY_TRY_STATUS(add_includes(source.name, found->second->text, pending));
  }
  std::vector<Header> closure;
  for (const auto& [name, header] : reached) closure.push_back(*header);
  return closure;
}

Result<KernelKey> source_key(const KernelSource& source, std::string_view arch) {
  VOLLEY_TRY(const std::vector<Header> closure, include_closure(source));
  Sha256 hash;
  hash.update_field("volley kernel 1");
  hash.update_field(arch);
  hash.update_field(source.entry);
  hash.update_field(std::to_string(source.flags.size()));
  for (const std::string& flag : source.flags) hash.update_field(flag);
  hash.update_field(source.text);
  for (const Header& header : closure) {
    hash.update_field(header.name);
    hash.update_field(header.text);
  }
  return hash.finish();
}

KernelKey compiled_key(const KernelKey& source_key, std::string_view compiler_id) {
  Sha256 hash;
  hash.update({reinterpret_cast<const char*>(source_key.data()), source_key.size()});
  hash.update_field(compiler_id);
  return hash.finish();
}

}  // namespace volley::jit
