# GoogleTest for the C++ tests: an installed package, GTest::gtest and GTest::gtest_main.
find_package(GTest QUIET)
if(NOT TARGET GTest::gtest_main)
  message(FATAL_ERROR "[tests] GoogleTest: not found; install it (Debian, Ubuntu: libgtest-dev), "
                      "set GTest_ROOT, or configure with -DQBITS_TESTS=OFF")
endif()
