// The truth about reuse, from inside a Python process: which allocation has each address now.
//
// A shared library for ctypes, without CPython's headers: it puts itself before the allocators of all three domains with PyMem_SetAllocator, and writes
// each allocation's number into a table that others read as a file. Numbers never come twice, so an address whose number has changed was given out again.
// What does not go through PyMem (C and Rust code that calls malloc) is not in the table.

#define _GNU_SOURCE
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define DOMAINS 3
#define SLOTS (1u << 22)
#define RECENT (1u << 20)
#define FULL (SLOTS / 4 * 3)

// Include/cpython/pymem.h; the same since 3.5.
typedef struct {
    void *context;
    void *(*malloc)(void *context, size_t size);
    void *(*calloc)(void *context, size_t count, size_t size);
    void *(*realloc)(void *context, void *block, size_t size);
    void (*free)(void *context, void *block);
} Allocator;

extern void PyMem_GetAllocator(int domain, Allocator *allocator);
extern void PyMem_SetAllocator(int domain, Allocator *allocator);

// 32 bytes, as tracer-user/examples/identity/oracle.rs reads them.
typedef struct {
    uint64_t address;
    uint64_t number;
    uint64_t size;
    uint32_t live;
    uint32_t resized;
} Slot;

typedef struct {
    _Atomic uint64_t next;
    uint64_t used;
    uint64_t lost;
    uint64_t padding;
    uint64_t recent[RECENT];
    Slot slots[SLOTS];
} Table;

static Table *table;
static Allocator inner[DOMAINS];
static int is_installed;
static atomic_flag lock = ATOMIC_FLAG_INIT;

static void acquire(void) {
    while (atomic_flag_test_and_set_explicit(&lock, memory_order_acquire)) {
    }
}

static void release(void) { atomic_flag_clear_explicit(&lock, memory_order_release); }

// The slot of an address, or null. With `make`, a new one unless the table is full.
static Slot *find(uint64_t address, int make) {
    uint64_t index = (address >> 4) * 0x9e3779b97f4a7c15u >> 42;
    for (;; index = (index + 1) % SLOTS) {
        Slot *slot = &table->slots[index];
        if (slot->address == address) {
            return slot;
        }
        if (slot->address == 0) {
            if (!make) {
                return 0;
            }
            if (table->used == FULL) {
                table->lost++;
                return 0;
            }
            table->used++;
            slot->address = address;
            return slot;
        }
    }
}

static void born(void *block, size_t size) {
    if (!block) {
        return;
    }
    acquire();
    Slot *slot = find((uint64_t)block, 1);
    if (slot) {
        uint64_t number = atomic_load(&table->next) + 1;
        slot->live = 0;
        atomic_thread_fence(memory_order_release);
        slot->number = number;
        slot->size = size;
        slot->resized = 0;
        atomic_thread_fence(memory_order_release);
        slot->live = 1;
        table->recent[number % RECENT] = (uint64_t)block;
        atomic_store(&table->next, number);
    }
    release();
}

// `number` 0: whatever allocation has the address.
static void died(void *block, uint64_t number) {
    if (!block) {
        return;
    }
    acquire();
    Slot *slot = find((uint64_t)block, 0);
    if (slot && (number == 0 || slot->number == number)) {
        slot->live = 0;
    }
    release();
}

static uint64_t number_of(void *block) {
    acquire();
    Slot *slot = find((uint64_t)block, 0);
    uint64_t number = slot ? slot->number : 0;
    release();
    return number;
}

static void resized(void *block, size_t size) {
    acquire();
    Slot *slot = find((uint64_t)block, 0);
    if (slot) {
        slot->resized++;
        slot->size = size;
    }
    release();
}

static void *count_malloc(void *context, size_t size) {
    Allocator *below = context;
    void *block = below->malloc(below->context, size);
    born(block, size);
    return block;
}

static void *count_calloc(void *context, size_t count, size_t size) {
    Allocator *below = context;
    void *block = below->calloc(below->context, count, size);
    born(block, count * size);
    return block;
}

static void count_free(void *context, void *block) {
    Allocator *below = context;
    died(block, 0);
    below->free(below->context, block);
}

static void *count_realloc(void *context, void *old, size_t size) {
    Allocator *below = context;
    uint64_t number = old ? number_of(old) : 0;
    void *block = below->realloc(below->context, old, size);
    if (!block) {
        return block;
    }
    if (block == old) {
        resized(block, size);
        return block;
    }
    // Another thread may have been given the old address by now; then it has another number.
    if (number) {
        died(old, number);
    }
    born(block, size);
    return block;
}

// Called by Python with the lock held. In a fork's child a second time, for a table of its own. 0: done.
int install(const char *path) {
    int file = open(path, O_RDWR | O_CREAT | O_TRUNC, 0600);
    if (file < 0 || ftruncate(file, sizeof(Table)) != 0) {
        return -1;
    }
    void *mapped = mmap(0, sizeof(Table), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    close(file);
    if (mapped == MAP_FAILED) {
        return -1;
    }
    table = mapped;
    for (int domain = 0; domain < DOMAINS && !is_installed; domain++) {
        PyMem_GetAllocator(domain, &inner[domain]);
        Allocator ours = {&inner[domain], count_malloc, count_calloc, count_realloc, count_free};
        PyMem_SetAllocator(domain, &ours);
    }
    is_installed = 1;
    return 0;
}
