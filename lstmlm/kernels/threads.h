/* A team of threads for one call, and a barrier.

   The team is torch's own OpenMP runtime, handed in as the addresses of three of its functions: nothing is linked, so there is
   never a second runtime in the process. Without one, a call makes its threads and ends them, which takes some 30 us each; on
   Windows, where torch's runtime has no such functions, there is a team of our own that lasts (`windows.c`).

   Within a call numbers smaller than any normal one are zero: moments that have faded to that make a step of AdamW half as fast. */

#if defined(_WIN32)
extern void lstmlm_windows_team(void (*part)(const void *, int, int), const void *call, int threads), lstmlm_give_way(void);
#define give_way lstmlm_give_way
#else
#include <pthread.h>
#include <sched.h>
#define give_way sched_yield
#endif
#include <stdatomic.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#define THREADS_MAX 256

/* Defined in native.c, for both sources. */
extern void (*lstmlm_team_run)(void (*)(void *), void *, unsigned, unsigned);
extern int (*lstmlm_team_rank)(void), (*lstmlm_team_size)(void);

/* The compiler moves no access to memory across it. */
#define SETTLED __asm__ volatile("" ::: "memory")

typedef struct {
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_uint turn; /* wraps around after hours of text */
} Barrier;

/* Waits for all `members`. Spins for some microseconds, then gives the processor away: on a busy machine the thread that is
   waited for may need it. */
static void meet(Barrier *barrier, int members) {
    SETTLED;
    if (members == 1) return;
    unsigned turn = atomic_load_explicit(&barrier->turn, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == members - 1) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->turn, turn + 1, memory_order_release);
        return;
    }
    for (unsigned spins = 0; atomic_load_explicit(&barrier->turn, memory_order_acquire) == turn; spins++) {
        if (spins >= 1000)
            give_way();
#if defined(__x86_64__)
        else
            __builtin_ia32_pause();
#endif
    }
}

typedef struct {
    void (*body)(void *, int, int);
    void *job;
} Call;

/* Runs a thread's part with tiny numbers flushed to zero, and leaves the thread as it was. */
static void flushed(const Call *call, int rank, int threads) {
#if defined(__x86_64__)
    const unsigned before = _mm_getcsr();
    _mm_setcsr(before | 0x8040); /* results, operands */
    call->body(call->job, rank, threads);
    _mm_setcsr(before);
#elif defined(__aarch64__)
    uint64_t before;
    __asm__ volatile("mrs %0, fpcr" : "=r"(before)::"memory");
    __asm__ volatile("msr fpcr, %0" ::"r"(before | 1ull << 24) : "memory");
    call->body(call->job, rank, threads);
    __asm__ volatile("msr fpcr, %0" ::"r"(before) : "memory");
#else
    call->body(call->job, rank, threads);
#endif
}

static void enter(void *call) {
    flushed(call, lstmlm_team_rank(), lstmlm_team_size()); /* the runtime may have granted fewer threads than asked for */
}

#if defined(_WIN32)
static void take_part(const void *call, int rank, int threads) { flushed(call, rank, threads); }
static void run_own_team(const Call *call, int threads) { lstmlm_windows_team(take_part, call, threads); }
#else
typedef struct {
    const Call *call;
    int rank;
    atomic_int *members; /* 0 until all threads that the system grants are there */
} Member;

static void *take_part(void *member) {
    const Member *m = member;
    int members;
    while (!(members = atomic_load_explicit(m->members, memory_order_acquire))) give_way();
    flushed(m->call, m->rank, members);
    return 0;
}

/* Runs a call on threads that are made for it, as many as the system grants. */
static void run_own_team(const Call *call, int threads) {
    pthread_t made[THREADS_MAX];
    Member each[THREADS_MAX];
    atomic_int members = 0;
    int count = 1;
    for (; count < threads; count++) {
        each[count] = (Member){call, count, &members};
        if (pthread_create(made + count, 0, take_part, each + count)) break;
    }
    each[0] = (Member){call, 0, &members};
    atomic_store_explicit(&members, count, memory_order_release);
    take_part(each);
    while (--count) pthread_join(made[count], 0);
}
#endif

static void run_team(void (*body)(void *, int, int), void *job, int threads) {
    Call call = {body, job};
    if (threads > THREADS_MAX) threads = THREADS_MAX;
    if (threads <= 1)
        flushed(&call, 0, 1);
    else if (lstmlm_team_run)
        lstmlm_team_run(enter, &call, (unsigned)threads, 0);
    else
        run_own_team(&call, threads);
}
