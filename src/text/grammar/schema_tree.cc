#include "text/grammar/schema_tree.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <optional>

namespace volley::grammar {

// Receives nlohmann's events, which it sends without recursion.
class SchemaTreeBuilder {
 public:
  SchemaTreeBuilder(SchemaTree& tree, int max_depth) : tree_(tree), max_depth_(max_depth) {}

  bool null() { return add(SchemaNode::Type::kNull) != nullptr; }
  bool boolean(bool value) {
    add(SchemaNode::Type::kBool)->boolean = value;
    return true;
  }
  bool number_integer(int64_t value) { return number(std::to_string(value)); }
  bool number_unsigned(uint64_t value) { return number(std::to_string(value)); }
  bool number_float(double, const std::string& text) { return number(text); }
  bool string(std::string& value) {
    add(SchemaNode::Type::kString)->text = std::move(value);
    return true;
  }
  bool binary(nlohmann::json::binary_t&) { return false; }
  bool start_object(size_t) { return open(SchemaNode::Type::kObject); }
  bool start_array(size_t) { return open(SchemaNode::Type::kArray); }
  bool key(std::string& name) {
    if (open_.back()->member_index.contains(name)) {
      error = fmt::format("{}: key '{}' appears twice", open_.back()->path(), name);
      return false;
    }
    key_ = std::move(name);
    return true;
  }
  bool end_object() { return close(); }
  bool end_array() { return close(); }
  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) {
    error = fmt::format("not valid JSON at byte {}", position);
    return false;
  }

  std::string error;

 private:
  bool number(std::string text) {
    add(SchemaNode::Type::kNumber)->text = std::move(text);
    return true;
  }

  SchemaNode* add(SchemaNode::Type type) {
    SchemaNode& node = tree_.nodes_.emplace_back();
    node.type = type;
    if (open_.empty()) return &node;
    SchemaNode& parent = *open_.back();
    node.parent = &parent;
    if (parent.is(SchemaNode::Type::kArray)) {
      node.key = std::to_string(parent.items.size());
      parent.items.push_back(&node);
    } else {
      node.key = std::move(key_);
      parent.members.emplace_back(node.key, &node);
      parent.member_index.emplace(node.key, &node);
    }
    return &node;
  }

  bool open(SchemaNode::Type type) {
    if (static_cast<int>(open_.size()) >= max_depth_) {
      error = fmt::format("nested deeper than {} levels", max_depth_);
      return false;
    }
    open_.push_back(add(type));
    return true;
  }

  bool close() {
    open_.pop_back();
    return true;
  }

  SchemaTree& tree_;
  const int max_depth_;
  std::vector<SchemaNode*> open_;
  std::string key_;
};

namespace {

// A member's name in a JSON pointer, which may be percent-encoded as part of a URI.
std::optional<std::string> unescape_pointer(std::string_view part) {
  std::string out;
  for (size_t i = 0; i < part.size(); ++i) {
    if (part[i] == '~') {
      if (i + 1 == part.size() || (part[i + 1] != '0' && part[i + 1] != '1')) return {};
      out += part[++i] == '0' ? '~' : '/';
    } else if (part[i] == '%' && i + 2 < part.size() && isxdigit(part[i + 1]) &&
               isxdigit(part[i + 2])) {
      out += static_cast<char>(std::stoi(std::string(part.substr(i + 1, 2)), nullptr, 16));
      i += 2;
    } else {
      out += part[i];
    }
  }
  return out;
}

std::string escape_pointer(std::string_view name) {
  std::string out;
  for (const char c : name) {
    if (c == '~') {
      out += "~0";
    } else if (c == '/') {
      out += "~1";
    } else {
      out += c;
    }
  }
  return out;
}

}  // namespace

const SchemaNode* SchemaNode::find(std::string_view name) const {
  const auto found = member_index.find(name);
  return found == member_index.end() ? nullptr : found->second;
}

std::string SchemaNode::path() const {
  std::vector<const SchemaNode*> chain;
  for (const SchemaNode* node = this; node->parent != nullptr; node = node->parent) {
    chain.push_back(node);
  }
  std::string path = "#";
  for (auto node = chain.rbegin(); node != chain.rend(); ++node) {
    path += "/" + escape_pointer((*node)->key);
  }
  return path;
}

Result<SchemaTree> SchemaTree::parse(std::string_view text, int max_depth) {
  SchemaTree tree;
  SchemaTreeBuilder builder(tree, max_depth);
  try {
    if (nlohmann::json::sax_parse(text.begin(), text.end(), &builder)) return tree;
  } catch (const std::exception& e) {
    builder.error = e.what();
  }
  return invalid("JSON schema: {}", builder.error.empty() ? "not valid JSON" : builder.error);
}

const SchemaNode* SchemaNode::resolve(std::string_view reference) const {
  if (!reference.starts_with('#')) return nullptr;
  reference.remove_prefix(1);
  const SchemaNode* node = this;
  while (node->parent != nullptr) node = node->parent;
  while (!reference.empty()) {
    if (reference[0] != '/') return nullptr;
    reference.remove_prefix(1);
    const size_t size = std::min(reference.find('/'), reference.size());
    const std::optional<std::string> part = unescape_pointer(reference.substr(0, size));
    reference.remove_prefix(size);
    if (!part) return nullptr;
    if (node->is(SchemaNode::Type::kArray)) {
      size_t item_idx = 0;
      const bool is_index =
          !part->empty() && part->size() < 9 &&
          std::all_of(part->begin(), part->end(), [](char c) { return c >= '0' && c <= '9'; });
      if (is_index) item_idx = std::stoul(*part);
      node = is_index && item_idx < node->items.size() ? node->items[item_idx] : nullptr;
    } else {
      node = node->find(*part);
    }
    if (node == nullptr) return nullptr;
  }
  return node;
}

}  // namespace volley::grammar
