// y = W x for a sparse W, as every Linear computes it when a token is decoded (few rows of x) or a prompt is read (many).
//
// Decoding reads each weight once per token, so memory bandwidth limits its speed. W is stored as one bit per weight and
// the values of the kept weights: at 50 % sparsity in 16 bits that is 1.125 bytes per weight instead of 2. Weights are
// expanded in registers just before they are multiplied. The file has a C ABI and needs neither Python, torch, OpenMP
// nor the C++ runtime; the instruction set is chosen at run time.
//
// Layout. W has O outputs (rows) and I inputs (columns). Its smallest unit is a chunk: 32 columns of one row, described
// by a 32-bit mask whose bit k stands for column k. Masks and values are stored in the order in which the kernel reads
// them,
//
//     group (16 rows) > tile (up to 32 chunks) > quad (4 rows) > chunk > row,
//
// so that each is one sequential stream, which hardware prefetchers can follow, and so that a tile of x stays in the L1
// cache while it is multiplied by the 16 rows of a group. Masks of padding rows and columns are 0.
//   masks   uint32, groups * 16 * chunks
//   values  bfloat16, float16 or float32: the weights whose bit is 1, then at least 64 bytes of padding (PADDING in
//           weight.py), because whole vectors are loaded before the mask selects from them
//   starts  int64, groups + 1: the index in values of each group's first value, and last the number of values
// A bit is 0 only where the weight is +0.0 (all bits zero), so that -0.0 and NaN are kept, as in packed checkpoints.
//
// Every output is summed by one thread in a fixed order. Results therefore do not depend, bit by bit, on the number of
// threads nor, with a W in this layout, on the number of rows of x: a prompt yields the same numbers as decoding.
//
// A plain W (dense, row-major) is read without packing. Where the processor has AMX, its tiles multiply a bfloat16 W by
// more than a few rows of x; a float32 x is split into three bfloat16 parts, so that products are those of float32.
//
// The loops are written once and compiled for each instruction set: the file includes itself, see "the loops" below.

#ifndef LOOPS_FOR

#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {
// Instruction sets, the preferred ones last. NOTHING: the kernel cannot run on this processor.
enum Isa { NOTHING = 0, AVX2 = 1, AVX512 = 2, AVX512BF16 = 3, AMX = 4 };
// Storage types of numbers. Sums are always float32.
enum Kind { BF16 = 0, FP16 = 1, FP32 = 2 };
enum Status { OK = 0, UNSUPPORTED = 1, BAD_ARRAYS = 2, NO_MEMORY = 3 };
}  // namespace

#if defined(__x86_64__) && defined(__linux__)

#include <dlfcn.h>
#include <immintrin.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__clang__) ? __clang_major__ >= 12 : __GNUC__ >= 11  // compilers that know AMX
#define HAS_AMX
#endif

