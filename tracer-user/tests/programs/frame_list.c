/* Keeps tracemalloc from re-labelling frames that CPython 3.8 to 3.10 recycle through their free list.
 *
 * A frame from that list whose size does not fit is resized, and where it fits its block after all, it stays in place: the allocator does nothing
 * that anyone could see, but tracemalloc gives the block to the new line. So this hook lies above tracemalloc's: it resizes by the allocator
 * below, and when a frame has stayed where it was, tracemalloc is not told. It is told of everything else as ever.
 *
 * No Python headers: one build serves all versions. The types are those of PyMem_GetAllocator, which is stable since 3.5.
 */
#include <stddef.h>

typedef struct {
    void *context;
    void *(*malloc)(void *context, size_t size);
    void *(*calloc)(void *context, size_t count, size_t size);
    void *(*realloc)(void *context, void *block, size_t size);
    void (*free)(void *context, void *block);
} Allocator;

extern void PyMem_GetAllocator(int domain, Allocator *allocator);
extern void PyMem_SetAllocator(int domain, Allocator *allocator);
extern char PyFrame_Type;

enum { OBJECT_DOMAIN = 2, SMALLEST_FRAME = 64 };

static Allocator tracing; /* tracemalloc's hooks; its context is the allocator below it */
static void *moved_to;

static void forget(void *context, void *block) {
    (void)context;
    (void)block;
}

static void *moved(void *context, size_t size) {
    (void)context;
    (void)size;
    return moved_to;
}

static int is_frame(void *block, size_t size) {
    /* Two words of garbage collection, the reference count, the type. */
    return size >= SMALLEST_FRAME && ((void **)block)[3] == (void *)&PyFrame_Type;
}

/* Tell tracemalloc that a block went from one place to the other, although the allocator has moved it already. */
static void tell(Allocator *below, void *from, void *to, size_t size) {
    Allocator saved = *below;
    below->free = forget;
    below->malloc = moved;
    moved_to = to;
    tracing.free(tracing.context, from);
    tracing.malloc(tracing.context, size);
    *below = saved;
}

static void *resize(void *context, void *block, size_t size) {
    Allocator *below = tracing.context;
    void *result;
    (void)context;
    if (block == NULL)
        return tracing.realloc(tracing.context, block, size);
    result = below->realloc(below->context, block, size);
    if (result != NULL && !(result == block && is_frame(block, size)))
        tell(below, block, result, size);
    return result;
}

/* Lay the hook above tracemalloc's. Call with the interpreter lock held. */
void install(void) {
    Allocator hook;
    PyMem_GetAllocator(OBJECT_DOMAIN, &tracing);
    hook = tracing;
    hook.realloc = resize;
    PyMem_SetAllocator(OBJECT_DOMAIN, &hook);
}

/* Does nothing; called where the hook must not be laid, so that every run does the same. */
void leave(void) {
}
