#pragma once

#include "server/api_request.h"
#include "server/fields.h"

namespace volley::server {

// The sampling and delivery fields that endpoints share; violations end up in `fields`.
GenerationParams read_generation_params(Fields& fields, const ApiLimits& limits,
                                        const SamplingDefaults& defaults);

// A JSON schema within the limits; `name` says where it stood.
void check_schema(Fields& fields, std::string_view name, const Json& schema,
                  const ApiLimits& limits);

}  // namespace volley::server
