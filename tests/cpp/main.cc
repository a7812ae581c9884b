#include <gtest/gtest.h>

#include <cstdio>

#include "qbits/error.h"
#include "qbits/runtime.h"

// Runs the tests, or skips them all (exit code 77) where QBITS_ISA names an instruction set this machine lacks.
int main(int argc, char** argv) {
  testing::InitGoogleTest(&argc, argv);
  try {
    std::printf("instruction set: %s\n", qbits::isa().c_str());
  } catch (const qbits::Error& error) {
    if (error.code() != qbits::ErrorCode::Unsupported) throw;
    std::printf("skipped: %s\n", error.what());
    return 77;
  }
  return RUN_ALL_TESTS();
}
