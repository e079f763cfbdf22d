// As much of a test framework as these tests need.
#ifndef MTL_KERAS_TESTS_CHECK_H_
#define MTL_KERAS_TESTS_CHECK_H_

#include <cmath>
#include <cstdio>
#include <cstdlib>

#define CHECK(condition)                                                     \
  do {                                                                       \
    if (!(condition)) {                                                      \
      std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
      std::exit(1);                                                          \
    }                                                                        \
  } while (false)

#define CHECK_CLOSE(a, b, tolerance)                                              \
  do {                                                                            \
    const double x_ = (a), y_ = (b);                                              \
    if (!(std::abs(x_ - y_) <= (tolerance))) {                                    \
      std::fprintf(stderr, "%s:%d: %s = %.17g, %s = %.17g\n", __FILE__, __LINE__, \
                   #a, x_, #b, y_);                                               \
      std::exit(1);                                                               \
    }                                                                             \
  } while (false)

#endif  // MTL_KERAS_TESTS_CHECK_H_
