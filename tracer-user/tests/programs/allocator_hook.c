/* An allocator of somebody else's over the one that is installed, for objects. Called through ctypes; no header of Python is needed. */
#include <stddef.h>

typedef struct {
    void *context;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *);
} allocator;

extern void PyMem_GetAllocator(int, allocator *);
extern void PyMem_SetAllocator(int, allocator *);

static const int objects = 2; /* PYMEM_DOMAIN_OBJ */
static allocator below;
static size_t calls;

void *hook_malloc(void *context, size_t size) {
    calls++;
    return below.malloc(below.context, size);
}

static void *hook_calloc(void *context, size_t number, size_t size) {
    return below.calloc(below.context, number, size);
}

static void *hook_realloc(void *context, void *block, size_t size) {
    return below.realloc(below.context, block, size);
}

static void hook_free(void *context, void *block) {
    below.free(below.context, block);
}

void install(void) {
    allocator hook = {&calls, hook_malloc, hook_calloc, hook_realloc, hook_free};
    PyMem_GetAllocator(objects, &below);
    PyMem_SetAllocator(objects, &hook);
}
