// Set the k smallest of many 16-bit floats to zero, as Magnitude does for every Linear, in two or three passes over its
// weights. The function has a C ABI; its loops are written so that the compiler can vectorise them.
//
// Without the sign bit, the bit patterns of bfloat16 and float16 are ordered as their magnitudes. So magnitudes ("sizes")
// are compared as integers, of which there are 2^15. A sample estimates the k-th smallest size; one pass counts the
// numbers up to each of eight sizes near the estimate, which nearly always determines it; the last pass writes.

#include <cstdint>
#include <cstring>

#define EXPORT extern "C" __attribute__((visibility("default")))
#define INLINE static inline __attribute__((always_inline))

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif

namespace {

constexpr int SIZES = 1 << 15, LIMITS = 8;
constexpr int64_t BLOCK = 1 << 12;    // numbers compared at a time: they fit in the L1 cache, their counts in 16 bits
constexpr int64_t SAMPLE = 20000;     // about how many numbers are sampled; at least one in MAX_STEP is
constexpr int64_t MAX_STEP = 61;
enum Status { OK = 0, UNSUPPORTED = 1, NOT_A_NUMBER = 2 };

typedef int16_t Lanes __attribute__((vector_size(32)));
constexpr int LANES = 16;

INLINE Lanes load(const uint16_t* from) {
  Lanes lanes;
  memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
inline int16_t size_of(uint16_t number) { return int16_t(number & (SIZES - 1)); }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
inline int within(int64_t number, int low, int high) { return int(number < low ? low : number > high ? high : number); }

// An estimate, from a sample, of the size of the k-th smallest number.
inline int guess(const uint16_t* from, int64_t count, int64_t k) {
  const int64_t step = smaller(count / SAMPLE, MAX_STEP / 2) * 2 + 1;  // odd, since widths are mostly even
  uint32_t found[SIZES];
  memset(found, 0, sizeof found);
  for (int64_t i = 0; i < count; i += step) found[size_of(from[i])]++;
  int64_t left = k / step;
  int size = 0;
  while (size < SIZES - 1 && left >= found[size]) left -= found[size++];
  return size;
}

// Writes to counts how many numbers have at most the size of each limit; returns the greatest size.
INLINE int count_at_most(const uint16_t* from, int64_t count, const int* limits, int64_t* counts) {
  int greatest = 0;
  for (int j = 0; j < LIMITS; j++) counts[j] = count;
  int64_t i = 0;
  while (i + LANES <= count) {
    Lanes limit[LIMITS], above[LIMITS] = {}, top = {};  // above: minus the number above each limit, within one BLOCK
    for (int j = 0; j < LIMITS; j++) limit[j] = Lanes{} + int16_t(limits[j]);
    const int64_t end = i + smaller(BLOCK, (count - i) / LANES * LANES);
    for (; i < end; i += LANES) {
      const Lanes sizes = load(from + i) & (SIZES - 1);
      top = sizes > top ? sizes : top;
      for (int j = 0; j < LIMITS; j++) above[j] += sizes > limit[j];
    }
    for (int lane = 0; lane < LANES; lane++) {
      greatest = top[lane] > greatest ? top[lane] : greatest;
      for (int j = 0; j < LIMITS; j++) counts[j] += above[j][lane];
    }
  }
  for (; i < count; i++) {
    greatest = size_of(from[i]) > greatest ? size_of(from[i]) : greatest;
    for (int j = 0; j < LIMITS; j++) counts[j] -= size_of(from[i]) > limits[j];
  }
  return greatest;
}

// Counts the numbers of this size among at most BLOCK numbers.
INLINE int64_t count_equal(const uint16_t* from, int64_t count, int size) {
  Lanes equal = {};
  int64_t found = 0, i = 0;
  for (; i + LANES <= count; i += LANES) equal += (load(from + i) & (SIZES - 1)) == int16_t(size);
  for (int lane = 0; lane < LANES; lane++) found -= equal[lane];
  for (; i < count; i++) found += size_of(from[i]) == size;
  return found;
}

// Copies numbers, writing zero for those whose size is at most limit.
INLINE void copy_above(const uint16_t* from, int64_t count, int limit, uint16_t* to) {
  const int16_t most = int16_t(limit);
  for (int64_t i = 0; i < count; i++) to[i] = size_of(from[i]) > most ? from[i] : 0;
}

int zero_smallest(const uint16_t* from, int64_t count, int64_t k, int infinity, uint16_t* to) {
  // Invariant: `lower` numbers, fewer than k, have at most the size `below`; at least k have at most the size `limit`.
  int below = -1, limit = SIZES - 1, near = guess(from, count, k);
  int64_t lower = 0, spacing = 1;
  while (limit - below > 1) {
    int limits[LIMITS];
    int64_t counts[LIMITS];
    const bool between = below >= 0 && limit < SIZES - 1;  // if so, narrow the interval; else search farther away
    if (between) spacing = (limit - below) / (LIMITS + 1) + 1;
    const int64_t first = between ? below + spacing : near - spacing * (LIMITS / 2);
    for (int j = 0; j < LIMITS; j++) limits[j] = within(first + j * spacing, below + 1, limit - 1);
    if (count_at_most(from, count, limits, counts) > infinity) return NOT_A_NUMBER;
    for (int j = 0; j < LIMITS; j++) {
      if (counts[j] >= k && limits[j] < limit) limit = limits[j];
      if (counts[j] < k && limits[j] > below) below = limits[j], lower = counts[j];
    }
    spacing *= LIMITS;
  }
  int64_t begin = 0;
  for (int64_t left = k - lower; left > 0;) {  // of the numbers of size `limit`, zero the first k - lower
    const int64_t size = smaller(BLOCK, count - begin), equal = count_equal(from + begin, size, limit);
    if (equal <= left) {
      copy_above(from + begin, size, limit, to + begin);
      left -= equal, begin += size;
    } else {
      for (; left > 0; begin++) {
        left -= size_of(from[begin]) == limit;
        to[begin] = size_of(from[begin]) > limit ? from[begin] : 0;
      }
    }
  }
  copy_above(from + begin, count - begin, limit - 1, to + begin);
  return OK;
}

}  // namespace

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

// Copies `count` numbers to `to`, with +0.0 for the k of smallest size, 0 < k <= count; of equal ones the first are
// zeroed. infinity: the bit pattern of infinity in their format. Nothing is written if the status is not 0, which it is
// for NaN.
EXPORT int prunus_zero_smallest(const uint16_t* from, int64_t count, int64_t k, int infinity, uint16_t* to) {
  return __builtin_cpu_supports("avx2") ? zero_smallest(from, count, k, infinity, to) : UNSUPPORTED;
}
