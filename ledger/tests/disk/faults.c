/* A disk that fails, put between a program and its files with LD_PRELOAD.
 *
 * It knows what was written since each file's last sync and what was there before. A crash puts
 * back what no sync has covered, all of it or a part chosen by the seed, and ends the process. Only
 * files whose path contains CELL_DISK_PATH are meant.
 *
 *   CELL_DISK_FAULT   crash | torn | eio | enospc | fsync
 *   CELL_DISK_AT      at which sync (crash, torn, fsync) or write (eio, enospc), from 1
 *   CELL_DISK_SEED    what the chosen part depends on
 *
 * Names of files (create, rename, unlink) are taken to be durable at once.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SECTOR = 512, CRASHED = 77 };

/* One write that no sync has covered, newest first. */
struct change {
    struct change *older;
    char path[512];
    ino_t file;
    off_t at, length, old_size, old_length;
    /* A sync that was to cover it failed: no later one does. */
    int doomed;
    unsigned char old[];
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static struct change *changes;
static long syncs, writes, fault_at;
static uint64_t seed;
static const char *kind, *wanted;

static ssize_t (*real_pwrite)(int, const void *, size_t, off_t);
static ssize_t (*real_pread)(int, void *, size_t, off_t);
static int (*real_fsync)(int), (*real_fdatasync)(int), (*real_ftruncate)(int, off_t);

__attribute__((constructor)) static void begin(void) {
    real_pwrite = dlsym(RTLD_NEXT, "pwrite64");
    real_pread = dlsym(RTLD_NEXT, "pread64");
    real_fsync = dlsym(RTLD_NEXT, "fsync");
    real_fdatasync = dlsym(RTLD_NEXT, "fdatasync");
    real_ftruncate = dlsym(RTLD_NEXT, "ftruncate64");
    kind = getenv("CELL_DISK_FAULT");
    wanted = getenv("CELL_DISK_PATH");
    fault_at = getenv("CELL_DISK_AT") ? atol(getenv("CELL_DISK_AT")) : 0;
    seed = getenv("CELL_DISK_SEED") ? strtoull(getenv("CELL_DISK_SEED"), NULL, 10) : 0;
}

/* SplitMix64. */
static uint64_t chance(void) {
    uint64_t mixed = seed += 0x9E3779B97F4A7C15u;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
    return mixed ^ (mixed >> 31);
}

/* Whether the fault is meant for this file; also finds its path and what it is. */
static int meant(int fd, char *path, size_t size, struct stat *found) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, size - 1);
    if (!kind || !wanted || length < 0 || fstat(fd, found) || !S_ISREG(found->st_mode)) return 0;
    path[length] = 0;
    /* SQLite's shared index is memory, and made anew. */
    return strstr(path, wanted) && !strstr(path, "-shm");
}

static void remember(const char *path, const struct stat *found, off_t at, off_t length, int fd) {
    off_t old = found->st_size <= at ? 0 : found->st_size - at;
    if (old > length) old = length;
    struct change *change = calloc(1, sizeof *change + (size_t)old);
    if (!change) abort();
    snprintf(change->path, sizeof change->path, "%s", path);
    change->file = found->st_ino;
    change->at = at, change->length = length;
    change->old_size = found->st_size, change->old_length = old;
    if (old && real_pread(fd, change->old, (size_t)old, at) != old) abort();
    change->older = changes;
    changes = change;
}

/* Puts back what was there before a change, from its `kept`th sector on. */
static void put_back(const struct change *change, off_t kept) {
    int fd = open(change->path, O_WRONLY | O_CLOEXEC);
    struct stat found;
    /* Its name may stand for another file by now, or for none. */
    if (fd < 0) return;
    if (!fstat(fd, &found) && found.st_ino == change->file) {
        off_t from = kept * SECTOR;
        if (from < change->old_length)
            real_pwrite(fd, change->old + from, (size_t)(change->old_length - from), change->at + from);
        if (found.st_size == change->at + change->length && found.st_size > change->old_size) {
            off_t size = change->at + from > change->old_size ? change->at + from : change->old_size;
            real_ftruncate(fd, size);
        }
    }
    close(fd);
}

static void crash(void) {
    int torn = !strcmp(kind, "torn");
    for (struct change *change = changes; change; change = change->older) {
        if (torn && chance() % 2) continue;
        off_t sectors = change->length / SECTOR;
        put_back(change, torn && sectors ? (off_t)(chance() % (uint64_t)(sectors + 1)) : 0);
    }
    _exit(CRASHED);
}

/* The process ends by itself: what a failed sync left behind is lost all the same. */
__attribute__((destructor)) static void end(void) {
    for (struct change *change = changes; change; change = change->older)
        if (change->doomed) put_back(change, 0);
}

static int sync_file(int fd, int (*real)(int)) {
    char path[512];
    struct stat found;
    if (!meant(fd, path, sizeof path, &found)) return real(fd);
    pthread_mutex_lock(&lock);
    int is_due = ++syncs == fault_at;
    if (is_due && (!strcmp(kind, "crash") || !strcmp(kind, "torn"))) crash();
    int fails = is_due && !strcmp(kind, "fsync");
    int result = fails ? -1 : real(fd);
    struct change **at = &changes;
    while (*at) {
        struct change *change = *at;
        if (change->file != found.st_ino) {
            at = &change->older;
        } else if (fails || change->doomed) {
            change->doomed = 1;
            at = &change->older;
        } else {
            *at = change->older;
            free(change);
        }
    }
    pthread_mutex_unlock(&lock);
    if (fails) errno = EIO;
    return result;
}

int fsync(int fd) { return sync_file(fd, real_fsync); }
int fdatasync(int fd) { return sync_file(fd, real_fdatasync); }

ssize_t pwrite64(int fd, const void *bytes, size_t length, off_t at) {
    char path[512];
    struct stat found;
    if (!meant(fd, path, sizeof path, &found)) return real_pwrite(fd, bytes, length, at);
    pthread_mutex_lock(&lock);
    int is_due = ++writes == fault_at;
    int error = is_due && !strcmp(kind, "eio") ? EIO : is_due && !strcmp(kind, "enospc") ? ENOSPC : 0;
    /* A full disk takes a part of the last write. */
    size_t taken = error == ENOSPC ? length / 2 : length;
    ssize_t result = -1;
    if (error != EIO) {
        remember(path, &found, at, (off_t)taken, fd);
        result = real_pwrite(fd, bytes, taken, at);
    }
    pthread_mutex_unlock(&lock);
    if (error) {
        errno = error;
        return -1;
    }
    return result;
}

ssize_t pwrite(int fd, const void *bytes, size_t length, off_t at) {
    return pwrite64(fd, bytes, length, at);
}
