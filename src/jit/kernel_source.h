#pragma once

// A kernel as text, and the name its machine code goes by.

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "base/sha256.h"

namespace volley::jit {

struct Header {
  std::string name;  // as it is included: "gemm/device/tile_scheduler.h"
  std::string text;
};

struct KernelSource {
  std::string name;   // for people: messages, progress, bundle listings
  std::string entry;  // the extern "C" kernel in `text`
  std::string text;
  std::vector<Header> headers;     // may hold more than `text` reaches
  std::vector<std::string> flags;  // further compiler flags, e.g. "--maxrregcount=128"
};

// What the compiler will read: the headers that `source.text` reaches through #include "...", each
// once, sorted by name. An include of a name that is not among the headers, or of <...>, is an
// error: a compile reads nothing from the machine it runs on. Includes inside inactive #if branches
// count.
Result<std::vector<Header>> include_closure(const KernelSource& source);

using KernelKey = Sha256Digest;

// Names the machine code that `source` means on `arch` ("sm_90a"): a hash of the whole include
// closure, the entry, the flags and the architecture. A bundle is indexed by it.
Result<KernelKey> source_key(const KernelSource& source, std::string_view arch);

// Names what one compiler makes of that source; the disk cache is indexed by it.
KernelKey compiled_key(const KernelKey& source_key, std::string_view compiler_id);

}  // namespace volley::jit
