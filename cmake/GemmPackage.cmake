# The matrix kernels as a CMake package of their own: `cmake --install build --component gemm`. Users
# say find_package(volley_gemm) and link volley::volley_gemm; headers are included as "gemm/gemm.h".
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

set(gemm_package_libraries volley_base volley_tensor volley_cuda volley_jit volley_gemm)
set(gemm_package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/volley_gemm")

install(TARGETS ${gemm_package_libraries} EXPORT volley_gemm
        ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT gemm
        INCLUDES DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/volley")
foreach(folder base tensor cuda jit gemm)
  install(DIRECTORY "${PROJECT_SOURCE_DIR}/src/${folder}"
          DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}/volley" COMPONENT gemm
          FILES_MATCHING PATTERN "*.h" PATTERN emulated EXCLUDE PATTERN "fake_driver.h" EXCLUDE)
endforeach()
install(EXPORT volley_gemm NAMESPACE volley:: FILE volley_gemmTargets.cmake
        DESTINATION "${gemm_package_dir}" COMPONENT gemm)
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/volley_gemmConfig.cmake.in"
                              "${CMAKE_BINARY_DIR}/volley_gemmConfig.cmake"
                              INSTALL_DESTINATION "${gemm_package_dir}")
write_basic_package_version_file("${CMAKE_BINARY_DIR}/volley_gemmConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${CMAKE_BINARY_DIR}/volley_gemmConfig.cmake"
              "${CMAKE_BINARY_DIR}/volley_gemmConfigVersion.cmake"
        DESTINATION "${gemm_package_dir}" COMPONENT gemm)

# Installs the package, builds examples/gemm against it from outside, and runs it.
if(NOT VOLLEY_FUZZ AND NOT VOLLEY_SANITIZE)
  add_test(NAME gemm_package
           COMMAND "${CMAKE_COMMAND}" "-DBUILD=${CMAKE_BINARY_DIR}"
                   "-DEXAMPLE=${PROJECT_SOURCE_DIR}/examples/gemm"
                   "-DCXX=${CMAKE_CXX_COMPILER}" "-DGENERATOR=${CMAKE_GENERATOR}"
                   -P "${PROJECT_SOURCE_DIR}/cmake/test_gemm_package.cmake")
  set_tests_properties(gemm_package PROPERTIES TIMEOUT 300)
endif()