namespace {

// MAX_DECODED: with at most so many rows of x, a token is decoded for each; with more, a prompt is read.
constexpr int CHUNK = 32, TILE = 32, QUAD = 4, GROUP = 16, MAX_ROWS = 8, MAX_DECODED = 64;
// For many rows of x. PANEL_BYTES, PANEL_GROUPS: the largest part of W that is expanded at a time; it fits in the L2
// cache with room to spare. SLAB_BYTES: the largest part of x that is prepared at a time; it fits in the L3 cache.
constexpr int64_t PANEL_BYTES = 1 << 19, PANEL_GROUPS = 16, SLAB_BYTES = 1 << 23;
// Prefetch distances in bytes. That of values is larger than that of masks, because values take more bytes per chunk.
constexpr int VALUES_AHEAD = 4096, TWICE_AHEAD = 8192, MASKS_AHEAD = 1024, PLAIN_AHEAD = 2048;

// Bit patterns as distinct types, so that overloads can tell them apart.
struct bf16 { uint16_t bits; };
struct fp16 { uint16_t bits; };
using fp32 = float;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Chunks are divided evenly among tiles, since the overhead of a tile of one or two chunks would exceed its work.
inline int64_t tile_start(int64_t tile, int64_t tiles, int64_t chunks) { return chunks * tile / tiles; }

inline float widen(bf16 number) {
  uint32_t bits = uint32_t(number.bits) << 16;
  float wide;
  memcpy(&wide, &bits, 4);
  return wide;
}

inline bf16 narrow(float wide) {  // rounds to nearest, ties to even; NaN stays NaN
  uint32_t bits;
  memcpy(&bits, &wide, 4);
  if ((bits & 0x7fffffff) > 0x7f800000) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// ---------------------------------------------------------------------------------------------------------- threads
//
// For few rows the calling thread works too. It waits only for ranges that a worker has taken, never for a worker that
// is still asleep. An OpenMP team would end every call in a barrier over all threads, which on shared cores costs a time
// slice of the scheduler, some milliseconds, for each Linear.
//
// For many rows (a prompt) torch's OpenMP team does the work, as in torch's own product, in spite of that barrier.
// Between Linears torch uses this team for its other operations, and after each of them the team's threads spin for some
// milliseconds, on the processors that threads of our own would need.

using Work = void (*)(const void* job, int64_t first, int64_t last);

struct Pool {
  // Generation of the job (32 bits), its number of units (16), the first unit that no thread has taken (16). They share
  // one word, so that a worker that wakes up late cannot take units of a job that it has not seen: its exchange fails.
  std::atomic<uint64_t> ticket{0};
  std::atomic<int64_t> done{0};
  std::atomic<bool> busy{false};  // whether a caller is using the pool
  std::atomic<int> sleepers{0}, threads{1};
  // The current job; changed only while no unit of any job is in progress.
  Work work = nullptr;
  const void* job = nullptr;
  int64_t size = 0, step = 1;  // a unit is a range of `step` indices out of `size`
  int workers = 0;
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
  pthread_cond_t wake = PTHREAD_COND_INITIALIZER;
};

// Never destroyed, because workers may read it until the process ends.
alignas(Pool) char pool_memory[sizeof(Pool)];
Pool* pool = nullptr;
pthread_once_t pool_once = PTHREAD_ONCE_INIT;

// GOMP_parallel, to which compilers translate `#pragma omp parallel`: it calls `member` on the given number of threads.
// nullptr if the process has no OpenMP, or was forked, after which waiting for an OpenMP team may never end.
using Team = void (*)(void (*member)(void*), void* argument, unsigned threads, unsigned flags);
Team team = nullptr;
constexpr int64_t MAX_UNITS = 4096;
// How often a worker polls for the next job before it sleeps: for longer than the time between two Linears of a model.
constexpr int LOOKS = 4000;

// Also called in the child after a fork, where there are neither workers nor other callers.
void new_pool() {
  pool = new (static_cast<void*>(pool_memory)) Pool;
  team = nullptr;
}

void make_pool() {
  new_pool();
  team = reinterpret_cast<Team>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  pthread_atfork(nullptr, nullptr, new_pool);
}

inline uint32_t generation_of(uint64_t ticket) { return uint32_t(ticket >> 32); }

// Takes ranges of units of this generation and does them until none is left. Ranges are contiguous, so that each thread
// reads one stream, and become smaller as fewer units are left.
void take_units(uint32_t generation) {
  uint64_t ticket = pool->ticket.load(std::memory_order_acquire);
  for (;;) {
    int64_t units = ticket >> 16 & 0xffff, first = ticket & 0xffff;
    if (generation_of(ticket) != generation || first == units) return;
    int64_t share = (units - first) / (2 * int64_t(pool->threads.load(std::memory_order_relaxed)));
    int64_t last = first + (share > 0 ? share : 1);
    if (!pool->ticket.compare_exchange_weak(ticket, ticket - first + last, std::memory_order_acq_rel)) continue;
    // Until `done` is raised the caller of run waits, so the job exists.
    pool->work(pool->job, first * pool->step, smaller(last * pool->step, pool->size));
    pool->done.fetch_add(last - first, std::memory_order_release);
    ticket = pool->ticket.load(std::memory_order_acquire);
  }
}

void* worker(void*) {
  uint32_t seen = 0;
  for (;;) {
    uint32_t current = seen;
    for (int look = 0; look < LOOKS && current == seen; look++) {
      current = generation_of(pool->ticket.load(std::memory_order_acquire));
      _mm_pause();
    }
    if (current == seen) {
      pthread_mutex_lock(&pool->mutex);
      pool->sleepers.fetch_add(1);
      while ((current = generation_of(pool->ticket.load())) == seen) pthread_cond_wait(&pool->wake, &pool->mutex);
      pool->sleepers.fetch_sub(1);
      pthread_mutex_unlock(&pool->mutex);
    }
    seen = current;
    take_units(current);
  }
  return nullptr;
}

void team_member(void* generation) { take_units(*static_cast<const uint32_t*>(generation)); }

// Starts workers until there are `threads` threads including this one, and wakes those that sleep.
void wake_workers(int threads) {
  for (pthread_t thread; pool->workers < threads - 1; pool->workers++) {
    if (pthread_create(&thread, nullptr, worker, nullptr)) break;
    pthread_detach(thread);
  }
  if (pool->sleepers.load() > 0) {
    pthread_mutex_lock(&pool->mutex);
    pthread_cond_broadcast(&pool->wake);
    pthread_mutex_unlock(&pool->mutex);
  }
}

// Waits until `count` reaches `wanted`. The threads that raise it are running, so this spins first; it yields its
// processor only after LOOKS polls, when one of them has probably been preempted.
void wait_for(const std::atomic<int64_t>& count, int64_t wanted) {
  for (int look = 0; count.load(std::memory_order_acquire) < wanted; look++) {
    if (look < LOOKS) _mm_pause();
    else sched_yield();
  }
}

// Calls work(job, first, last) for ranges that partition [0, size), on up to `threads` threads including this one.
// Ranges are taken in ascending order. by_team: use OpenMP's threads, if there are any.
void run(Work work, const void* job, int64_t size, int threads, bool by_team = false) {
  if (threads > 1 && size >= 2 * threads) {
    pthread_once(&pool_once, make_pool);
    if (!pool->busy.exchange(true, std::memory_order_acquire)) {
      pool->work = work, pool->job = job, pool->size = size, pool->step = ceil_div(size, MAX_UNITS);
      pool->threads.store(threads, std::memory_order_relaxed);
      pool->done.store(0, std::memory_order_relaxed);
      uint64_t units = ceil_div(size, pool->step);
      uint32_t generation = generation_of(pool->ticket.load(std::memory_order_relaxed)) + 1;
      pool->ticket.store(uint64_t(generation) << 32 | units << 16);
      if (by_team && team) {
        team(team_member, &generation, unsigned(threads), 0);
      } else {
        wake_workers(threads);
        take_units(generation);
      }
      wait_for(pool->done, int64_t(units));
      pool->busy.store(false, std::memory_order_release);
      return;
    }
    // Another thread of the program is using the pool: this one does all its work alone.
  }
  work(job, 0, size);
}

// ------------------------------------------------------------------------------------------------------------- jobs

// The arguments of y = W x. x: (rows, inputs), y: (rows, outputs), both of kind `activations`; sums are float32.
struct Job {
  // W in the layout above; or `values` plain (dense, row-major), and masks and starts null.
  const uint32_t* masks;
  const void* values;
  const int64_t* starts;
  int64_t outputs, inputs, chunks;
  int rows, activations;
  const void* x;  // reordered for the loops: chunk > row > 32 columns, see prepare
  const void* bias;
  void* y;
};

// The arguments of y = W x for many rows, divided evenly into blocks of up to BLOCK rows: threads first prepare parts of
// x, and once all of x is prepared compute parts of y.
struct Many {
  Job job;           // of all rows; its x: block > chunk > row > 32 columns, see prepare_blocks
  const void* from;  // the caller's x
  void* to;          // the prepared x
  int64_t blocks, groups;
  Work prepare, multiply;  // prepare a range of blocks of x; multiply a range of groups of outputs
  int64_t x_parts, y_parts;
  std::atomic<int64_t>* prepared;  // number of parts of x that are prepared
  std::atomic<int>* status;
};

// Does parts [first, last): the first x_parts of all prepare x, the others compute y.
void some_parts(const void* described, int64_t first, int64_t last) {
  const Many& many = *static_cast<const Many*>(described);
  const int64_t x_last = smaller(last, many.x_parts);
  if (first < x_last) {
    many.prepare(&many, many.blocks * first / many.x_parts, many.blocks * x_last / many.x_parts);
    many.prepared->fetch_add(x_last - first, std::memory_order_release);
  }
  if (last > many.x_parts) {
    wait_for(*many.prepared, many.x_parts);  // the threads that took the other parts of x are working on them
    const int64_t y_first = first < many.x_parts ? 0 : first - many.x_parts, y_last = last - many.x_parts;
    many.multiply(&many, many.groups * y_first / many.y_parts, many.groups * y_last / many.y_parts);
  }
}

// The arguments of conversions between a plain W, the layout above and the arrays of a packed checkpoint (docs/format.md).
struct Move {
  void* plain;
  const uint8_t* file_mask;  // row-major, file_width bytes per row
  const void* file_values;
  int64_t file_width;
  int64_t outputs, inputs, chunks;
  int64_t* starts;
  uint32_t* masks;
  void* values;
  int64_t first;  // unpack: the group with which plain begins
};

// The functions that are compiled for each instruction set. Loops are indexed by the kind of the weights and the number
// of rows of x less one; there are Movers for 2-byte and for 4-byte weights.
struct Loops {
  void (*prepare)(const Job& job, const void* x, void* to);
  Work sparse[3][MAX_ROWS], dense[3][MAX_ROWS];
  int block;    // largest number of rows of x in a block
  int x_width;  // bytes per number of the prepared x
  Work prepare_blocks, many[3];
};
struct Movers { Work count, pack, repack, unpack; };

// The sums of a group, output > row, each in a vector of up to 64 bytes.
struct alignas(64) Sums { char bytes[GROUP * MAX_ROWS * 64]; };

// Aligned memory of the calling thread, for x and for a panel of W, freed when the thread ends; nullptr if there is not
// enough memory.
enum Purpose { PREPARED = 0, PANEL = 1 };
struct Scratch { size_t size[2]; char* bytes[2]; };

void free_scratch(void* scratch) {
  free(static_cast<Scratch*>(scratch)->bytes[PREPARED]);
  free(static_cast<Scratch*>(scratch)->bytes[PANEL]);
  free(scratch);
}

pthread_key_t scratch_key;
pthread_once_t scratch_once = PTHREAD_ONCE_INIT;

void make_scratch_key() { pthread_key_create(&scratch_key, free_scratch); }

char* scratch(Purpose purpose, size_t size) {
  pthread_once(&scratch_once, make_scratch_key);
  auto* held = static_cast<Scratch*>(pthread_getspecific(scratch_key));
  if (!held) {
    held = static_cast<Scratch*>(calloc(1, sizeof(Scratch)));
    if (!held || pthread_setspecific(scratch_key, held)) return free(held), nullptr;
  }
  if (held->size[purpose] < size) {
    constexpr size_t HUGE_PAGE = 1 << 21;
    free(held->bytes[purpose]);
    held->bytes[purpose] = nullptr, held->size[purpose] = 0;
    if (size >= HUGE_PAGE) size = (size + HUGE_PAGE - 1) / HUGE_PAGE * HUGE_PAGE;
    void* bytes = nullptr;
    if (posix_memalign(&bytes, size < HUGE_PAGE ? 64 : HUGE_PAGE, size)) return nullptr;
    if (size >= HUGE_PAGE) madvise(bytes, size, MADV_HUGEPAGE);
    held->bytes[purpose] = static_cast<char*>(bytes), held->size[purpose] = size;
  }
  return held->bytes[purpose];
}

// The number of one bits in `size` bytes.
int64_t ones(const uint8_t* bytes, int64_t size) {
  int64_t count = 0, at = 0;
  for (uint64_t word; at + 8 <= size; at += 8) {
    memcpy(&word, bytes + at, 8);
    count += __builtin_popcountll(word);
  }
  for (; at < size; at++) count += __builtin_popcount(bytes[at]);
  return count;
}

// Shuffle indices that expand the values of 8 columns, for each of the 256 masks. halves, for 16-bit values: the index of
// the loaded byte for each byte of the result. words, for 32-bit values: the index of the loaded value for each column.
// 0x80 stands for zero in both.
struct Tables {
  alignas(64) uint8_t halves[256][16];
  alignas(64) uint8_t words[256][8];
  constexpr Tables() : halves(), words() {
    for (int mask = 0; mask < 256; mask++) {
      for (int column = 0, next = 0; column < 8; column++) {
        bool kept = mask >> column & 1;
        halves[mask][2 * column] = uint8_t(kept ? 2 * next : 0x80);
        halves[mask][2 * column + 1] = uint8_t(kept ? 2 * next + 1 : 0x80);
        words[mask][column] = uint8_t(kept ? next : 0x80);
        next += kept;
      }
    }
  }
};
constexpr Tables TABLES;

}  // namespace

#define EVERY_KIND 1
#define ONLY_BF16 2
#define INLINE static inline __attribute__((always_inline))
#define PRAGMA(...) _Pragma(#__VA_ARGS__)
// Functions between BEGIN_TARGET and END_TARGET are compiled for these features of the processor.
#ifdef __clang__
#define UNROLL PRAGMA(clang loop unroll(full))
#define UNROLL16 UNROLL
#define BEGIN_TARGET(features) PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define END_TARGET PRAGMA(clang attribute pop)
#else
#define UNROLL PRAGMA(GCC unroll 8)
#define UNROLL16 PRAGMA(GCC unroll 16)
#define BEGIN_TARGET(features) PRAGMA(GCC push_options) PRAGMA(GCC target features)
#define END_TARGET PRAGMA(GCC pop_options)
#endif

// ------------------------------------------------------------------------------------ primitives of instruction sets
//
// X: the type of a number of the prepared x. Vector: partial sums of one output and one row. Weights: LANES weights,
// converted for the multiplication. SUMS: the number of Vectors for which there are registers beside those needed
// otherwise. BLOCK: the number of rows of x that are multiplied together when there are many.
// load_sparse: LANES weights from their mask and the address of their first value; it loads up to 64 bytes, more than
// it needs.
// load_dense: LANES weights from a dense row.

BEGIN_TARGET("avx2,fma,f16c,popcnt")
namespace avx2 {
namespace {
using X = float;
using Vector = __m256;
using Weights = __m256;
constexpr int LANES = 8, SUMS = 8, BLOCK = 3;

INLINE Vector zero() { return _mm256_setzero_ps(); }
INLINE Vector load_sums(const char* from) { return _mm256_load_ps((const float*)from); }
INLINE void store_sums(char* to, Vector sums) { _mm256_store_ps((float*)to, sums); }
INLINE Weights load_x(const X* x) { return _mm256_load_ps(x); }
INLINE void store_x(X* to, Weights weights) { _mm256_store_ps(to, weights); }
INLINE Vector multiply(Vector sums, Weights weights, Weights x) { return _mm256_fmadd_ps(weights, x, sums); }
INLINE float total(Vector sums) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
INLINE __m128 halves(Vector sums) { return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1)); }
template <int B>
INLINE void totals(const Vector (&sum)[QUAD][B], float* to, int64_t stride) {
  UNROLL for (int row = 0; row < B; row++) {
    __m128 a = halves(sum[0][row]), b = halves(sum[1][row]), c = halves(sum[2][row]), d = halves(sum[3][row]);
    __m128 ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
    __m128 cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    _mm_store_ps(to + row * stride, _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab)));
  }
}
INLINE Weights widened(__m128i bits, bf16) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
}
INLINE Weights widened(__m128i bits, fp16) { return _mm256_cvtph_ps(bits); }
INLINE __m128i spread(uint32_t mask, const void* values) {
  return _mm_shuffle_epi8(_mm_loadu_si128((const __m128i*)values), _mm_load_si128((const __m128i*)TABLES.halves[mask]));
}
INLINE __m256 spread_words(uint32_t mask, const void* values) {
  __m256i from = _mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i*)TABLES.words[mask]));  // negative where zero
  __m256 moved = _mm256_permutevar8x32_ps(_mm256_loadu_ps((const float*)values), from);
  return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_srai_epi32(from, 31)), moved);
}
template <class V>
INLINE Weights load_sparse(uint32_t mask, const V* values) { return widened(spread(mask, values), V()); }
INLINE Weights load_sparse(uint32_t mask, const fp32* values) { return spread_words(mask, values); }
template <class V>
INLINE Weights load_dense(const V* row) { return widened(_mm_loadu_si128((const __m128i*)row), V()); }
INLINE Weights load_dense(const fp32* row) { return _mm256_loadu_ps(row); }
INLINE void expand(uint32_t mask, const uint16_t* values, uint16_t* to) {
  UNROLL for (int eighth = 0; eighth < 4; eighth++, mask >>= 8) {
    _mm_storeu_si128((__m128i*)(to + 8 * eighth), spread(mask & 0xff, values));
    values += _mm_popcnt_u32(mask & 0xff);
  }
}
INLINE void expand(uint32_t mask, const uint32_t* values, uint32_t* to) {
  UNROLL for (int eighth = 0; eighth < 4; eighth++, mask >>= 8) {
    _mm256_storeu_ps((float*)(to + 8 * eighth), spread_words(mask & 0xff, values));
    values += _mm_popcnt_u32(mask & 0xff);
  }
}
template <class Bits>
INLINE uint32_t compress(const Bits* chunk, Bits* to) {
  // There is no branch on the weight, because it would be unpredictable.
  Bits kept[CHUNK + 1];
  uint32_t mask = 0;
  int count = 0;
  for (int column = 0; column < CHUNK; column++) {
    kept[count] = chunk[column];
    mask |= uint32_t(chunk[column] != 0) << column;
    count += chunk[column] != 0;
  }
  memcpy(to, kept, count * sizeof(Bits));
  return mask;
}
}  // namespace
#define LOOPS_FOR EVERY_KIND
#include "kernel.cpp"
#undef LOOPS_FOR
}  // namespace avx2
END_TARGET

