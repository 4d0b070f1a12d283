/* To be preloaded: a malloc family that only jumps to the next one, as tools that count calls have. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>

static void *(*next_malloc)(size_t);
static void *(*next_calloc)(size_t, size_t);
static void *(*next_realloc)(void *, size_t);
static void (*next_free)(void *);
/* dlsym itself may allocate. */
static char first_blocks[4096];
static size_t used;

static void find(void)
{
    static int is_finding;
    if (is_finding)
        return;
    is_finding = 1;
    next_malloc = dlsym(RTLD_NEXT, "malloc");
    next_realloc = dlsym(RTLD_NEXT, "realloc");
    next_free = dlsym(RTLD_NEXT, "free");
    next_calloc = dlsym(RTLD_NEXT, "calloc");
}

void *malloc(size_t size)
{
    if (next_malloc == NULL)
        find();
    return next_malloc(size);
}

void *calloc(size_t number, size_t size)
{
    if (next_calloc == NULL)
        find();
    if (next_calloc == NULL) {
        void *block = first_blocks + used;
        used += (number * size + 15) & ~(size_t)15;
        return block;
    }
    return next_calloc(number, size);
}

void *realloc(void *block, size_t size)
{
    if (next_realloc == NULL)
        find();
    return next_realloc(block, size);
}

void free(void *block)
{
    if (next_free == NULL)
        find();
    if ((char *)block < first_blocks || (char *)block >= first_blocks + sizeof(first_blocks))
        next_free(block);
}
