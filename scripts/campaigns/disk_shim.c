/* Strike at the n-th call on the way to the disk below a folder: preloaded into a real process by disk_faults.py.
 *
 * SHIM_FOLDER: absolute. SHIM_AT: n, counted from 1. SHIM_ACTION: kill, term, cut, refuse, broken (refuse from then on).
 * SHIM_LOG: a file whose first 8 bytes are the number of calls so far.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static const char *folder, *action;
static long at, count;
static int log_fd = -1;
static char ours[65536];

__attribute__((constructor)) static void begin(void) {
    folder = getenv("SHIM_FOLDER"), action = getenv("SHIM_ACTION");
    at = atol(getenv("SHIM_AT") ? getenv("SHIM_AT") : "0");
    if (getenv("SHIM_LOG")) log_fd = syscall(SYS_openat, AT_FDCWD, getenv("SHIM_LOG"), O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
}

static int below(const char *path) { return folder && path && !strncmp(path, folder, strlen(folder)); }
static int mine(int fd) { return fd >= 0 && fd < (int)sizeof ours && ours[fd]; }

/* Count a call; 1: it is to be refused, 2: it is to be cut. */
static int strikes(void) {
    long now = __sync_add_and_fetch(&count, 1);
    if (log_fd >= 0) syscall(SYS_pwrite64, log_fd, &now, sizeof now, 0L);
    if (!action || now < at || (now > at && strcmp(action, "broken"))) return 0;
    if (!strcmp(action, "kill")) syscall(SYS_kill, getpid(), SIGKILL);
    if (!strcmp(action, "term")) syscall(SYS_kill, getpid(), SIGTERM);
    errno = EIO;
    return !strcmp(action, "refuse") || !strcmp(action, "broken") ? 1 : !strcmp(action, "cut") ? 2 : 0;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define OPEN(name)                                                          \
    int name(const char *path, int flags, ...) {                            \
        va_list more;                                                       \
        va_start(more, flags);                                              \
        mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;           \
        va_end(more);                                                       \
        int own = below(path);                                              \
        if (own && strikes() == 1) return -1;                               \
        int fd = REAL(name)(path, flags, mode);                             \
        if (fd >= 0 && fd < (int)sizeof ours) ours[fd] = own;               \
        return fd;                                                          \
    }
OPEN(open)
OPEN(open64)

ssize_t write(int fd, const void *data, size_t size) {
    int strike = mine(fd) ? strikes() : 0;
    if (strike == 1) return -1;
    return REAL(write)(fd, data, strike == 2 ? (size + 1) / 2 : size);
}
int fsync(int fd) { return mine(fd) && strikes() == 1 ? -1 : REAL(fsync)(fd); }
int ftruncate(int fd, off_t size) { return mine(fd) && strikes() == 1 ? -1 : REAL(ftruncate)(fd, size); }
int ftruncate64(int fd, off64_t size) { return mine(fd) && strikes() == 1 ? -1 : REAL(ftruncate64)(fd, size); }
int rename(const char *from, const char *to) { return below(to) && strikes() == 1 ? -1 : REAL(rename)(from, to); }
int unlink(const char *path) { return below(path) && strikes() == 1 ? -1 : REAL(unlink)(path); }
int mkdir(const char *path, mode_t mode) { return below(path) && strikes() == 1 ? -1 : REAL(mkdir)(path, mode); }
int close(int fd) {
    int strike = mine(fd) ? strikes() : 0;
    if (fd >= 0 && fd < (int)sizeof ours) ours[fd] = 0;
    int done = REAL(close)(fd);
    if (strike == 1) errno = EIO;
    return strike == 1 ? -1 : done;
}