BEGIN_TARGET("avx2,fma,f16c,popcnt,avx512f")
namespace avx512 {
namespace {
using X = float;
using Vector = __m512;
using Weights = __m512;
constexpr int LANES = 16, SUMS = 16, BLOCK = 6;

INLINE Vector zero() { return _mm512_setzero_ps(); }
INLINE Vector load_sums(const char* from) { return _mm512_load_ps(from); }
INLINE void store_sums(char* to, Vector sums) { _mm512_store_ps(to, sums); }
INLINE Weights load_x(const X* x) { return _mm512_load_ps(x); }
INLINE void store_x(X* to, Weights weights) { _mm512_store_ps(to, weights); }
INLINE Vector multiply(Vector sums, Weights weights, Weights x) { return _mm512_fmadd_ps(weights, x, sums); }
INLINE float total(Vector sums) { return _mm512_reduce_add_ps(sums); }
// a and b have four parts of 128 bits each; returns a0 + a2, a1 + a3, b0 + b2, b1 + b3.
INLINE __m512 add_halves(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_mask_blend_ps(0xff00, a, b), _mm512_shuffle_f32x4(a, b, 0x4e));
}
// ab and cd: the results of add_halves for (a, b) and (c, d). Returns the sums of all parts of a, c, b and d.
INLINE __m512 add_quarters(__m512 ab, __m512 cd) {
  const __m512i others = _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
  return _mm512_add_ps(_mm512_mask_blend_ps(0xf0f0, ab, cd), _mm512_permutex2var_ps(ab, others, cd));
}
// add_pairs and add_singles do the same within each part of 128 bits.
INLINE __m512 add_pairs(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_mask_blend_ps(0xcccc, a, b), _mm512_shuffle_ps(a, b, 0x4e));
}
INLINE __m512 add_singles(__m512 ab, __m512 cd) {
  const __m512i others = _mm512_setr_epi32(1, 16, 3, 18, 5, 20, 7, 22, 9, 24, 11, 26, 13, 28, 15, 30);
  return _mm512_add_ps(_mm512_mask_blend_ps(0xaaaa, ab, cd), _mm512_permutex2var_ps(ab, others, cd));
}
template <int B>
INLINE void totals(const Vector (&sum)[QUAD][B], float* to, int64_t stride) {
  __m512 row_of[B];  // for outputs 0, 2, 1, 3 in this order, four numbers each
  UNROLL for (int row = 0; row < B; row++)
    row_of[row] = add_quarters(add_halves(sum[0][row], sum[1][row]), add_halves(sum[2][row], sum[3][row]));
  UNROLL for (int row = 0; row < B; row += 4) {
    int one = row + 1 < B ? row + 1 : row, two = row + 2 < B ? row + 2 : row, three = row + 3 < B ? row + 3 : row;
    __m512 first = add_pairs(row_of[row], row_of[one]), second = two > row ? add_pairs(row_of[two], row_of[three]) : first;
    const __m512i by_row = _mm512_setr_epi32(0, 8, 4, 12, 2, 10, 6, 14, 1, 9, 5, 13, 3, 11, 7, 15);
    __m512 all = _mm512_permutexvar_ps(by_row, add_singles(first, second));
    _mm_store_ps(to + row * stride, _mm512_castps512_ps128(all));
    if (row + 1 < B) _mm_store_ps(to + (row + 1) * stride, _mm512_extractf32x4_ps(all, 1));
    if (row + 2 < B) _mm_store_ps(to + (row + 2) * stride, _mm512_extractf32x4_ps(all, 2));
    if (row + 3 < B) _mm_store_ps(to + (row + 3) * stride, _mm512_extractf32x4_ps(all, 3));
  }
}
INLINE Weights widened(__m256i bits, bf16) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}
INLINE Weights widened(__m256i bits, fp16) { return _mm512_cvtph_ps(bits); }
template <class V>
INLINE Weights load_dense(const V* row) { return widened(_mm256_loadu_si256((const __m256i*)row), V()); }
INLINE Weights load_dense(const fp32* row) { return _mm512_loadu_ps(row); }
// A zero that the compiler does not recognise as a constant. On Zen 5 (and perhaps earlier) vpexpand depends on the old
// value of the register that it writes, even when masked lanes are zeroed; with the same register for every row a chunk
// takes 5 cycles instead of 1.
INLINE __m512i fresh() {
  __m512i zero;
  __asm__ volatile("vpxord %0, %0, %0" : "=v"(zero));
  return zero;
}
// AVX-512F can expand only 32-bit values, so 16-bit ones are widened before they are expanded.
template <class V>
INLINE Weights load_sparse(uint32_t mask, const V* values) {
  return _mm512_mask_expand_ps(_mm512_castsi512_ps(fresh()), __mmask16(mask), load_dense(values));
}
using avx2::compress;
using avx2::expand;
}  // namespace
#define LOOPS_FOR EVERY_KIND
#include "kernel.cpp"
#undef LOOPS_FOR
}  // namespace avx512
END_TARGET

BEGIN_TARGET("avx2,fma,f16c,popcnt,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,avx512bf16")
namespace avx512bf16 {
namespace {
using X = bf16;
using Vector = __m512;
using Weights = __m512i;  // 32 bfloat16; the processor adds the products of neighbouring columns in pairs
constexpr int LANES = 32, SUMS = 16, BLOCK = 6;

using avx512::load_sums, avx512::store_sums, avx512::total, avx512::totals, avx512::zero;
INLINE Weights load_x(const X* x) { return _mm512_load_si512(x); }
INLINE void store_x(X* to, Weights weights) { _mm512_store_si512(to, weights); }
INLINE Vector multiply(Vector sums, Weights weights, Weights x) {
  return _mm512_dpbf16_ps(sums, (__m512bh)weights, (__m512bh)x);
}
INLINE Weights load_dense(const bf16* row) { return _mm512_loadu_si512(row); }
INLINE Weights load_sparse(uint32_t mask, const bf16* values) {
  return _mm512_mask_expand_epi16(avx512::fresh(), mask, load_dense(values));
}
INLINE void expand(uint32_t mask, const uint16_t* values, uint16_t* to) {
  _mm512_storeu_si512(to, _mm512_mask_expand_epi16(avx512::fresh(), mask, _mm512_loadu_si512(values)));
}
INLINE void expand(uint32_t mask, const uint32_t* values, uint32_t* to) {
  _mm512_storeu_si512(to, _mm512_mask_expand_epi32(avx512::fresh(), __mmask16(mask), _mm512_loadu_si512(values)));
  values += _mm_popcnt_u32(mask & 0xffff);
  _mm512_storeu_si512(to + 16,
                      _mm512_mask_expand_epi32(avx512::fresh(), __mmask16(mask >> 16), _mm512_loadu_si512(values)));
}
INLINE uint32_t compress(const uint16_t* chunk, uint16_t* to) {
  // Compress in registers, then a masked store, because the compressing store is microcoded (slow) on Zen 4.
  __m512i weights = _mm512_loadu_si512(chunk);
  __mmask32 mask = _mm512_test_epi16_mask(weights, weights);
  uint32_t present = _bzhi_u32(~0u, _mm_popcnt_u32(mask));
  _mm512_mask_storeu_epi16(to, present, _mm512_mask_compress_epi16(avx512::fresh(), mask, weights));
  return mask;
}
INLINE uint32_t compress(const uint32_t* chunk, uint32_t* to) { return avx2::compress(chunk, to); }
}  // namespace
#define LOOPS_FOR ONLY_BF16
#include "kernel.cpp"
#undef LOOPS_FOR
}  // namespace avx512bf16
END_TARGET

// --------------------------------------------------------------------------------------------------------------- AMX
//
// A tile register holds 16 rows of 64 bytes. One instruction multiplies a tile of W (16 outputs x 32 columns, as it lies
// in memory) by a tile of x (32 columns x 16 rows of x, columns in pairs) and adds to a tile of sums (16 outputs x 16
// rows, float32). A number of a float32 x is exactly the sum of three bfloat16 numbers of 8 bits each; the products of
// these parts with a bfloat16 weight are exact, and are summed in float32, each part by itself, before the three sums are
// added. So the result is as exact as products in float32. The processor takes subnormal bfloat16 numbers as zero.
//
// A panel of W is read from memory once, into the L2 cache, and multiplied by 16 rows of x after the other, while the
// next one is prefetched. The order of an output's sums depends neither on threads nor on the number of rows.
//
// Compilers do not know that some of these intrinsics read or write memory; empty asm statements tell them.

