#include "app/chat_format.h"

namespace volley {

Result<ChatFormat> ChatFormat::load(const std::string& folder) {
  ChatFormat format;
  auto loaded = ChatTemplate::load(folder);
  if (loaded) {
    format.template_ = std::move(*loaded);
  } else if (loaded.error().kind != ErrorKind::kNotFound) {
    return tl::unexpected<Error>(std::move(loaded.error()));
  }
  return format;
}

Result<std::string> ChatFormat::render(const std::vector<ChatMessage>& messages) const {
  Json list = Json::array();
  for (const ChatMessage& message : messages) {
    list.push_back({{"role", message.role}, {"content", message.content}});
  }
  return template_->render(list);
}

}  // namespace volley
