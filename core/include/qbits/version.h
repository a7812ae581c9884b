#pragma once

// The one place the version is written: CMake and the Python build read it from here.
#define QBITS_VERSION "0.1.0"