#ifdef HAS_AMX
BEGIN_TARGET("avx2,fma,f16c,popcnt,bmi2,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi2,avx512bf16,amx-tile,amx-bf16")
namespace amx {
namespace {

constexpr int SIDE = 16, TILE_BYTES = 1024, LEAST_ROWS = 4, PARTS = 3;
constexpr int64_t W_BYTES = 1 << 18;  // of a panel

// Here Many has blocks of 16 rows; the order of its prepared x is block > part > chunk > tile.
INLINE int64_t parts_of(const Job& job) { return job.activations == FP32 ? PARTS : 1; }

// Transposes 16 x 16 words.
INLINE void transpose(__m512i (&row)[SIDE]) {
  __m512i pair[SIDE], four[SIDE];
  UNROLL16 for (int i = 0; i < SIDE; i += 2) {
    pair[i] = _mm512_unpacklo_epi32(row[i], row[i + 1]);
    pair[i + 1] = _mm512_unpackhi_epi32(row[i], row[i + 1]);
  }
  UNROLL16 for (int i = 0; i < SIDE; i += 4) {
    four[i] = _mm512_unpacklo_epi64(pair[i], pair[i + 2]);
    four[i + 1] = _mm512_unpackhi_epi64(pair[i], pair[i + 2]);
    four[i + 2] = _mm512_unpacklo_epi64(pair[i + 1], pair[i + 3]);
    four[i + 3] = _mm512_unpackhi_epi64(pair[i + 1], pair[i + 3]);
  }
  UNROLL16 for (int i = 0; i < 4; i++) {
    __m512i low = _mm512_shuffle_i32x4(four[i], four[i + 4], 0x88), high = _mm512_shuffle_i32x4(four[i], four[i + 4], 0xdd);
    __m512i low2 = _mm512_shuffle_i32x4(four[i + 8], four[i + 12], 0x88);
    __m512i high2 = _mm512_shuffle_i32x4(four[i + 8], four[i + 12], 0xdd);
    row[i] = _mm512_shuffle_i32x4(low, low2, 0x88);
    row[i + 8] = _mm512_shuffle_i32x4(low, low2, 0xdd);
    row[i + 4] = _mm512_shuffle_i32x4(high, high2, 0x88);
    row[i + 12] = _mm512_shuffle_i32x4(high, high2, 0xdd);
  }
}

// The upper halves of 32 float32 numbers, as 32 bfloat16.
INLINE __m512i upper_halves(__m512 low, __m512 high) {
  const __m512i odd = _mm512_set_epi16(63, 61, 59, 57, 55, 53, 51, 49, 47, 45, 43, 41, 39, 37, 35, 33, 31, 29, 27, 25,
                                       23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1);
  return _mm512_permutex2var_epi16(_mm512_castps_si512(low), odd, _mm512_castps_si512(high));
}

// What is left of a number without its upper half: exact, and 0 for infinities. NaN stays NaN in its upper half, since it
// is made quiet.
INLINE __m512 quiet(__m512 numbers) {
  __mmask16 is_nan = _mm512_cmp_ps_mask(numbers, numbers, _CMP_UNORD_Q);
  return _mm512_mask_mov_ps(numbers, is_nan, _mm512_castsi512_ps(_mm512_set1_epi32(0x7fc00000)));
}
INLINE __m512 without_upper(__m512 numbers) {
  __m512 upper = _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(numbers), _mm512_set1_epi32(int(0xffff0000))));
  __mmask16 finite = _mm512_cmp_ps_mask(_mm512_abs_ps(numbers), _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
  return _mm512_maskz_sub_ps(finite, numbers, upper);
}

// Prepares blocks [first, last) of x.
void prepare(const void* described, int64_t first, int64_t last) {
  const Many& many = *static_cast<const Many*>(described);
  const Job& job = many.job;
  const int64_t part_bytes = job.chunks * TILE_BYTES, parts = parts_of(job);
  for (int64_t block = first; block < last; block++) {
    const int64_t rows = smaller(job.rows - block * SIDE, SIDE);
    char* to = static_cast<char*>(many.to) + block * parts * part_bytes;
    for (int64_t chunk = 0; chunk < job.chunks; chunk++, to += TILE_BYTES) {
      const int64_t at = chunk * CHUNK, present = smaller(job.inputs - at, CHUNK);
      const __mmask32 columns = uint32_t(~uint64_t(0) >> (64 - present));
      __m512i part[PARTS][SIDE];
      for (int64_t row = 0; row < SIDE; row++) {
        if (row >= rows) {
          part[0][row] = part[1][row] = part[2][row] = _mm512_setzero_si512();
        } else if (parts == 1) {
          const uint16_t* x = static_cast<const uint16_t*>(many.from) + (block * SIDE + row) * job.inputs + at;
          part[0][row] = _mm512_maskz_loadu_epi16(columns, x);
        } else {
          const float* x = static_cast<const float*>(many.from) + (block * SIDE + row) * job.inputs + at;
          __m512 low = quiet(_mm512_maskz_loadu_ps(__mmask16(columns), x));
          __m512 high = quiet(_mm512_maskz_loadu_ps(__mmask16(columns >> 16), x + CHUNK / 2));
          for (int i = 0; i < PARTS; i++) {
            part[i][row] = upper_halves(low, high);
            low = without_upper(low), high = without_upper(high);
          }
        }
      }
      for (int64_t i = 0; i < parts; i++) {
        transpose(part[i]);
        for (int row = 0; row < SIDE; row++) _mm512_store_si512(to + i * part_bytes + row * 64, part[i][row]);
      }
    }
  }
}

// The tiles of a group of 16 outputs of W, also where it has fewer rows or ends within a chunk.
struct Weights {
  const char* from;
  int64_t stride, rows, inputs;
  char* copy;  // of one tile
};

// The address and stride of the tile of a chunk; nothing beyond the end of a row is read.
INLINE const char* tile_of(const Weights& weights, int64_t chunk, int64_t& stride) {
  const char* at = weights.from + chunk * (CHUNK * 2);
  const int64_t bytes = smaller((weights.inputs - chunk * CHUNK) * 2, 64);
  stride = weights.stride;
  if (weights.rows == SIDE && bytes == 64) return at;
  memset(weights.copy, 0, TILE_BYTES);
  for (int64_t row = 0; row < weights.rows; row++) memcpy(weights.copy + row * 64, at + row * stride, bytes);
  stride = 64;
  __asm__ volatile("" : : "r"(weights.copy) : "memory");
  return weights.copy;
}

// sums of 16 outputs with 3 tiles of x: tiles 0 to 2 for the first group of outputs, 3 to 5 for the second.
INLINE void multiply(const Weights& first, const Weights& second, bool both, const char* x, int64_t x_stride, int64_t used,
                     int64_t chunks, const char*& ahead, int64_t step, const char* end, char* sums) {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_zero(4);
  _tile_zero(5);
  for (int64_t chunk = 0; chunk < chunks; chunk++, x += TILE_BYTES) {
    for (const char* until = ahead + step < end ? ahead + step : end; ahead < until; ahead += 64)
      _mm_prefetch(ahead, _MM_HINT_T1);
    int64_t stride;
    const char* weights = tile_of(first, chunk, stride);
    _tile_loadd(6, weights, stride);
    _tile_loadd(7, x, 64);
    _tile_dpbf16ps(0, 6, 7);
    if (used > 1) {
      _tile_loadd(7, x + x_stride, 64);
      _tile_dpbf16ps(1, 6, 7);
    }
    if (used > 2) {
      _tile_loadd(7, x + 2 * x_stride, 64);
      _tile_dpbf16ps(2, 6, 7);
    }
    if (!both) continue;
    weights = tile_of(second, chunk, stride);
    _tile_loadd(6, weights, stride);
    if (used > 2) _tile_dpbf16ps(5, 6, 7);
    if (used > 1) {
      _tile_loadd(7, x + x_stride, 64);
      _tile_dpbf16ps(4, 6, 7);
    }
    _tile_loadd(7, x, 64);
    _tile_dpbf16ps(3, 6, 7);
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + TILE_BYTES, 64);
  _tile_stored(2, sums + 2 * TILE_BYTES, 64);
  _tile_stored(3, sums + 3 * TILE_BYTES, 64);
  _tile_stored(4, sums + 4 * TILE_BYTES, 64);
  _tile_stored(5, sums + 5 * TILE_BYTES, 64);
  __asm__ volatile("" : : "r"(sums) : "memory");
}

// Writes the sums of 16 outputs and up to 16 rows, with the bias, in the dtype of x.
INLINE void put(const Job& job, int64_t output, int64_t row, __m512i (&sums)[SIDE]) {
  transpose(sums);
  const int64_t rows = smaller(job.rows - row, SIDE), outputs = smaller(job.outputs - output, SIDE);
  const __mmask16 present = __mmask16((1u << outputs) - 1);
  __m512 bias = _mm512_setzero_ps();
  if (job.bias && job.activations == FP32) {
    bias = _mm512_maskz_loadu_ps(present, static_cast<const float*>(job.bias) + output);
  } else if (job.bias) {
    __m256i bits = _mm256_maskz_loadu_epi16(present, static_cast<const uint16_t*>(job.bias) + output);
    bias = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
  }
  for (int64_t i = 0; i < rows; i++) {
    const int64_t at = (row + i) * job.outputs + output;
    __m512 number = _mm512_castsi512_ps(sums[i]);
    if (job.bias) number = _mm512_add_ps(number, bias);
    if (job.activations == FP32) {
      _mm512_mask_storeu_ps(static_cast<float*>(job.y) + at, present, number);
    } else {
      alignas(64) float wide[SIDE];
      _mm512_store_ps(wide, number);
      for (int64_t j = 0; j < outputs; j++) static_cast<bf16*>(job.y)[at + j] = narrow(wide[j]);
    }
  }
}

// Computes groups [first, last) of outputs.
void compute(const void* described, int64_t first, int64_t last) {
  const Many& many = *static_cast<const Many*>(described);
  const Job& job = many.job;
  alignas(64) char sums[2 * PARTS * TILE_BYTES], copies[2][TILE_BYTES];
  alignas(64) uint8_t palette[64] = {1};
  for (int tile = 0; tile < 8; tile++) palette[16 + 2 * tile] = 64, palette[48 + tile] = SIDE;
  __asm__ volatile("" : : "r"(palette) : "memory");
  _tile_loadconfig(palette);
  const char* values = static_cast<const char*>(job.values);
  const int64_t row_bytes = job.inputs * 2, part_bytes = job.chunks * TILE_BYTES;
  const int64_t pairs = ceil_div(last - first, 2), fitting = W_BYTES / (2 * GROUP * row_bytes);
  const int64_t panel = fitting < 1 ? 1 : smaller(fitting, pairs);
  const int64_t parts = parts_of(job), x_tiles = many.blocks * parts, steps = ceil_div(x_tiles, PARTS);
  for (int64_t pair = 0; pair < pairs; pair += panel) {
    const int64_t begin = first + 2 * pair, until = smaller(begin + 2 * panel, last);
    const char* ahead = values + smaller(until * GROUP, job.outputs) * row_bytes;
    const char* end = values + smaller(smaller(until + 2 * panel, last) * GROUP, job.outputs) * row_bytes;
    const int64_t lines = ceil_div(ceil_div(end - ahead, 64), steps * ceil_div(until - begin, 2) * job.chunks);
    for (int64_t tile = 0; tile < x_tiles; tile += PARTS) {
      const int64_t used = smaller(x_tiles - tile, PARTS);
      for (int64_t group = begin; group < until; group += 2) {
        const bool both = group + 1 < until;
        Weights weights[2];
        for (int i = 0; i < 2; i++) {
          const int64_t output = (group + i) * GROUP;
          weights[i] = {values + output * row_bytes, row_bytes, smaller(job.outputs - output, GROUP), job.inputs, copies[i]};
        }
        const char* x = static_cast<const char*>(many.to) + tile * part_bytes;
        multiply(weights[0], weights[1], both, x, part_bytes, used, job.chunks, ahead, lines * 64, end, sums);
        for (int i = 0; i < 1 + both; i++) {
          const char* of = sums + i * PARTS * TILE_BYTES;
          __m512i total[SIDE];
          if (parts == 1) {
            for (int64_t block = 0; block < used; block++) {
              for (int row = 0; row < SIDE; row++) total[row] = _mm512_load_si512(of + block * TILE_BYTES + row * 64);
              put(job, (group + i) * GROUP, (tile + block) * SIDE, total);
            }
          } else {
            for (int row = 0; row < SIDE; row++) {
              __m512 rest = _mm512_add_ps(_mm512_load_ps(of + TILE_BYTES + row * 64), _mm512_load_ps(of + 2 * TILE_BYTES + row * 64));
              __m512 most = _mm512_load_ps(of + row * 64);
              // An infinite weight times a part that is 0 is NaN: where the upper parts of x decide, the rest is left out.
              __mmask16 finite = _mm512_cmp_ps_mask(_mm512_abs_ps(most), _mm512_set1_ps(__builtin_inff()), _CMP_LT_OQ);
              total[row] = _mm512_castps_si512(_mm512_mask_add_ps(most, finite, most, rest));
            }
            put(job, (group + i) * GROUP, tile / PARTS * SIDE, total);
          }
        }
      }
    }
  }
  _tile_release();
}

// y = W x for a plain bfloat16 W and an x in bfloat16 or float32, one slab of x at a time. Returns a Status.
int many_rows(Job job, const void* x, int64_t rows, int threads) {
  const int64_t size = job.activations == FP32 ? 4 : 2, blocks = ceil_div(rows, SIDE);
  const int64_t block_bytes = parts_of(job) * job.chunks * TILE_BYTES;
  const int64_t fitting = SLAB_BYTES / block_bytes, at_once = smaller(blocks, fitting < 1 ? 1 : fitting);
  char* prepared = scratch(PREPARED, at_once * block_bytes);
  if (!prepared) return NO_MEMORY;
  char* y = static_cast<char*>(job.y);
  for (int64_t block = 0; block < blocks; block += at_once) {
    const int64_t row = block * SIDE;
    std::atomic<int64_t> parts_prepared{0};
    job.rows = int(smaller(rows - row, at_once * SIDE));
    job.y = y + row * job.outputs * size;
    Many many{};
    many.job = job, many.from = static_cast<const char*>(x) + row * job.inputs * size, many.to = prepared;
    many.blocks = ceil_div(job.rows, SIDE), many.groups = ceil_div(job.outputs, GROUP);
    many.prepare = prepare, many.multiply = compute, many.prepared = &parts_prepared;
    many.x_parts = smaller(many.blocks, threads);
    many.y_parts = smaller(ceil_div(job.outputs, 2 * GROUP), 8 * threads);
    run(some_parts, &many, many.x_parts + many.y_parts, threads, job.rows > MAX_DECODED);
  }
  return OK;
}

}  // namespace
}  // namespace amx
END_TARGET
#endif  // HAS_AMX

