#pragma once

// What Python's operators do with the values of the engine.

#include "text/jinja/value.h"

namespace volley::jinja {

enum class BinaryOp : uint8_t { kAdd, kSub, kMul, kDiv, kFloorDiv, kMod, kPow };
enum class CompareOp : uint8_t { kEq, kNe, kLt, kLe, kGt, kGe, kIn, kNotIn };

bool truth(const Value& value);
// Fails with the message of an Undefined; anything else passes.
void require_defined(const Value& value);

bool less_than(const Value& a, const Value& b);  // TypeError when Python cannot order them
bool compare(Interpreter& interpreter, CompareOp op, const Value& a, const Value& b);
bool contains(Interpreter& interpreter, const Value& haystack, const Value& needle);

Value binary(Interpreter& interpreter, BinaryOp op, const Value& a, const Value& b);
Value negate(const Value& value);
Value unary_plus(const Value& value);

int64_t length(const Value& value);  // len()
Ref<Iterator> iterate(Interpreter& interpreter, const Value& value);
std::vector<Value> to_vector(Interpreter& interpreter, const Value& value);  // list(value)

// `value[key]`, `value.name` as Jinja reads them: elements, then attributes, then Undefined.
Value get_item(Interpreter& interpreter, const Value& value, const Value& key);
Value get_attribute(Interpreter& interpreter, const Value& value, const Value& name);
// An attribute in Python's own sense: a method or a property, never an element. kMissing if none.
Value own_attribute(Interpreter& interpreter, const Value& value, std::string_view name);
Value slice(Interpreter& interpreter, const Value& value, const Value& start, const Value& stop,
            const Value& step);
Value no_attribute(Heap& heap, const Value& value, const Value& name);

// A whole number where Python wants one: TypeError otherwise.
int64_t to_index(const Value& value);
std::string escape_html(std::string_view text);
// Escaped unless it is Markup; the result is Markup.
Value escape(Heap& heap, const Value& value);

// First occurrence at or after `from`, in linear time whatever the needle.
size_t find_text(std::string_view text, std::string_view needle, size_t from = 0);

}  // namespace volley::jinja
