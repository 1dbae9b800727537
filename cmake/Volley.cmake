# Build rules shared by every folder: compiler settings and the three kinds of target.

set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
set(CMAKE_RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}")
# -g1 keeps line tables for back traces at a fraction of the link time of -g.
set(CMAKE_CXX_FLAGS_RELWITHDEBINFO "-O2 -g1")
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE RelWithDebInfo)
endif()

find_program(CCACHE_PROGRAM ccache)
if(CCACHE_PROGRAM)
  set(CMAKE_CXX_COMPILER_LAUNCHER "${CCACHE_PROGRAM}")
endif()
find_program(MOLD_PROGRAM mold)
if(MOLD_PROGRAM AND CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  add_link_options(-fuse-ld=mold)
endif()

# Law 1: no compiler may fuse a multiply and an add in one loop body and not in its tail. Kernels
# that want FMA say so with intrinsics.
# Configs are aggregates whose defaults designated initialisers leave alone.
add_compile_options(-Wall -Wextra -Werror -Wno-missing-field-initializers -ffp-contract=off)
if(VOLLEY_SANITIZE)
  add_compile_options(-fsanitize=${VOLLEY_SANITIZE} -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${VOLLEY_SANITIZE})
  if(VOLLEY_SANITIZE MATCHES "undefined")
    add_compile_options(-fno-sanitize-recover=undefined)
  endif()
endif()
if(VOLLEY_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link,address,undefined -fno-sanitize-recover=undefined
                      -fno-omit-frame-pointer)
  add_link_options(-fsanitize=address,undefined)
endif()

find_package(Threads REQUIRED)
find_package(fmt REQUIRED)
if(NOT VOLLEY_FUZZ)
  find_package(GTest REQUIRED)
  include(GoogleTest)
endif()

# volley_library(NAME SRCS a.cc ... [DEPS lib ...]): a static library whose headers are included
# as "folder/file.h".
function(volley_library NAME)
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_library(${NAME} STATIC ${ARG_SRCS})
  target_include_directories(${NAME} PUBLIC "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/src>")
  target_link_libraries(${NAME} PUBLIC ${ARG_DEPS})
endfunction()

# volley_test(NAME SRCS a_test.cc ... [DEPS lib ...] [TIMEOUT seconds] [PROCESSORS n]): one GoogleTest
# binary; each TEST is one ctest entry. Tests run from the source root and find fixtures by relative
# path. PROCESSORS: cores a test keeps busy, so that ctest runs nothing else on them.
function(volley_test NAME)
  if(VOLLEY_FUZZ)
    return()
  endif()
  cmake_parse_arguments(ARG "" "TIMEOUT;PROCESSORS" "SRCS;DEPS" ${ARGN})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 120)
  endif()
  if(NOT ARG_PROCESSORS)
    set(ARG_PROCESSORS 1)
  endif()
  add_executable(${NAME} ${ARG_SRCS})
  target_link_libraries(${NAME} PRIVATE ${ARG_DEPS} GTest::gmock GTest::gtest_main)
  gtest_discover_tests(${NAME} WORKING_DIRECTORY "${PROJECT_SOURCE_DIR}" DISCOVERY_MODE PRE_TEST
                       PROPERTIES TIMEOUT ${ARG_TIMEOUT} PROCESSORS ${ARG_PROCESSORS})
endfunction()

# volley_fuzzer(NAME SRCS a_fuzz.cc [DEPS lib ...]): a libFuzzer binary, built with -DVOLLEY_FUZZ=ON.
# Its seed corpus lives in tests/corpus/NAME/.
function(volley_fuzzer NAME)
  if(NOT VOLLEY_FUZZ)
    return()
  endif()
  cmake_parse_arguments(ARG "" "" "SRCS;DEPS" ${ARGN})
  add_executable(${NAME} ${ARG_SRCS})
  target_link_libraries(${NAME} PRIVATE ${ARG_DEPS})
  target_link_options(${NAME} PRIVATE -fsanitize=fuzzer)
  set_property(GLOBAL APPEND PROPERTY VOLLEY_FUZZERS ${NAME})
endfunction()
