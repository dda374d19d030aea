/* What the team needs on Windows, in a source of its own, for windows.h takes names like FLOAT.

   The threads are made when they are first needed, and wait for the next call. One call at a time: a second one waits for the first to
   end. Every thread sees each call's number, and those whose rank it asks for take part; so the caller waits for these alone. */

#if defined(_WIN32)
#include <stdint.h>
#include <windows.h>

typedef void Part(const void *call, int rank, int threads);

static SRWLOCK calling = SRWLOCK_INIT, guard = SRWLOCK_INIT; /* for a whole call; for what stands below */
static CONDITION_VARIABLE begun = CONDITION_VARIABLE_INIT, ended = CONDITION_VARIABLE_INIT;
static Part *body;
static const void *called;
static unsigned number; /* of the call */
static int asked, working;
static int there = 1; /* threads, with the caller's */

static DWORD WINAPI wait_for_calls(void *argument) {
    const int rank = (int)(intptr_t)argument;
    AcquireSRWLockExclusive(&guard);
    for (unsigned seen = number - 1;;) { /* it was made for the call under way */
        while (seen == number) SleepConditionVariableSRW(&begun, &guard, INFINITE, 0);
        seen = number;
        if (rank >= asked) continue;
        Part *const part = body;
        const void *const call = called;
        const int members = asked;
        ReleaseSRWLockExclusive(&guard);
        part(call, rank, members);
        AcquireSRWLockExclusive(&guard);
        if (--working == 0) WakeConditionVariable(&ended);
    }
    return 0;
}

/* Runs a call on as many threads as the system grants. */
void lstmlm_windows_team(Part *part, const void *call, int threads) {
    AcquireSRWLockExclusive(&calling);
    AcquireSRWLockExclusive(&guard);
    for (HANDLE made; there < threads && (made = CreateThread(0, 0, wait_for_calls, (void *)(intptr_t)there, 0, 0)); there++)
        CloseHandle(made); /* it waits for the guard */
    const int members = threads < there ? threads : there;
    body = part, called = call, asked = members, working = members - 1, number++;
    WakeAllConditionVariable(&begun);
    ReleaseSRWLockExclusive(&guard);
    part(call, 0, members);
    AcquireSRWLockExclusive(&guard);
    while (working) SleepConditionVariableSRW(&ended, &guard, INFINITE, 0);
    ReleaseSRWLockExclusive(&guard);
    ReleaseSRWLockExclusive(&calling);
}

void lstmlm_give_way(void) { SwitchToThread(); }
#endif