// ----------------------------------------------------------------------------------------- choice of instruction set

namespace {

// Whether the processor has AMX's bfloat16 products and the system lets this process use them, which it has to ask for.
bool amx_allowed() {
#ifdef HAS_AMX
  uint32_t a = 7, b, c = 0, d;
  __asm__("cpuid" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
  constexpr uint32_t AMX_BF16 = 1u << 22, AMX_TILE = 1u << 24;
  constexpr long REQUEST_PERMISSION = 0x1023, TILE_DATA = 18;
  return (d & AMX_BF16) && (d & AMX_TILE) && syscall(SYS_arch_prctl, REQUEST_PERMISSION, TILE_DATA) == 0;
#else
  return false;
#endif
}

int best_isa() {
  static int best = -1;
  if (best >= 0) return best;
  __builtin_cpu_init();
  auto avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
              __builtin_cpu_supports("popcnt");
  auto avx512 = avx2 && __builtin_cpu_supports("avx512f");
  auto dots = avx512 && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512vbmi2") && __builtin_cpu_supports("avx512bf16");
  return best = dots ? (amx_allowed() ? AMX : AVX512BF16) : avx512 ? AVX512 : avx2 ? AVX2 : NOTHING;
}

// The loops of an instruction set. bfloat16 dot products are used only where both W and x are bfloat16.
const Loops* loops_for(int isa, int weights, int activations) {
  if (isa < AVX2 || isa > best_isa()) return nullptr;
  if (isa >= AVX512BF16 && weights == BF16 && activations == BF16) return &avx512bf16::LOOPS;
  return isa == AVX2 ? &avx2::LOOPS : &avx512::LOOPS;
}

const Movers* movers_for(int isa, int width) {
  const Movers* all = isa >= AVX512BF16 ? avx512bf16::MOVERS : isa == AVX512 ? avx512::MOVERS : avx2::MOVERS;
  if (isa < AVX2 || isa > best_isa() || (width != 2 && width != 4)) return nullptr;
  return &all[width == 4];
}

// y = W x for many rows, one slab of x at a time. Returns a Status.
int many_rows(const Loops& loops, Job job, int weights, const void* x, int64_t rows, int threads) {
  std::atomic<int> status{OK};
  int64_t row_bytes = job.chunks * CHUNK * loops.x_width, width = job.activations == FP32 ? 4 : 2;
  int64_t slabs = ceil_div(rows * row_bytes, SLAB_BYTES);
  slabs = smaller(slabs, ceil_div(rows, loops.block));
  char* prepared = scratch(PREPARED, ceil_div(rows, slabs) * row_bytes);
  if (!prepared) return NO_MEMORY;
  char* y = static_cast<char*>(job.y);
  job.x = prepared;
  for (int64_t slab = 0; slab < slabs && status.load() == OK; slab++) {
    int64_t row = rows * slab / slabs;
    job.rows = int(rows * (slab + 1) / slabs - row);
    job.y = y + row * job.outputs * width;
    std::atomic<int64_t> parts_prepared{0};
    Many many{};
    many.job = job, many.from = static_cast<const char*>(x) + row * job.inputs * width, many.to = prepared;
    many.blocks = ceil_div(job.rows, loops.block), many.groups = ceil_div(job.outputs, GROUP);
    many.prepare = loops.prepare_blocks, many.multiply = loops.many[weights];
    many.x_parts = smaller(many.blocks, threads);
    many.y_parts = smaller(many.groups, 2 * threads);  // few, because only large parts allow large panels
    many.prepared = &parts_prepared, many.status = &status;
    run(some_parts, &many, many.x_parts + many.y_parts, threads, true);
  }
  return status.load();
}

}  // namespace

// -------------------------------------------------------------------------------------------------------------- C ABI
//
// Functions return a Status, 0 for success, unless stated otherwise. isa: 1 to prunus_isa(). weights, activations: 0 for
// bfloat16, 1 for float16, 2 for float32. width: bytes per weight, 2 or 4. Arrays have the sizes stated above; plain W is
// row-major. Nothing is written if the arguments are refused (UNSUPPORTED, BAD_ARRAYS).

// Returns the best instruction set of this processor, 0 if the kernel cannot run on it.
EXPORT int prunus_isa() { return best_isa(); }

// Y (rows, outputs) = X (rows, inputs) W^T + bias, on up to `threads` threads. W is given as masks, values and starts, as
// the functions below make them, or, if masks is null, as plain values. bias may be null; bias and y are of the kind of x.
EXPORT int prunus_linear(int isa, int weights, int activations, const uint32_t* masks, const void* values,
                         const int64_t* starts, const void* x, const void* bias, void* y, int64_t outputs,
                         int64_t inputs, int64_t rows, int threads) {
  const Loops* loops = loops_for(isa, weights, activations);
  if (!loops || weights < BF16 || weights > FP32 || activations < BF16 || activations > FP32) return UNSUPPORTED;
  Job job{};
  job.masks = masks, job.values = values, job.starts = starts, job.bias = bias;
  job.outputs = outputs, job.inputs = inputs, job.chunks = ceil_div(inputs, CHUNK), job.activations = activations;
  job.y = y;
#ifdef HAS_AMX
  if (isa == AMX && !masks && weights == BF16 && activations != FP16 && rows >= amx::LEAST_ROWS)
    return amx::many_rows(job, x, rows, threads);
#endif
  if (rows > MAX_ROWS) return many_rows(*loops, job, weights, x, rows, threads);
  char* prepared = scratch(PREPARED, size_t(job.chunks) * CHUNK * MAX_ROWS * sizeof(float));
  if (!prepared) return NO_MEMORY;
  job.x = prepared;
  int64_t size = activations == FP32 ? 4 : 2;
  for (int64_t done = 0; done < rows; done += MAX_ROWS) {
    job.rows = int(smaller(rows - done, MAX_ROWS));
    job.y = static_cast<char*>(y) + done * outputs * size;
    loops->prepare(job, static_cast<const char*>(x) + done * inputs * size, prepared);
    run((masks ? loops->sparse : loops->dense)[weights][job.rows - 1], &job, ceil_div(outputs, GROUP), threads);
  }
  return OK;
}

// Fills starts from a plain W.
EXPORT int prunus_count(int isa, int width, const void* weight, int64_t outputs, int64_t inputs, int64_t* starts,
                        int threads) {
  const Movers* movers = movers_for(isa, width);
  if (!movers) return UNSUPPORTED;
  Move move{};
  move.plain = const_cast<void*>(weight), move.outputs = outputs, move.inputs = inputs;
  move.chunks = ceil_div(inputs, CHUNK), move.starts = starts;
  int64_t groups = ceil_div(outputs, GROUP), sum = 0;
  run(movers->count, &move, groups, threads);  // writes each group's count to its entry of starts
  for (int64_t group = 0; group <= groups; group++) {
    int64_t count = group < groups ? starts[group] : 0;
    starts[group] = sum;
    sum += count;
  }
  return OK;
}

// Fills masks and values from a plain W and its starts.
EXPORT int prunus_pack(int isa, int width, const void* weight, int64_t outputs, int64_t inputs, int64_t* starts,
                       uint32_t* masks, void* values, int threads) {
  const Movers* movers = movers_for(isa, width);
  if (!movers) return UNSUPPORTED;
  Move move{};
  move.plain = const_cast<void*>(weight), move.outputs = outputs, move.inputs = inputs;
  move.chunks = ceil_div(inputs, CHUNK), move.starts = starts, move.masks = masks, move.values = values;
  run(movers->pack, &move, ceil_div(outputs, GROUP), threads);
  return OK;
}

// Fills masks and values from a packed checkpoint's arrays, which are checked before anything is written. file_mask has
// groups * 16 rows of file_width bytes; file_values holds `available` values, padding included; starts are the file's.
EXPORT int prunus_repack(int isa, int width, const uint8_t* file_mask, int64_t file_width, const void* file_values,
                         int64_t available, int64_t outputs, int64_t inputs, int64_t* starts, uint32_t* masks,
                         void* values, int threads) {
  const Movers* movers = movers_for(isa, width);
  if (!movers) return UNSUPPORTED;
  int64_t groups = ceil_div(outputs, GROUP), chunks = ceil_div(inputs, CHUNK);
  if (file_width < chunks * 4 || starts[0] != 0 || starts[groups] > available) return BAD_ARRAYS;
  for (int64_t group = 0; group < groups; group++) {
    const uint8_t* rows = file_mask + group * GROUP * file_width;
    if (ones(rows, GROUP * file_width) != starts[group + 1] - starts[group]) return BAD_ARRAYS;
  }
  for (int64_t row = 0; row < groups * GROUP; row++) {  // bits of padding columns and rows must be 0
    const uint8_t* bytes = file_mask + row * file_width;
    int64_t whole = row < outputs ? inputs / 8 : 0;
    int64_t behind = ones(bytes + whole, file_width - whole);
    if (row < outputs && inputs % 8) behind -= __builtin_popcount(bytes[whole] & ((1 << inputs % 8) - 1));
    if (behind) return BAD_ARRAYS;
  }
  Move move{};
  move.file_mask = file_mask, move.file_width = file_width, move.file_values = file_values;
  move.outputs = outputs, move.inputs = inputs, move.chunks = chunks;
  move.starts = starts, move.masks = masks, move.values = values;
  run(movers->repack, &move, groups, threads);
  return OK;
}

// Returns OK if masks and starts agree with each other and with the number of values (without padding), else BAD_ARRAYS.
EXPORT int prunus_check(const uint32_t* masks, const int64_t* starts, int64_t count, int64_t outputs, int64_t inputs) {
  int64_t groups = ceil_div(outputs, GROUP), size = GROUP * ceil_div(inputs, CHUNK);
  if (starts[0] != 0 || starts[groups] != count) return BAD_ARRAYS;
  for (int64_t group = 0; group < groups; group++) {
    auto* bytes = reinterpret_cast<const uint8_t*>(masks + group * size);
    if (ones(bytes, size * 4) != starts[group + 1] - starts[group]) return BAD_ARRAYS;
  }
  return OK;
}

// Writes groups [first, last) of W to `to`, dense and row-major: up to 16 rows per group, `inputs` columns.
EXPORT int prunus_unpack(int isa, int width, const uint32_t* masks, const void* values, const int64_t* starts,
                         int64_t outputs, int64_t inputs, int64_t first, int64_t last, void* to, int threads) {
  const Movers* movers = movers_for(isa, width);
  if (!movers) return UNSUPPORTED;
  Move move{};
  move.plain = to, move.outputs = outputs, move.inputs = inputs, move.chunks = ceil_div(inputs, CHUNK);
  move.starts = const_cast<int64_t*>(starts), move.masks = const_cast<uint32_t*>(masks);
  move.values = const_cast<void*>(values), move.first = first;
  run(movers->unpack, &move, last - first, threads);
  return OK;
}

// Requests huge pages for this memory, since most systems use them only on request; they reduce TLB misses.
EXPORT void prunus_huge_pages(void* from, int64_t size) {
  uintptr_t page = 4096, begin = (uintptr_t(from) + page - 1) & ~(page - 1), end = (uintptr_t(from) + size) & ~(page - 1);
  if (end > begin) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

#else  // not Linux on x86-64: there is no kernel

EXPORT int prunus_isa() { return NOTHING; }

#endif

#else  // LOOPS_FOR -------------------------------------------------------------------------------------------- the loops
//
// Included into the namespace of each instruction set, after it has defined X, Vector, load_sparse, ...

namespace {

INLINE float read(const bf16* number) { return widen(*number); }
INLINE float read(const fp16* number) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(number->bits))); }
INLINE float read(const fp32* number) { return *number; }
INLINE void write(bf16* to, float number) { *to = narrow(number); }
INLINE void write(fp16* to, float number) {
  to->bits = uint16_t(_mm_extract_epi16(_mm_cvtps_ph(_mm_set_ss(number), _MM_FROUND_TO_NEAREST_INT), 0));
}
INLINE void write(fp32* to, float number) { *to = number; }
INLINE void convert(const bf16* from, bf16* to, int64_t count) { memcpy(to, from, count * sizeof(bf16)); }
template <class A>
INLINE void convert(const A* from, float* to, int64_t count) {
  for (int64_t i = 0; i < count; i++) to[i] = read(from + i);
}
template <class A>
INLINE void convert(const A*, bf16*, int64_t) {}  // never called: bfloat16 loops take bfloat16 only

