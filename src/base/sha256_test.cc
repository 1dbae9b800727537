#include "base/sha256.h"

#include <gtest/gtest.h>

namespace volley {
namespace {

// FIPS 180-4 example vectors, and `printf 'a%.0s' {1..N} | sha256sum` around the chunk's edges.
TEST(Sha256, KnownDigests) {
  EXPECT_EQ(to_hex(sha256("")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(to_hex(sha256("abc")),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(to_hex(sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(to_hex(sha256(std::string(1000000, 'a'))),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(Sha256, TheCutOfTheInputDoesNotMatter) {
  for (const size_t size : {55U, 56U, 63U, 64U, 65U, 127U, 128U, 200U}) {
    const std::string bytes(size, 'x');
    for (const size_t step : {1U, 7U, 63U, 64U, 65U}) {
      Sha256 hash;
      for (size_t i = 0; i < size; i += step) hash.update(std::string_view(bytes).substr(i, step));
      EXPECT_EQ(hash.finish(), sha256(bytes)) << size << " by " << step;
    }
  }
}

TEST(Sha256, FieldsDoNotRunTogether) {
  Sha256 first, second;
  first.update_field("ab");
  first.update_field("c");
  second.update_field("a");
  second.update_field("bc");
  EXPECT_NE(first.finish(), second.finish());
}

}  // namespace
}  // namespace volley
