#pragma once

// Marks what libqbits exports; everything else is built with hidden visibility.
#if defined(_WIN32)
#define QBITS_API
#else
#define QBITS_API __attribute__((visibility("default")))
#endif