// Reorders x (rows, inputs) for the loops, chunk > row > 32 columns, padding the last chunk with zeros.
template <class A>
void prepare_kind(const Job& job, const A* x, X* to) {
  for (int64_t chunk = 0; chunk < job.chunks; chunk++) {
    int64_t present = smaller(job.inputs - chunk * CHUNK, CHUNK);
    for (int row = 0; row < job.rows; row++, to += CHUNK) {
      const A* from = x + row * job.inputs + chunk * CHUNK;
      _mm_prefetch(reinterpret_cast<const char*>(from + job.rows * job.inputs), _MM_HINT_T0);  // of the next block
      if (present == CHUNK) {
        convert(from, to, CHUNK);
      } else {
        memset(to, 0, CHUNK * sizeof(X));
        convert(from, to, present);
      }
    }
  }
}

void prepare(const Job& job, const void* x, void* to) {
  switch (job.activations) {
    case BF16: return prepare_kind(job, static_cast<const bf16*>(x), static_cast<X*>(to));
    case FP16: return prepare_kind(job, static_cast<const fp16*>(x), static_cast<X*>(to));
    default: return prepare_kind(job, static_cast<const fp32*>(x), static_cast<X*>(to));
  }
}

template <class A>
INLINE void put_kind(const Job& job, int64_t output, int row, float number) {
  if (job.bias) number += read(static_cast<const A*>(job.bias) + output);
  write(static_cast<A*>(job.y) + row * job.outputs + output, number);
}

INLINE void put(const Job& job, int64_t output, int row, float number) {
  switch (job.activations) {
    case BF16: return put_kind<bf16>(job, output, row, number);
    case FP16: return put_kind<fp16>(job, output, row, number);
    default: return put_kind<fp32>(job, output, row, number);
  }
}

INLINE char* place(char* sums, int output, int row) { return sums + (output * MAX_ROWS + row) * 64; }

// The number of outputs to compute together for B rows of x, such that their sums fit in registers.
template <int B>
constexpr int AT_ONCE = B * 4 <= SUMS ? 4 : B * 2 <= SUMS ? 2 : 1;

// Adds the products of outputs FIRST to FIRST + N of a quad of a tile with B rows of x to `sums`; returns the address of
// the next quad's values. Every loop over sums is unrolled explicitly, because GCC keeps an array in registers only if no
// loop over it remains.
template <class V, int B, int FIRST, int N>
INLINE const V* part_of_quad(const uint32_t* masks, const V* values, const X* x, int64_t chunks, char* sums) {
  Vector sum[N][B];
  UNROLL for (int i = 0; i < N; i++)
    UNROLL for (int row = 0; row < B; row++) sum[i][row] = load_sums(place(sums, FIRST + i, row));
  for (int64_t chunk = 0; chunk < chunks; chunk++, masks += QUAD, x += B * CHUNK) {
    _mm_prefetch(reinterpret_cast<const char*>(masks) + MASKS_AHEAD, _MM_HINT_T0);
    // The offset of each output's values in the quad's. Computed so, the next chunk waits for one addition only; with a
    // pointer that advances from output to output it would wait for four.
    uint64_t pairs[2];
    memcpy(pairs, masks, sizeof pairs);
    int64_t half = _mm_popcnt_u64(pairs[0]);
    int64_t before[QUAD] = {0, _mm_popcnt_u32(masks[0]), half, half + _mm_popcnt_u32(masks[2])};
    const V* next[N];
    UNROLL for (int i = 0; i < N; i++) {
      next[i] = values + before[FIRST + i];
      _mm_prefetch(reinterpret_cast<const char*>(next[i]) + VALUES_AHEAD, _MM_HINT_T0);
    }
    UNROLL for (int lanes = 0; lanes < CHUNK; lanes += LANES) {
      Weights some_x[B];
      UNROLL for (int row = 0; row < B; row++) some_x[row] = load_x(x + row * CHUNK + lanes);
      UNROLL for (int i = 0; i < N; i++) {
        uint32_t mask = masks[FIRST + i];
        if (LANES < CHUNK) mask = mask >> lanes & ((1u << LANES % CHUNK) - 1);
        Weights weights = load_sparse(mask, next[i]);
        next[i] += LANES < CHUNK ? _mm_popcnt_u32(mask) : 0;
        UNROLL for (int row = 0; row < B; row++) sum[i][row] = multiply(sum[i][row], weights, some_x[row]);
      }
    }
    values += half + _mm_popcnt_u64(pairs[1]);
  }
  UNROLL for (int i = 0; i < N; i++)
    UNROLL for (int row = 0; row < B; row++) store_sums(place(sums, FIRST + i, row), sum[i][row]);
  return values;
}

template <class V, int B, int FIRST = 0>
INLINE const V* quad(const uint32_t* masks, const V* values, const X* x, int64_t chunks, char* sums) {
  const V* next = part_of_quad<V, B, FIRST, AT_ONCE<B>>(masks, values, x, chunks, sums);
  if constexpr (FIRST + AT_ONCE<B> < QUAD) return quad<V, B, FIRST + AT_ONCE<B>>(masks, values, x, chunks, sums);
  return next;
}

// A prefetch that is spread over the chunks: each chunk prefetches at `at` and advances it by `step` bytes, so that the
// data arrives while the arithmetic goes on.
struct Prefetch {
  const char* at;
  int64_t step;
};

// The same for all outputs of a quad and more rows of x than there are registers for sums, in two passes. The first
// expands the weights for half of the rows and stores them, 8 KB in the L1 cache, for the second. Each pass prefetches
// half of what comes next.
template <class V, int B>
INLINE const V* quad_twice(const uint32_t* masks, const V* values, const X* x, int64_t chunks, char* sums, X* kept) {
  constexpr int N = B / 2, REST = B - N;
  const char* const start = reinterpret_cast<const char*>(values);
  Vector sum[QUAD][N];
  UNROLL for (int i = 0; i < QUAD; i++)
    UNROLL for (int row = 0; row < N; row++) sum[i][row] = load_sums(place(sums, i, row));
  for (int64_t chunk = 0; chunk < chunks; chunk++, masks += QUAD) {
    const char* ahead = start + TWICE_AHEAD + (reinterpret_cast<const char*>(values) - start) / 2;
    _mm_prefetch(reinterpret_cast<const char*>(masks) + MASKS_AHEAD, _MM_HINT_T0);
    _mm_prefetch(ahead, _MM_HINT_T0);
    _mm_prefetch(ahead + 64, _MM_HINT_T0);
    uint64_t pairs[2];
    memcpy(pairs, masks, sizeof pairs);
    int64_t half = _mm_popcnt_u64(pairs[0]);
    int64_t before[QUAD] = {0, _mm_popcnt_u32(masks[0]), half, half + _mm_popcnt_u32(masks[2])};
    UNROLL for (int lanes = 0; lanes < CHUNK; lanes += LANES) {
      Weights some_x[N];
      UNROLL for (int row = 0; row < N; row++) some_x[row] = load_x(x + (chunk * B + row) * CHUNK + lanes);
      UNROLL for (int i = 0; i < QUAD; i++) {
        uint32_t mask = masks[i];
        const V* next = values + before[i];
        if (LANES < CHUNK) {
          next += _mm_popcnt_u32(mask & ((1u << lanes) - 1));
          mask = mask >> lanes & ((1u << LANES % CHUNK) - 1);
        }
        Weights weights = load_sparse(mask, next);
        store_x(kept + (chunk * QUAD + i) * CHUNK + lanes, weights);
        UNROLL for (int row = 0; row < N; row++) sum[i][row] = multiply(sum[i][row], weights, some_x[row]);
      }
    }
    values += half + _mm_popcnt_u64(pairs[1]);
  }
  UNROLL for (int i = 0; i < QUAD; i++)
    UNROLL for (int row = 0; row < N; row++) store_sums(place(sums, i, row), sum[i][row]);

  int64_t bytes = reinterpret_cast<const char*>(values) - start;
  Prefetch ahead{start + TWICE_AHEAD + bytes / 2, bytes / (2 * chunks)};
  Vector more[QUAD][REST];
  UNROLL for (int i = 0; i < QUAD; i++)
    UNROLL for (int row = 0; row < REST; row++) more[i][row] = load_sums(place(sums, i, N + row));
  for (int64_t chunk = 0; chunk < chunks; chunk++, ahead.at += ahead.step) {
    _mm_prefetch(ahead.at, _MM_HINT_T0);
    _mm_prefetch(ahead.at + ahead.step / 2, _MM_HINT_T0);
    UNROLL for (int lanes = 0; lanes < CHUNK; lanes += LANES) {
      Weights some_x[REST];
      UNROLL for (int row = 0; row < REST; row++) some_x[row] = load_x(x + (chunk * B + N + row) * CHUNK + lanes);
      UNROLL for (int i = 0; i < QUAD; i++) {
        Weights weights = load_x(kept + (chunk * QUAD + i) * CHUNK + lanes);
        UNROLL for (int row = 0; row < REST; row++) more[i][row] = multiply(more[i][row], weights, some_x[row]);
      }
    }
  }
  UNROLL for (int i = 0; i < QUAD; i++)
    UNROLL for (int row = 0; row < REST; row++) store_sums(place(sums, i, N + row), more[i][row]);
  return values;
}

