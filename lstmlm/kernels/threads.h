/* A team of threads for one call, and a barrier.

   The team is torch's own OpenMP runtime, handed in as the addresses of three of its functions: nothing is linked, so there is
   never a second runtime in the process. Without one, a call runs on one thread. */

#include <sched.h>
#include <stdatomic.h>

#define THREADS_MAX 256

static void (*team_run)(void (*)(void *), void *, unsigned, unsigned);
static int (*team_rank)(void);
static int (*team_size)(void);

typedef struct {
    _Alignas(64) atomic_int arrived;
    _Alignas(64) atomic_uint turn; /* wraps around after hours of text */
} Barrier;

/* Waits for all `members`. Spins for some microseconds, then gives the processor away: on a busy machine the thread that is
   waited for may need it. */
static void meet(Barrier *barrier, int members) {
    if (members == 1) return;
    unsigned turn = atomic_load_explicit(&barrier->turn, memory_order_relaxed);
    if (atomic_fetch_add_explicit(&barrier->arrived, 1, memory_order_acq_rel) == members - 1) {
        atomic_store_explicit(&barrier->arrived, 0, memory_order_relaxed);
        atomic_store_explicit(&barrier->turn, turn + 1, memory_order_release);
        return;
    }
    for (int spins = 0; atomic_load_explicit(&barrier->turn, memory_order_acquire) == turn; spins++) {
        if (spins >= 1000)
            sched_yield();
#if defined(__x86_64__)
        else
            __builtin_ia32_pause();
#endif
    }
}

static void run_team(void (*body)(void *, int, int), void *job, int threads);

typedef struct {
    void (*body)(void *, int, int);
    void *job;
} Call;

static void enter(void *call) {
    Call *c = call;
    c->body(c->job, team_rank(), team_size()); /* the runtime may have granted fewer threads than asked for */
}

static void run_team(void (*body)(void *, int, int), void *job, int threads) {
    if (threads > THREADS_MAX) threads = THREADS_MAX;
    if (threads <= 1 || !team_run) {
        body(job, 0, 1);
        return;
    }
    Call call = {body, job};
    team_run(enter, &call, (unsigned)threads, 0);
}
