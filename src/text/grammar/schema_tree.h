#pragma once

// A schema's JSON as a tree that keeps the order of members and the text of numbers.

#include <deque>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/result.h"

namespace volley::grammar {

struct SchemaNode {
  enum class Type : uint8_t { kNull, kBool, kNumber, kString, kArray, kObject };
  Type type = Type::kNull;
  bool boolean = false;
  std::string text;  // of a string; of a number as it was written
  std::vector<SchemaNode*> items;
  std::vector<std::pair<std::string, SchemaNode*>> members;
  std::unordered_map<std::string_view, SchemaNode*> member_index;
  const SchemaNode* parent = nullptr;
  std::string key;  // in the parent

  // nullptr where there is none.
  const SchemaNode* find(std::string_view name) const;
  bool is(Type other) const { return type == other; }
  std::string path() const;  // "#/properties/a"
  // Follows a reference such as "#/$defs/a" or "#" from the root of this node's document; nullptr
  // where it leads nowhere.
  const SchemaNode* resolve(std::string_view reference) const;
};

class SchemaTree {
 public:
  // Bounded in depth; duplicate keys are an error.
  static Result<SchemaTree> parse(std::string_view text, int max_depth);

  const SchemaNode& root() const { return nodes_.front(); }

 private:
  friend class SchemaTreeBuilder;
  std::deque<SchemaNode> nodes_;  // stable addresses; the first is the root
};

}  // namespace volley::grammar