template <class V, int B>
void sparse(const void* described, int64_t first, int64_t last) {
  const Job& job = *static_cast<const Job*>(described);
  Sums sums;
  constexpr bool TWICE = B > SUMS / QUAD && SUMS >= 16;
  alignas(64) X kept[TWICE ? TILE * QUAD * CHUNK : 1];
  for (int64_t group = first; group < last; group++) {
    const V* values = static_cast<const V*>(job.values) + job.starts[group];
    const uint32_t* masks = job.masks + group * GROUP * job.chunks;
    memset(&sums, 0, sizeof sums);
    for (int64_t tile = 0, tiles = ceil_div(job.chunks, TILE); tile < tiles; tile++) {
      int64_t chunk = tile_start(tile, tiles, job.chunks), chunks = tile_start(tile + 1, tiles, job.chunks) - chunk;
      const X* x = static_cast<const X*>(job.x) + chunk * B * CHUNK;
      for (int output = 0; output < GROUP; output += QUAD, masks += chunks * QUAD) {
        char* sums_of = place(sums.bytes, output, 0);
        if constexpr (TWICE) values = quad_twice<V, B>(masks, values, x, chunks, sums_of, kept);
        else values = quad<V, B>(masks, values, x, chunks, sums_of);
      }
    }
    int64_t present = smaller(job.outputs - group * GROUP, GROUP);
    for (int row = 0; row < B; row++)
      for (int output = 0; output < present; output++)
        put(job, group * GROUP + output, row, total(load_sums(place(sums.bytes, output, row))));
  }
}

// Multiplies AT_ONCE rows of a plain W by B rows of x.
template <class V, int B>
INLINE void plain_rows(const Job& job, int64_t output) {
  constexpr int N = AT_ONCE<B>;
  const X* x = static_cast<const X*>(job.x);
  const V* weights_of[N];
  Vector sum[N][B];
  UNROLL for (int i = 0; i < N; i++) {  // in place of a row beyond the last, the last is read; its result is not written
    weights_of[i] = static_cast<const V*>(job.values) + smaller(output + i, job.outputs - 1) * job.inputs;
    UNROLL for (int row = 0; row < B; row++) sum[i][row] = zero();
  }
  int64_t chunks = job.inputs / CHUNK, rest = job.inputs % CHUNK;
  for (int64_t chunk = 0; chunk < chunks; chunk++, x += B * CHUNK) {
    UNROLL for (int i = 0; i < N; i++)
      _mm_prefetch(reinterpret_cast<const char*>(weights_of[i]) + PLAIN_AHEAD, _MM_HINT_T0);
    UNROLL for (int lanes = 0; lanes < CHUNK; lanes += LANES) {
      Weights some_x[B];
      UNROLL for (int row = 0; row < B; row++) some_x[row] = load_x(x + row * CHUNK + lanes);
      UNROLL for (int i = 0; i < N; i++) {
        Weights weights = load_dense(weights_of[i]);
        weights_of[i] += LANES;
        UNROLL for (int row = 0; row < B; row++) sum[i][row] = multiply(sum[i][row], weights, some_x[row]);
      }
    }
  }
  UNROLL for (int i = 0; i < N; i++) {
    if (rest) {  // nothing beyond the end of a row is read
      V padded[CHUNK] = {};
      memcpy(padded, weights_of[i], rest * sizeof(V));
      UNROLL for (int lanes = 0; lanes < CHUNK; lanes += LANES) {
        Weights weights = load_dense(padded + lanes);
        UNROLL for (int row = 0; row < B; row++)
          sum[i][row] = multiply(sum[i][row], weights, load_x(x + row * CHUNK + lanes));
      }
    }
    if (output + i < job.outputs)
      UNROLL for (int row = 0; row < B; row++) put(job, output + i, row, total(sum[i][row]));
  }
}

// Multiplies one row of a plain W by few rows of x. One row at a time makes W one stream, which is faster than four. AHEAD
// chunks have sums of their own, so that none waits for the previous one.
template <class V, int B>
INLINE void plain_row(const Job& job, int64_t output) {
  constexpr int AHEAD = 4;
  const X* x = static_cast<const X*>(job.x);
  const V* row = static_cast<const V*>(job.values) + output * job.inputs;
  const V* end = row + job.inputs;
  Vector sum[AHEAD][B];
  UNROLL for (int i = 0; i < AHEAD; i++)
    UNROLL for (int b = 0; b < B; b++) sum[i][b] = zero();
  for (; end - row >= AHEAD * CHUNK; x += AHEAD * B * CHUNK) {
    UNROLL for (int i = 0; i < AHEAD; i++) {
      _mm_prefetch(reinterpret_cast<const char*>(row) + VALUES_AHEAD, _MM_HINT_T0);
      UNROLL for (int lanes = 0; lanes < CHUNK; lanes += LANES, row += LANES) {
        Weights weights = load_dense(row);
        UNROLL for (int b = 0; b < B; b++)
          sum[i][b] = multiply(sum[i][b], weights, load_x(x + (i * B + b) * CHUNK + lanes));
      }
    }
  }
  for (; row < end; row += CHUNK, x += B * CHUNK) {
    V padded[CHUNK] = {};  // nothing beyond the end of a row is read
    memcpy(padded, row, smaller(end - row, CHUNK) * sizeof(V));
    UNROLL for (int lanes = 0; lanes < CHUNK; lanes += LANES) {
      Weights weights = load_dense(padded + lanes);
      UNROLL for (int b = 0; b < B; b++) sum[0][b] = multiply(sum[0][b], weights, load_x(x + b * CHUNK + lanes));
    }
  }
  UNROLL for (int b = 0; b < B; b++)
    put(job, output, b, total(sum[0][b]) + total(sum[1][b]) + (total(sum[2][b]) + total(sum[3][b])));
}

template <class V, int B>
void dense(const void* described, int64_t first, int64_t last) {
  const Job& job = *static_cast<const Job*>(described);
  constexpr int N = B <= 2 ? 1 : AT_ONCE<B>;
  for (int64_t output = first * GROUP; output < smaller(last * GROUP, job.outputs); output += N) {
    if constexpr (N == 1 && B <= 2) plain_row<V, B>(job, output);
    else plain_rows<V, B>(job, output);
  }
}

// ---- many rows of x (a prompt)
//
// Here arithmetic limits the speed, so W is expanded only once, a panel of some groups at a time, and each weight that is
// loaded from a panel into a register is multiplied by a block of BLOCK rows: QUAD x BLOCK sums stay in registers, and
// both operands are stored in the order in which they are read. While a panel is multiplied, the next one's values are
// prefetched, so that neither memory nor arithmetic waits. Sums are added in the order of the loops above: the y of a row
// of x is the same, bit by bit, for any number of rows.
//
// Caches. L1: a span of a block of x, 24 KB, and a quad of the panel. L2: the panel. L3: x. With more than one span (2048
// columns) sums are stored in memory between spans.

// The number of tiles in a span.
constexpr int SPAN = LANES == CHUNK ? 2 : 1;

void prepare_blocks(const void* described, int64_t first, int64_t last) {
  const Many& many = *static_cast<const Many*>(described);
  for (int64_t block = first; block < last; block++) {
    Job job = many.job;
    int64_t row = job.rows * block / many.blocks, width = job.activations == FP32 ? 4 : 2;
    job.rows = int(many.job.rows * (block + 1) / many.blocks - row);
    prepare(job, static_cast<const char*>(many.from) + row * job.inputs * width,
            static_cast<X*>(many.to) + row * job.chunks * CHUNK);
  }
}

// The first chunk of a span; for the span after the last, the number of chunks.
INLINE int64_t span_start(int64_t span, int64_t chunks) {
  int64_t tiles = ceil_div(chunks, TILE);
  return tile_start(smaller(span * SPAN, tiles), tiles, chunks);
}

// Expands groups of W into a panel: span > quad (of all these groups) > chunk > row > 32 columns, zeros included.
template <class V>
void fill(const Job& job, int64_t group, int64_t groups, X* panel) {
  const V* values = static_cast<const V*>(job.values) + job.starts[group];
  const uint32_t* masks = job.masks + group * GROUP * job.chunks;
  for (int64_t in_panel = 0, tiles = ceil_div(job.chunks, TILE); in_panel < groups; in_panel++) {
    for (int64_t tile = 0; tile < tiles; tile++) {
      int64_t start = tile_start(tile, tiles, job.chunks), chunks = tile_start(tile + 1, tiles, job.chunks) - start;
      int64_t span = span_start(tile / SPAN, job.chunks), wide = span_start(tile / SPAN + 1, job.chunks) - span;
      for (int quad = 0; quad < GROUP / QUAD; quad++) {
        int64_t place = span * groups * GROUP + ((in_panel * (GROUP / QUAD) + quad) * wide + start - span) * QUAD;
        X* to = panel + place * CHUNK;
        for (int64_t chunk = 0; chunk < chunks; chunk++, masks += QUAD, to += QUAD * CHUNK) {
          _mm_prefetch(reinterpret_cast<const char*>(masks) + MASKS_AHEAD, _MM_HINT_T0);
          UNROLL for (int i = 0; i < QUAD; i++) {
            _mm_prefetch(reinterpret_cast<const char*>(values) + VALUES_AHEAD, _MM_HINT_T0);
            UNROLL for (int lanes = 0; lanes < CHUNK; lanes += LANES) {
              uint32_t mask = masks[i];
              if (LANES < CHUNK) mask = mask >> lanes & ((1u << LANES % CHUNK) - 1);
              store_x(to + i * CHUNK + lanes, load_sparse(mask, values));
              values += _mm_popcnt_u32(mask);
            }
          }
        }
      }
    }
  }
}

// The same for a plain W.
template <class V>
void fill_plain(const Job& job, int64_t group, int64_t groups, X* panel) {
  const int64_t spans = ceil_div(ceil_div(job.chunks, TILE), SPAN);
  for (int64_t row = 0; row < groups * GROUP; row++) {
    const int64_t output = group * GROUP + row;
    const V* from = static_cast<const V*>(job.values) + output * job.inputs;
    for (int64_t span = 0; span < spans; span++) {
      int64_t start = span_start(span, job.chunks), end = span_start(span + 1, job.chunks);
      X* to = panel + ((start * groups * GROUP) + row / QUAD * (end - start) * QUAD + row % QUAD) * CHUNK;
      for (int64_t chunk = start; chunk < end; chunk++, to += QUAD * CHUNK) {
        V padded[CHUNK] = {};  // nothing beyond the end of a row is read
        const V* some = from + chunk * CHUNK;
        if (output >= job.outputs) {
          some = padded;
        } else if (job.inputs - chunk * CHUNK < CHUNK) {
          memcpy(padded, some, (job.inputs - chunk * CHUNK) * sizeof(V));
          some = padded;
        }
        UNROLL for (int lanes = 0; lanes < CHUNK; lanes += LANES) store_x(to + lanes, load_dense(some + lanes));
      }
    }
  }
}

