/* What `lstmlm/kernels/windows.c` takes of Windows, by POSIX threads: so `scripts/dev/check_builds.sh` runs that team here. */

#include <pthread.h>
#include <sched.h>
#include <stdint.h>

typedef void *HANDLE;
typedef unsigned DWORD;
typedef pthread_mutex_t SRWLOCK;
typedef pthread_cond_t CONDITION_VARIABLE;
#define WINAPI
#define INFINITE 0xffffffffu
#define SRWLOCK_INIT PTHREAD_MUTEX_INITIALIZER
#define CONDITION_VARIABLE_INIT PTHREAD_COND_INITIALIZER
#define AcquireSRWLockExclusive pthread_mutex_lock
#define ReleaseSRWLockExclusive pthread_mutex_unlock
#define SleepConditionVariableSRW(condition, lock, time, flags) pthread_cond_wait(condition, lock)
#define WakeConditionVariable pthread_cond_signal
#define WakeAllConditionVariable pthread_cond_broadcast
#define SwitchToThread sched_yield
#define CloseHandle(handle) ((void)(handle))

static HANDLE CreateThread(void *safety, size_t stack, DWORD (*body)(void *), void *argument, DWORD flags, DWORD *id) {
    pthread_t made;
    (void)safety, (void)stack, (void)flags, (void)id;
    return pthread_create(&made, 0, (void *(*)(void *))body, argument) ? 0 : (HANDLE)(uintptr_t)made;
}
