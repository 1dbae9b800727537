# Run as a script: BUILD, EXAMPLE, CXX, GENERATOR.
set(prefix "${BUILD}/gemm_package/installed")
set(example_build "${BUILD}/gemm_package/example")
file(REMOVE_RECURSE "${BUILD}/gemm_package")
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()
run("${CMAKE_COMMAND}" --install "${BUILD}" --component gemm --prefix "${prefix}")
run("${CMAKE_COMMAND}" -S "${EXAMPLE}" -B "${example_build}" -G "${GENERATOR}"
    "-DCMAKE_CXX_COMPILER=${CXX}" "-DCMAKE_PREFIX_PATH=${prefix}")
run("${CMAKE_COMMAND}" --build "${example_build}")
run("${example_build}/gemm_example")