// Multiplies a panel by a block of B rows of x, and writes the totals to `finished`, row > output of the panel.
template <int B>
void panel_times_block(const X* weights, const X* x, int64_t chunks, int64_t quads, Prefetch& next_panel, char* sums,
                       float* finished) {
  Prefetch next_w = next_panel;  // a local copy, which can stay in registers
  int64_t start = 0, end;
  for (int64_t span = 0; start < chunks; span++, x += (end - start) * B * CHUNK, start = end) {
    end = span_start(span + 1, chunks);
    char* kept = sums;
    // This span of x is followed in memory by the next one, of this block or of the next.
    Prefetch next_x{reinterpret_cast<const char*>(x + (end - start) * B * CHUNK), B * CHUNK * int64_t(sizeof(X)) / quads};
    for (int64_t quad = 0; quad < quads; quad++) {
      Vector sum[QUAD][B];
      UNROLL for (int i = 0; i < QUAD; i++)
        UNROLL for (int row = 0; row < B; row++) sum[i][row] = start ? load_sums(kept + (i * B + row) * 64) : zero();
      const X* some_x = x;
      for (const X* last = weights + (end - start) * QUAD * CHUNK; weights < last; weights += QUAD * CHUNK) {
        _mm_prefetch(next_x.at, _MM_HINT_T1);
        next_x.at += next_x.step;
        _mm_prefetch(next_w.at, _MM_HINT_T1);
        next_w.at += next_w.step;
        UNROLL for (int lanes = 0; lanes < CHUNK; lanes += LANES) {
          Weights of_x[B];
          UNROLL for (int row = 0; row < B; row++) of_x[row] = load_x(some_x + row * CHUNK + lanes);
          UNROLL for (int i = 0; i < QUAD; i++) {
            Weights some = load_x(weights + i * CHUNK + lanes);
            UNROLL for (int row = 0; row < B; row++) sum[i][row] = multiply(sum[i][row], some, of_x[row]);
          }
        }
        some_x += B * CHUNK;
      }
      if (end < chunks) {
        UNROLL for (int i = 0; i < QUAD; i++)
          UNROLL for (int row = 0; row < B; row++) store_sums(kept + (i * B + row) * 64, sum[i][row]);
      } else {
        totals(sum, finished + quad * QUAD, PANEL_GROUPS * GROUP);
      }
      kept += QUAD * B * 64;
    }
  }
  next_panel = next_w;
}

template <class A>
INLINE void put_row(const Job& job, int64_t row, int64_t output, int64_t count, const float* finished) {
  A* y = static_cast<A*>(job.y) + row * job.outputs + output;
  if (!job.bias) {
    for (int64_t i = 0; i < count; i++) write(y + i, finished[i]);
  } else {
    const A* bias = static_cast<const A*>(job.bias) + output;
    for (int64_t i = 0; i < count; i++) write(y + i, finished[i] + read(bias + i));
  }
}

// Multiplies a panel by `rows` rows (1 to BLOCK) of the prepared x.
template <int B = BLOCK>
INLINE void block_of(int64_t rows, const X* panel, const X* x, int64_t chunks, int64_t quads, Prefetch& next_panel,
                     char* sums, float* finished) {
  if (rows == B) return panel_times_block<B>(panel, x, chunks, quads, next_panel, sums, finished);
  if constexpr (B > 1) block_of<B - 1>(rows, panel, x, chunks, quads, next_panel, sums, finished);
}

template <class V>
void many_rows(const void* described, int64_t first, int64_t last) {
  const Many& many = *static_cast<const Many*>(described);
  const Job& job = many.job;
  const int64_t group_bytes = GROUP * job.chunks * CHUNK * sizeof(X), width = job.activations == FP32 ? 4 : 2;
  const int64_t fitting = smaller(PANEL_BYTES / group_bytes, PANEL_GROUPS), most = fitting < 1 ? 1 : fitting;
  const int64_t at_once = ceil_div(last - first, ceil_div(last - first, most));  // so that panels are of similar size
  const int64_t panel_bytes = at_once * group_bytes, sums_bytes = at_once * GROUP * BLOCK * 64;
  char* room = scratch(PANEL, panel_bytes + sums_bytes + BLOCK * PANEL_GROUPS * GROUP * sizeof(float));
  if (!room) return many.status->store(NO_MEMORY);
  X* panel = reinterpret_cast<X*>(room);
  char* sums = room + panel_bytes;
  float* finished = reinterpret_cast<float*>(sums + sums_bytes);  // row > output of the panel
  for (int64_t group = first; group < last; group += at_once) {
    const int64_t groups = smaller(at_once, last - group), quads = groups * (GROUP / QUAD);
    const int64_t output = group * GROUP, outputs = smaller(groups * GROUP, job.outputs - output);
    // The places in values where the next panel begins and ends.
    const int64_t begins = group + groups, ends = smaller(begins + at_once, last);
    int64_t next_value, end_value;
    if (job.masks) {
      fill<V>(job, group, groups, panel);
      next_value = job.starts[begins], end_value = job.starts[ends];
    } else {
      fill_plain<V>(job, group, groups, panel);
      next_value = smaller(begins * GROUP, job.outputs) * job.inputs;
      end_value = smaller(ends * GROUP, job.outputs) * job.inputs;
    }
    const V* next = static_cast<const V*>(job.values) + next_value;
    const int64_t next_bytes = (end_value - next_value) * sizeof(V);
    Prefetch next_panel{reinterpret_cast<const char*>(next), next_bytes / (many.blocks * quads * job.chunks)};
    for (int64_t block = 0; block < many.blocks; block++) {
      const int64_t row = job.rows * block / many.blocks, rows = job.rows * (block + 1) / many.blocks - row;
      for (int64_t i = row; i < row + rows; i++) {  // prefetch y, which is written below
        const char* y = static_cast<const char*>(job.y) + (i * job.outputs + output) * width;
        for (int64_t byte = 0; byte < outputs * width; byte += 64) _mm_prefetch(y + byte, _MM_HINT_T0);
      }
      const X* x = static_cast<const X*>(job.x) + row * job.chunks * CHUNK;
      block_of(rows, panel, x, job.chunks, quads, next_panel, sums, finished);
      for (int64_t i = 0; i < rows; i++) {
        const float* of_row = finished + i * (PANEL_GROUPS * GROUP);
        switch (job.activations) {
          case BF16: put_row<bf16>(job, row + i, output, outputs, of_row); break;
          case FP16: put_row<fp16>(job, row + i, output, outputs, of_row); break;
          default: put_row<fp32>(job, row + i, output, outputs, of_row);
        }
      }
    }
  }
}

#define FOR_ROWS(loop, V) {loop<V, 1>, loop<V, 2>, loop<V, 3>, loop<V, 4>, loop<V, 5>, loop<V, 6>, loop<V, 7>, loop<V, 8>}
#if LOOPS_FOR == ONLY_BF16
constexpr Loops LOOPS = {prepare,  {FOR_ROWS(sparse, bf16)}, {FOR_ROWS(dense, bf16)}, BLOCK,
                         sizeof(X), prepare_blocks, {many_rows<bf16>}};
#else
constexpr Loops LOOPS = {prepare,
                         {FOR_ROWS(sparse, bf16), FOR_ROWS(sparse, fp16), FOR_ROWS(sparse, fp32)},
                         {FOR_ROWS(dense, bf16), FOR_ROWS(dense, fp16), FOR_ROWS(dense, fp32)},
                         BLOCK,
                         sizeof(X),
                         prepare_blocks,
                         {many_rows<bf16>, many_rows<fp16>, many_rows<fp32>}};
#endif
#undef FOR_ROWS

// Calls visit(row within the group, chunk) for every chunk of a group, in the order of the layout.
template <class Visit>
INLINE void each_chunk(int64_t chunks, Visit visit) {
  for (int64_t tile = 0, tiles = ceil_div(chunks, TILE); tile < tiles; tile++)
    for (int quad = 0; quad < GROUP; quad += QUAD)
      for (int64_t chunk = tile_start(tile, tiles, chunks); chunk < tile_start(tile + 1, tiles, chunks); chunk++)
        for (int row = quad; row < quad + QUAD; row++) visit(row, chunk);
}

template <class Bits>
void count(const void* described, int64_t first, int64_t last) {
  const Move& move = *static_cast<const Move*>(described);
  for (int64_t group = first; group < last; group++) {
    int64_t from = group * GROUP * move.inputs, to = smaller((group + 1) * GROUP, move.outputs) * move.inputs;
    int64_t kept = 0;
    for (int64_t at = from; at < to; at++) kept += static_cast<const Bits*>(move.plain)[at] != 0;
    move.starts[group] = kept;
  }
}

template <class Bits>
void pack(const void* described, int64_t first, int64_t last) {
  const Move& move = *static_cast<const Move*>(described);
  for (int64_t group = first; group < last; group++) {
    uint32_t* masks = move.masks + group * GROUP * move.chunks;
    Bits* values = static_cast<Bits*>(move.values) + move.starts[group];
    each_chunk(move.chunks, [&](int row, int64_t chunk) {
      int64_t output = group * GROUP + row, present = smaller(move.inputs - chunk * CHUNK, CHUNK);
      uint32_t mask = 0;
      if (output < move.outputs) {
        const Bits* from = static_cast<const Bits*>(move.plain) + output * move.inputs + chunk * CHUNK;
        Bits padded[CHUNK] = {};
        if (present < CHUNK) from = static_cast<Bits*>(memcpy(padded, from, present * sizeof(Bits)));
        mask = compress(from, values);
      }
      values += _mm_popcnt_u32(mask);
      *masks++ = mask;
    });
  }
}

template <class Bits>
void repack(const void* described, int64_t first, int64_t last) {
  const Move& move = *static_cast<const Move*>(described);
  for (int64_t group = first; group < last; group++) {
    uint32_t* masks = move.masks + group * GROUP * move.chunks;
    Bits* values = static_cast<Bits*>(move.values) + move.starts[group];
    const uint8_t* file_masks = move.file_mask + group * GROUP * move.file_width;
    // The file is row-major: `rows` points to the next value of each row, of which a chunk at a time is copied.
    const Bits* rows[GROUP];
    rows[0] = static_cast<const Bits*>(move.file_values) + move.starts[group];
    for (int row = 1; row < GROUP; row++)
      rows[row] = rows[row - 1] + ones(file_masks + (row - 1) * move.file_width, move.file_width);
    each_chunk(move.chunks, [&](int row, int64_t chunk) {
      uint32_t mask;
      memcpy(&mask, file_masks + row * move.file_width + chunk * sizeof mask, sizeof mask);
      int64_t kept = _mm_popcnt_u32(mask);
      memcpy(values, rows[row], kept * sizeof(Bits));
      rows[row] += kept;
      values += kept;
      *masks++ = mask;
    });
  }
}

template <class Bits>
void unpack(const void* described, int64_t first, int64_t last) {
  const Move& move = *static_cast<const Move*>(described);
  // Local copies: otherwise the compiler must assume that writing bytes may change them, and read them again each time.
  const int64_t inputs = move.inputs, outputs = move.outputs;
  Bits* const plain = static_cast<Bits*>(move.plain);
  for (int64_t place = first; place < last; place++) {
    int64_t group = move.first + place;
    const uint32_t* masks = move.masks + group * GROUP * move.chunks;
    const Bits* values = static_cast<const Bits*>(move.values) + move.starts[group];
    each_chunk(move.chunks, [&](int row, int64_t chunk) {
      uint32_t mask = *masks++;
      _mm_prefetch(reinterpret_cast<const char*>(values) + VALUES_AHEAD, _MM_HINT_T0);
      if (group * GROUP + row < outputs) {
        Bits* to = plain + (place * GROUP + row) * inputs + chunk * CHUNK;
        int64_t present = inputs - chunk * CHUNK;
        if (present >= CHUNK) {
          expand(mask, values, to);
        } else {
          Bits padded[CHUNK];
          expand(mask, values, padded);
          memcpy(to, padded, present * sizeof(Bits));
        }
      }
      values += _mm_popcnt_u32(mask);
    });
  }
}

constexpr Movers MOVERS[2] = {{count<uint16_t>, pack<uint16_t>, repack<uint16_t>, unpack<uint16_t>},
                              {count<uint32_t>, pack<uint32_t>, repack<uint32_t>, unpack<uint32_t>}};

}  // namespace

#endif  // LOOPS_FOR
