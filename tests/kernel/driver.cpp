// The C++ files under sanitizers: `make sanitize` compiles this with them. Every instruction set of this processor,
// against plain loops in double, with every array next to a page that must not be touched.

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <pthread.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

extern "C" {
int prunus_isa();
int prunus_linear(int, int, int, const uint32_t*, const void*, const int64_t*, const void*, const void*, void*, int64_t,
                  int64_t, int64_t, int);
int prunus_count(int, int, const void*, int64_t, int64_t, int64_t*, int);
int prunus_pack(int, int, const void*, int64_t, int64_t, int64_t*, uint32_t*, void*, int);
int prunus_repack(int, int, const uint8_t*, int64_t, const void*, int64_t, int64_t, int64_t, int64_t*, uint32_t*, void*,
                  int);
int prunus_check(const uint32_t*, const int64_t*, int64_t, int64_t, int64_t);
int prunus_unpack(int, int, const uint32_t*, const void*, const int64_t*, int64_t, int64_t, int64_t, int64_t, void*, int);
int prunus_zero_smallest(const uint16_t*, int64_t, int64_t, int, uint16_t*);
}

#define EXPECT(truth) \
  if (!(truth)) printf("%s:%d: %s\n", __FILE__, __LINE__, #truth), exit(1)

namespace {

enum { BF16, FP16, FP32 };
const double EPSILON[] = {1.0 / 256, 1.0 / 2048, 1.0 / (1 << 23)};
int width_of(int kind) { return kind == FP32 ? 4 : 2; }

// An array that ends where a page begins that nobody may read or write. Under AddressSanitizer half of them are from
// malloc instead, whose ends it watches byte by byte.
struct Array {
  char *mapped = nullptr, *data;
  size_t mapped_size = 0;
  explicit Array(size_t size) {
    static bool guard = false;
    if ((guard = !guard)) {
      mapped_size = (size + 4095) / 4096 * 4096 + 4096;
      mapped = static_cast<char*>(mmap(nullptr, mapped_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
      EXPECT(mapped != MAP_FAILED && mprotect(mapped + mapped_size - 4096, 4096, PROT_NONE) == 0);
      data = mapped + mapped_size - 4096 - size;
    } else {
      data = static_cast<char*>(malloc(size ? size : 1));
    }
    memset(data, 0x5a, size);
  }
  Array(const Array&) = delete;
  ~Array() { mapped ? (void)munmap(mapped, mapped_size) : free(data); }
  template <class T>
  T* as() { return reinterpret_cast<T*>(data); }
};

uint64_t state = 1;
double uniform() {  // splitmix64
  uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9, z = (z ^ z >> 27) * 0x94d049bb133111eb;
  return double((z ^ z >> 31) >> 11) / double(1ull << 53);
}

// Numbers with few digits are the same in every format, so there is nothing to round.
double small_number() { return (int(uniform() * 31) - 15) / 8.0; }

void put(char* array, int kind, int64_t at, double number) {
  float single = float(number);
  uint32_t bits;
  memcpy(&bits, &single, 4);
  uint16_t half = 0;
  if (kind == BF16) half = uint16_t(bits >> 16);
  if (kind == FP16 && number != 0) half = uint16_t(bits >> 16 & 0x8000) | uint16_t(((bits >> 13) & 0x3fffffff) - (112 << 10));
  if (kind == FP32) memcpy(array + 4 * at, &bits, 4);
  else memcpy(array + 2 * at, &half, 2);
}

double get(const char* array, int kind, int64_t at) {
  float single;
  uint16_t half;
  if (kind == FP32) return memcpy(&single, array + 4 * at, 4), single;
  memcpy(&half, array + 2 * at, 2);
  uint32_t bits = uint32_t(half) << 16;
  if (kind == FP16) {
    int exponent = half >> 10 & 31, fraction = half & 1023;
    double size = exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24);
    return half & 0x8000 ? -size : size;
  }
  memcpy(&single, &bits, 4);
  return single;
}

struct Case {
  int isa, weights, activations;
  int64_t outputs, inputs, rows;
  double sparsity;
};

void check(const Case& c) {
  const int width = width_of(c.weights), out_width = width_of(c.activations);
  const int64_t groups = (c.outputs + 15) / 16, chunks = (c.inputs + 31) / 32;
  Array plain(c.outputs * c.inputs * width), x(c.rows * c.inputs * out_width), bias(c.outputs * out_width);
  std::vector<double> w(c.outputs * c.inputs);
  for (size_t at = 0; at < w.size(); at++) put(plain.data, c.weights, at, w[at] = uniform() < c.sparsity ? 0 : small_number());
  for (int64_t at = 0; at < c.rows * c.inputs; at++) put(x.data, c.activations, at, small_number());
  for (int64_t at = 0; at < c.outputs; at++) put(bias.data, c.activations, at, small_number());

  Array starts((groups + 1) * 8);
  EXPECT(prunus_count(c.isa, width, plain.data, c.outputs, c.inputs, starts.as<int64_t>(), 2) == 0);
  const int64_t kept = starts.as<int64_t>()[groups];
  int64_t expected_kept = 0;
  for (double number : w) expected_kept += number != 0;
  EXPECT(kept == expected_kept);
  Array masks(groups * 16 * chunks * 4), values(kept * width + 64);
  EXPECT(prunus_pack(c.isa, width, plain.data, c.outputs, c.inputs, starts.as<int64_t>(), masks.as<uint32_t>(),
                     values.data, 2) == 0);
  EXPECT(prunus_check(masks.as<uint32_t>(), starts.as<int64_t>(), kept, c.outputs, c.inputs) == 0);

  Array again(c.outputs * c.inputs * width);
  EXPECT(prunus_unpack(c.isa, width, masks.as<uint32_t>(), values.data, starts.as<int64_t>(), c.outputs, c.inputs, 0,
                       groups, again.data, 2) == 0);
  EXPECT(memcmp(again.data, plain.data, w.size() * width) == 0);

  // The same from a packed checkpoint's arrays: rows of whole 64-bit words, values row after row.
  const int64_t file_width = (c.inputs + 63) / 64 * 8;
  Array file_mask(groups * 16 * file_width), file_values(kept * width), other_masks(groups * 16 * chunks * 4),
      other_values(kept * width + 64);
  memset(file_mask.data, 0, groups * 16 * file_width);
  for (int64_t at = 0, next = 0; at < c.outputs * c.inputs; at++) {
    if (w[at] == 0) continue;
    file_mask.data[at / c.inputs * file_width + at % c.inputs / 8] |= char(1 << at % c.inputs % 8);
    memcpy(file_values.data + width * next++, plain.data + width * at, width);
  }
  auto repack = [&] {
    return prunus_repack(c.isa, width, file_mask.as<uint8_t>(), file_width, file_values.data, kept, c.outputs, c.inputs,
                         starts.as<int64_t>(), other_masks.as<uint32_t>(), other_values.data, 2);
  };
  EXPECT(repack() == 0);
  EXPECT(memcmp(other_masks.data, masks.data, groups * 16 * chunks * 4) == 0);
  EXPECT(memcmp(other_values.data, values.data, kept * width) == 0);
  // Arrays that lie are refused: a bit more, a bit less, a start elsewhere, values that are not there.
  int64_t byte = int64_t(uniform() * double(groups * 16 * file_width));
  file_mask.data[byte] ^= 1 << 3;
  EXPECT(repack() == 2);
  file_mask.data[byte] ^= 1 << 3;
  int64_t liar = int64_t(uniform() * double(groups + 1)), lie = uniform() < 0.5 ? 1 : int64_t(1) << 40;
  starts.as<int64_t>()[liar] += lie;
  EXPECT(repack() == 2);
  EXPECT(prunus_check(masks.as<uint32_t>(), starts.as<int64_t>(), kept, c.outputs, c.inputs) == 2);
  starts.as<int64_t>()[liar] -= lie;
  EXPECT(prunus_check(masks.as<uint32_t>(), starts.as<int64_t>(), kept + 1, c.outputs, c.inputs) == 2);

  Array y(c.rows * c.outputs * out_width), y_plain(c.rows * c.outputs * out_width), y_alone(c.rows * c.outputs * out_width);
  auto product = [&](Array& to, bool sparse, int threads) {
    EXPECT(prunus_linear(c.isa, c.weights, c.activations, sparse ? masks.as<uint32_t>() : nullptr,
                         sparse ? values.data : plain.data, sparse ? starts.as<int64_t>() : nullptr, x.data, bias.data,
                         to.data, c.outputs, c.inputs, c.rows, threads) == 0);
  };
  product(y, true, 3), product(y_alone, true, 1), product(y_plain, false, 2);
  EXPECT(memcmp(y.data, y_alone.data, c.rows * c.outputs * out_width) == 0);
  EXPECT(memcmp(y.data, y_plain.data, c.rows * c.outputs * out_width) == 0);
  for (int64_t row = 0; row < c.rows; row++)
    for (int64_t output = 0; output < c.outputs; output++) {
      double sum = get(bias.data, c.activations, output);
      for (int64_t input = 0; input < c.inputs; input++)
        sum += w[output * c.inputs + input] * get(x.data, c.activations, row * c.inputs + input);
      // Sums of so small numbers are exact in float32: all that is left is the rounding of the result.
      double got = get(y.data, c.activations, row * c.outputs + output);
      EXPECT(std::fabs(got - sum) <= EPSILON[c.activations] * std::fabs(sum));
    }
}

// Callers at the same time, each with more threads than the pool gives two of them.
void* caller(void* which) {
  for (int turn = 0; turn < 20; turn++) {
    std::vector<uint16_t> w(300 * 700, 0x3f80), x(700, 0x3f80), y(300);  // ones
    for (int i = 0; i < 5; i++) {
      EXPECT(prunus_linear(1, BF16, BF16, nullptr, w.data(), nullptr, x.data(), nullptr, y.data(), 300, 700, 1, 3) == 0);
      for (uint16_t number : y) EXPECT(number == 0x442f);  // 700
    }
  }
  return which;
}

// The k smallest become zero: none that stays is smaller, and of those that equal the greatest that went the first went.
void check_smallest(int64_t count, int64_t k, int levels) {
  Array from(count * 2), to(count * 2);
  auto size = [](uint16_t number) { return number & 0x7fff; };
  auto *before = from.as<uint16_t>(), *after = to.as<uint16_t>();
  for (int64_t i = 0; i < count; i++) before[i] = uint16_t(1 + int(uniform() * levels) + (uniform() < 0.5 ? 0x8000 : 0));
  int status = prunus_zero_smallest(before, count, k, 0x7f80, after);
  if (status == 1) return;  // this processor has no AVX2
  EXPECT(status == 0);
  int64_t zeros = 0;
  int greatest = 0, last_that_went = -1, first_that_stayed = 1 << 16;
  for (int64_t i = 0; i < count; i++) {
    EXPECT(after[i] == 0 || after[i] == before[i]);
    zeros += after[i] == 0;
    if (after[i] == 0 && size(before[i]) > greatest) greatest = size(before[i]);
  }
  for (int64_t i = 0; i < count; i++) {
    EXPECT(after[i] == 0 || size(before[i]) >= greatest);
    if (size(before[i]) != greatest) continue;
    if (after[i] == 0) last_that_went = int(i);
    if (after[i] != 0 && i < first_that_stayed) first_that_stayed = int(i);
  }
  EXPECT(zeros == k && last_that_went < first_that_stayed);
  before[count - 1] = 0x7f81;
  EXPECT(prunus_zero_smallest(before, count, k, 0x7f80, after) == 2);
}

}  // namespace

int main() {
  const int64_t shapes[][2] = {{1, 1}, {5, 31}, {16, 32}, {17, 33}, {31, 515}, {64, 512}, {33, 1100}};
  const double sparsities[] = {0, 0.3, 0.5, 0.9, 1};
  int cases = 0;
  for (int isa = 1; isa <= prunus_isa(); isa++)
    for (int weights = BF16; weights <= FP32; weights++)
      for (int activations = BF16; activations <= FP32; activations++)
        for (auto& shape : shapes) {
          const int rows[] = {1 + cases % 8, 9 + cases % 23};  // a few, many
          for (int count : rows) check({isa, weights, activations, shape[0], shape[1], count, sparsities[cases % 5]});
          cases++;
        }
  if (prunus_isa() > 0) {
    pthread_t threads[4];
    for (auto& thread : threads) EXPECT(pthread_create(&thread, nullptr, caller, nullptr) == 0);
    for (auto& thread : threads) EXPECT(pthread_join(thread, nullptr) == 0);
#ifndef __SANITIZE_THREAD__  // which does not go on after a fork
    pid_t child = fork();
    if (child == 0) {
      caller(nullptr);
      _exit(0);
    }
    int status = 1;
    EXPECT(waitpid(child, &status, 0) == child && status == 0);
#endif
    caller(nullptr);
  }
  if (prunus_isa() > 0) check({prunus_isa(), BF16, BF16, 70, 4200, 50, 0.5});  // several spans, panels and ranges
  for (int64_t count : {1, 15, 16, 17, 4096, 4100, 9000, 50000})
    for (int levels : {1, 3, 1000, 0x7f7f})
      for (int64_t k : {int64_t(1), (count + 1) / 2, count}) check_smallest(count, k, levels);
  printf("%d products on %d instruction sets\n", 2 * cases + 1, prunus_isa());
}
