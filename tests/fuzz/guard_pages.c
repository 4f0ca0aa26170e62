/* Puts small blocks of posix_memalign (every tensor of torch) before or behind a page without access, for tests: a read
   or write outside of a tensor, on this side, ends the process. Freed pages lose their access, too. Loaded by
   LD_PRELOAD; see harness.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGE 4096u
#define PAGES (1u << 19)           /* of the arena: 2 GiB of addresses */
#define LARGEST (1u << 20)         /* bytes of a guarded block */
#define GAP 0xA5                   /* content of the bytes around a block in its pages */

static unsigned char *arena;
static uint32_t sizes[PAGES];      /* of the block that begins in a page */
static uint32_t pages_of[PAGES];   /* of the block that begins in a page, with the page without access; 0: none */
static unsigned char at_start[PAGES];
static uint32_t next_page = 1;
static int guard_start;            /* whether the next blocks begin behind a page without access */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int (*real_memalign)(void **, size_t, size_t);
static void (*real_free)(void *);

static void *next(const char *name) {  /* by version, since libc_malloc_debug has no default versions */
    void *found = dlvsym(RTLD_NEXT, name, "GLIBC_2.2.5");
    if (!found) found = dlvsym(RTLD_NEXT, name, "GLIBC_2.17");
    return found ? found : dlsym(RTLD_NEXT, name);
}

__attribute__((constructor)) static void begin(void) {
    void *found = mmap(NULL, (size_t)PAGES * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    arena = found == MAP_FAILED ? NULL : found;
}

void guard_pages_at_start(int whether) {
    guard_start = whether;
}

static unsigned char *block_of(uint32_t page) {  /* aligned to 16 bytes */
    if (at_start[page]) return arena + (size_t)page * PAGE;
    return arena + ((size_t)page + pages_of[page] - 1) * PAGE - ((sizes[page] + 15u) & ~15u);
}

static uint32_t room_for(uint32_t count) {  /* the first of `count` free pages, or PAGES */
    for (int turn = 0; turn < 2; turn++, next_page = 1)
        for (uint32_t page = next_page; page + count <= PAGES;) {
            uint32_t run = 0;
            while (run < count && !pages_of[page + run]) run++;
            if (run == count) {
                next_page = page + count;
                return page;
            }
            page += run + pages_of[page + run];
        }
    return PAGES;
}

int posix_memalign(void **result, size_t alignment, size_t size) {
    if (!real_memalign) real_memalign = next("posix_memalign");
    if (!arena || !size || size > LARGEST || alignment > 64) return real_memalign(result, alignment, size);
    uint32_t count = (uint32_t)((size + 15) / PAGE + 2);
    pthread_mutex_lock(&lock);
    uint32_t page = room_for(count);
    if (page == PAGES || mprotect(arena + (size_t)page * PAGE, (size_t)(count - 1) * PAGE, PROT_READ | PROT_WRITE)) {
        pthread_mutex_unlock(&lock);
        return real_memalign(result, alignment, size);
    }
    pages_of[page] = count;
    sizes[page] = (uint32_t)size;
    at_start[page] = (unsigned char)guard_start;
    memset(arena + (size_t)page * PAGE, GAP, (size_t)(count - 1) * PAGE);
    *result = block_of(page);
    pthread_mutex_unlock(&lock);
    return 0;
}

void free(void *block) {
    unsigned char *byte = block;
    if (!arena || byte < arena || byte >= arena + (size_t)PAGES * PAGE) {
        if (!real_free) real_free = next("free");
        real_free(block);
        return;
    }
    pthread_mutex_lock(&lock);
    uint32_t page = (uint32_t)((byte - arena) / PAGE), first = page;
    while (!pages_of[first] && first) first--;
    unsigned char *start = arena + (size_t)first * PAGE, *end = start + (size_t)(pages_of[first] - 1) * PAGE;
    int bad = !pages_of[first] || byte != block_of(first);
    for (unsigned char *place = start; !bad && place < byte; place++) bad = *place != GAP;
    for (unsigned char *place = byte + sizes[first]; !bad && place < end; place++) bad = *place != GAP;
    if (bad) {
        static const char message[] = "guard_pages: a write outside of a tensor, or a tensor freed twice\n";
        if (write(2, message, sizeof message - 1)) abort();
        abort();
    }
    madvise(start, (size_t)(end - start), MADV_DONTNEED);
    mprotect(start, (size_t)(end - start), PROT_NONE);
    pages_of[first] = 0;
    pthread_mutex_unlock(&lock);
}
