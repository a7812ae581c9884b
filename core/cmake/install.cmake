# What other projects get: libqbits, its headers, and the CMake package that gives qbits::qbits. In a wheel all of it
# lies inside the Python package.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
if(SKBUILD)
  set(CMAKE_INSTALL_LIBDIR lib)
endif()
set(qbits_cmake_dir ${CMAKE_INSTALL_LIBDIR}/cmake/qbits)

install(TARGETS qbits EXPORT qbitsTargets COMPONENT qbits LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR})
# Beside the test and bench programs when those are taken to another machine.
install(TARGETS qbits COMPONENT programs LIBRARY DESTINATION bin EXCLUDE_FROM_ALL)
install(DIRECTORY include/qbits COMPONENT qbits DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} FILES_MATCHING PATTERN "*.h")
install(EXPORT qbitsTargets NAMESPACE qbits:: COMPONENT qbits DESTINATION ${qbits_cmake_dir})

configure_package_config_file(cmake/qbitsConfig.cmake.in ${CMAKE_CURRENT_BINARY_DIR}/qbitsConfig.cmake
                              INSTALL_DESTINATION ${qbits_cmake_dir})
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(${CMAKE_CURRENT_BINARY_DIR}/qbitsConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${CMAKE_CURRENT_BINARY_DIR}/qbitsConfig.cmake ${CMAKE_CURRENT_BINARY_DIR}/qbitsConfigVersion.cmake
        COMPONENT qbits DESTINATION ${qbits_cmake_dir})
