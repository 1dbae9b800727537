# cmake -DROOT=dir -DFILES=a;b -DOUT=file.cc -DNAME=symbol -DNAMESPACE=ns -P embed_texts.cmake: the files
# as one array of {name relative to ROOT, text}. A raw string of a language's text needs no escaping;
# pieces stay under the 64 KiB that compilers promise.
set(rows "")
foreach(file IN LISTS FILES)
  file(READ "${ROOT}/${file}" text)
  string(APPEND rows "    {\"${file}\", R\"VLY(${text})VLY\"},\n")
endforeach()
file(WRITE "${OUT}" "// Made by embed_texts.cmake from the files it names.
#include <string_view>
#include <utility>
namespace ${NAMESPACE} {
namespace {
constexpr std::pair<std::string_view, std::string_view> kTexts[] = {
${rows}};
}  // namespace
const std::pair<std::string_view, std::string_view>* ${NAME}_begin() {
  return kTexts;
}
const std::pair<std::string_view, std::string_view>* ${NAME}_end() {
  return kTexts + sizeof(kTexts) / sizeof(kTexts[0]);
}
}  // namespace ${NAMESPACE}
")
